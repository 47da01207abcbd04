"""Trackers: TensorBoard or MLflow are told what the server has released of a run."""
