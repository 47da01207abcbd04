"""Local training: plain, and private with per-unit clipping and secret noise."""
