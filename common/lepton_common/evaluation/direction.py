"""Which way each figure is better: said here and nowhere else, by name."""

_LOWER = frozenset({"calibration_error", "log_loss", "loss", "mae", "mape", "perplexity", "rmse"})


def lower_is_better(metric: str) -> bool:
    """Returns whether less of a figure is better."""
    return metric in _LOWER
