"""Multilayer perceptrons."""

import math

from torch import nn


def mlp(input_shape: tuple[int, ...], outputs: int) -> nn.Module:
    """One hidden layer of 64 tanh units; bounded activations suit clipped gradients."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(math.prod(input_shape), 64), nn.Tanh(), nn.Linear(64, outputs)
    )
