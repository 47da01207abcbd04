"""Weights that are not trained and never travel: drawn from their names, or from a checkpoint."""

import hashlib
import math
from collections.abc import Collection

import numpy as np
import torch
from torch import nn

_LABEL = "lepton frozen weights 1"


@torch.no_grad()
def draw_frozen(module: nn.Module, but: Collection[nn.Module]) -> None:
    """Freezes a model's weights and draws them from their names alone.

    So each site has the very same ones, whatever its processor, its version of PyTorch and the
    run's seed; `Layout` compares them. Normalisations are left at 1 and 0, and biases are zero.

    Args:
        module: the model.
        but: layers whose weights are trained.
    """
    for path, layer in module.named_modules():
        if layer in but:
            continue
        for name, parameter in layer.named_parameters(path, recurse=False):
            parameter.requires_grad_(False)
            if parameter.dim() > 1:
                parameter.copy_(_drawn(name, parameter.shape, isinstance(layer, nn.Embedding)))
            else:
                parameter.fill_(0.0 if name.endswith("bias") else 1.0)


def _drawn(name: str, shape: torch.Size, is_table: bool) -> torch.Tensor:
    """Returns numbers evenly spread about zero: of variance 1, over the inputs of a layer."""
    inputs = 1 if is_table else math.prod(shape[1:])
    words = hashlib.shake_256(f"{_LABEL}: {name}".encode()).digest(2 * shape.numel())
    whole = np.frombuffer(words, "<i2").astype(np.float32)
    # One rounding, of whole numbers by a number: the same bits on every processor.
    values = whole * np.float32(math.sqrt(3.0 / inputs) / 2**15)
    return torch.from_numpy(values).view(shape)
