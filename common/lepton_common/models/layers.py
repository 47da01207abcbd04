"""Networks as a list of layers, so that a new one needs no code at any site.

In a model's name the layers stand one after the other, as in
``layers.conv16k5p2-pool2-relu-linear128-relu``; the last one, which gives the logits, is
understood. Nothing but what is listed here can be said.
"""

import math
import re
from typing import TYPE_CHECKING, NamedTuple

from lepton_common.errors import SettingsError

if TYPE_CHECKING:
    from torch import nn

PREFIX = "layers."
_MOST_LAYERS, _WIDEST, _MOST_WEIGHTS = 64, 1 << 20, 1 << 30
Shape = tuple[int, ...]

# What a layer is called, with its numbers: kernel k, stride s and padding p of a convolution.
_FORMS = {
    "conv": r"conv(\d+)k(\d+)(?:s(\d+))?(?:p(\d+))?",
    "pool": r"pool(\d+)",
    "mean": r"mean(\d+)",
    "norm": r"norm(\d+)",
    "linear": r"linear(\d+)",
    "relu": r"relu",
    "tanh": r"tanh",
    "sigmoid": r"sigmoid",
}
_ACTIVATIONS = {"relu": "ReLU", "tanh": "Tanh", "sigmoid": "Sigmoid"}
_OF_IMAGES = {"conv", "pool", "mean", "norm"}


class _Layer(NamedTuple):
    word: str
    kind: str
    numbers: tuple[int, ...]


def fault_in(name: str) -> str | None:
    """Returns what is wrong with a name that begins with ``layers.``; None if it can be read."""
    words = name.removeprefix(PREFIX).split("-")
    if len(words) > _MOST_LAYERS:
        return f"model=layers takes {_MOST_LAYERS} layers at most, not {len(words)}."
    for word in words:
        layer = _read(word)
        if layer is None:
            return f"'{word}' is no layer; docs/models.md lists {', '.join(_FORMS)}."
        least = {"conv": (1, 1, 1, 0)}.get(layer.kind, (1,))
        if any(
            not low <= number <= _WIDEST for low, number in zip(least, layer.numbers, strict=False)
        ):
            return f"'{word}' has a number that is not from 1 to {_WIDEST}."
    return None


def build_layers(name: str, input_shape: Shape, outputs: int) -> "nn.Module":
    """Returns the network that a name lists.

    Args:
        name: beginning with ``layers.``.
        input_shape: shape of one record, channels first for images.
        outputs: number of logits.

    Raises:
        SettingsError: a layer is none, does not fit what comes before it, or all are too large.
    """
    import torch

    if fault := fault_in(name):
        raise SettingsError(fault)
    # Without memory first, whoever asks.
    with torch.device("meta"):
        weights = sum(p.numel() for p in _build(name, input_shape, outputs).parameters())
    if weights > _MOST_WEIGHTS:
        raise SettingsError(f"model={name} has {weights} weights; {_MOST_WEIGHTS} is the most.")
    return _build(name, input_shape, outputs)


def _read(word: str) -> _Layer | None:
    for kind, form in _FORMS.items():
        if found := re.fullmatch(form, word, re.ASCII):
            given = [int(number[:9]) if number else None for number in found.groups()]
            numbers = [
                default if number is None else number
                for number, default in zip(given, (0, 0, 1, 0), strict=False)
            ]
            return _Layer(word, kind, tuple(numbers))
    return None


def _build(name: str, shape: Shape, outputs: int) -> "nn.Module":
    from torch import nn

    modules: list[nn.Module] = []
    for word in [*name.removeprefix(PREFIX).split("-"), f"linear{outputs}"]:
        layer = _read(word)
        assert layer is not None, "names are checked before"
        if layer.kind in _OF_IMAGES and len(shape) != 3:
            raise SettingsError(f"'{word}' is for images; what comes before it has shape {shape}.")
        if layer.kind == "linear" and len(shape) > 1:
            modules.append(nn.Flatten())
            shape = (math.prod(shape),)
        module, shape = _add(layer, shape)
        modules.append(module)
        if min(shape) < 1:
            raise SettingsError(f"'{word}' leaves nothing of the image; take fewer or smaller.")
    return nn.Sequential(*modules)


def _add(layer: _Layer, shape: Shape) -> "tuple[nn.Module, Shape]":
    """Returns a layer's module, and the shape after it."""
    from torch import nn

    kind, numbers = layer.kind, layer.numbers
    if kind in _ACTIVATIONS:
        return getattr(nn, _ACTIVATIONS[kind])(), shape
    if kind == "linear":
        return nn.Linear(shape[0], numbers[0]), (numbers[0],)
    if kind == "norm":
        if shape[0] % numbers[0]:
            raise SettingsError(f"'{layer.word}' does not divide {shape[0]} channels.")
        return nn.GroupNorm(numbers[0], shape[0]), shape
    if kind in ("pool", "mean"):
        pool = nn.MaxPool2d if kind == "pool" else nn.AvgPool2d
        return pool(numbers[0]), (shape[0], *(side // numbers[0] for side in shape[1:]))
    width, kernel, stride, padding = numbers
    sides = ((side + 2 * padding - kernel) // stride + 1 for side in shape[1:])
    after = (width, *sides)
    if min(after) < 1:
        raise SettingsError(f"'{layer.word}' does not fit an image of shape {shape}.")
    return nn.Conv2d(shape[0], width, kernel, stride=stride, padding=padding), after
