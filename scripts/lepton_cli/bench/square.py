"""Models of any size whose training is trivial: four square layers between two small ones."""

import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

_SQUARES, _INPUTS, _OUTPUTS = 4, 30, 2  # the data set's 30 measurements and two classes
SIZES_MB = (1, 50, 400, 2000)


def width_of(megabytes: int) -> int:
    """Returns the width at which a model has this many megabytes (10**6 bytes) of float32."""
    wanted = megabytes * 250_000
    linear = _SQUARES + 1 + _INPUTS + _OUTPUTS
    return round((math.sqrt(linear**2 + 4 * _SQUARES * wanted) - linear) / (2 * _SQUARES))


def parameters_of(megabytes: int) -> int:
    """Returns how many parameters that model has."""
    width = width_of(megabytes)
    return _SQUARES * (width + 1) * width + (_INPUTS + 1) * width + (width + 1) * _OUTPUTS


def square(width: int, input_shape: tuple[int, ...], outputs: int) -> "nn.Module":
    """Returns a perceptron of four hidden square layers."""
    from torch import nn

    layers: list[nn.Module] = [nn.Flatten(), nn.Linear(math.prod(input_shape), width)]
    for _ in range(_SQUARES):
        layers += [nn.Tanh(), nn.Linear(width, width)]
    return nn.Sequential(*layers, nn.Tanh(), nn.Linear(width, outputs))


def name_of(megabytes: int) -> str:
    """Returns the name under which the catalog has it."""
    return f"square_{megabytes}mb"


MODELS: dict[str, Callable[[tuple[int, ...], int], "nn.Module"]] = {
    name_of(size): partial(square, width_of(size)) for size in SIZES_MB
}
