"""Layers that keep statistics of records, replaced by ones that look at a record alone."""

import logging

import torch
from torch import nn

_LOG = logging.getLogger(__name__)
_MOST_GROUPS, _LEAST_CHANNELS = 32, 4


def replace_batch_norms(module: nn.Module) -> nn.Module:
    """Returns a model with group normalisation (Wu and He 2018) for each batch normalisation.

    Batch normalisation mixes the records of a batch, so that no clipping bounds what one of them
    changes, and its running statistics would leave a site with the weights. Scales and shifts are
    taken over; what was replaced is logged.
    """
    replaced = []
    for name, layer in list(module.named_modules()):
        if not isinstance(layer, nn.modules.batchnorm._BatchNorm):
            continue
        new = _group_norm(layer)
        if name == "":
            module = new
        else:
            parent, _, attribute = name.rpartition(".")
            setattr(module.get_submodule(parent), attribute, new)
        replaced.append(f"{name or 'the model'} by {new.num_groups} groups")
    if replaced:
        _LOG.warning(
            "Batch normalisation mixes records, so groups of channels are normalised in its "
            "place: %s.",
            "; ".join(replaced),
        )
    return module


def _group_norm(layer: nn.modules.batchnorm._BatchNorm) -> nn.GroupNorm:
    channels = layer.num_features
    fits = [
        groups
        for groups in range(1, min(_MOST_GROUPS, channels // _LEAST_CHANNELS) + 1)
        if channels % groups == 0
    ]
    new = nn.GroupNorm(max(fits, default=1), channels, eps=layer.eps, affine=layer.affine)
    if layer.affine:
        with torch.no_grad():
            new.weight.copy_(layer.weight)
            new.bias.copy_(layer.bias)
    return new
