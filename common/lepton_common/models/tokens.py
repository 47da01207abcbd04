"""Tokens, which ride as float32 like all features, as whole numbers again."""

import torch
from torch import nn

VOCABULARY = 4096
"""Tokens of a text classifier, whose records do not say how many there are."""
PADDING = 0
"""The token that fills a short text up."""


class Tokens(nn.Module):
    """A first layer: float32 tokens to int64, each within the vocabulary.

    What lies outside wraps around, as hashed words do, and what is no number is padding: a step
    under privacy may not fail for one record. Who reads records checks them.

    Attributes:
        vocabulary: how many tokens there are.
    """

    def __init__(self, vocabulary: int) -> None:
        """Takes the number of tokens."""
        super().__init__()
        self.vocabulary = vocabulary

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Returns tokens, int64, in the shape of the features."""
        inside = features.remainder(self.vocabulary).nan_to_num(float(PADDING))
        # A number just below zero has itself, rounded, the vocabulary for a remainder.
        return inside.long().clamp(max=self.vocabulary - 1)


def spread(module: nn.Module, features: torch.Tensor) -> torch.Tensor:
    """Returns made-up features, spread over the vocabulary where a model reads tokens.

    Random numbers about zero would all be the same two or three tokens.
    """
    for layer in module.modules():
        if isinstance(layer, Tokens):
            return (features.abs().frac() * layer.vocabulary).floor()
    return features
