"""Evaluation at the server, with an evaluate_fn and data from a file beside the app."""
