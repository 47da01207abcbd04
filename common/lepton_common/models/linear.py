"""Linear models."""

import math

from torch import nn


def logistic(input_shape: tuple[int, ...], outputs: int) -> nn.Module:
    """Logistic regression: one affine layer over the flattened record."""
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(input_shape), outputs))
