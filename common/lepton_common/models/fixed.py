"""Linear models on features that nothing was learnt for: few weights, so little noise.

What a private run of few records, or of few people, can learn; as scattering is for images.
"""

import torch
from torch import nn
from torch.nn import functional

from lepton_common.models.tokens import PADDING, VOCABULARY, Tokens

_STATISTICS = 4


class WordsHeld(nn.Module):
    """A first layer without parameters: which tokens a text holds, scaled to length one.

    A token counts once, wherever and however often it stands.
    """

    def __init__(self) -> None:
        """Reads tokens as `Tokens` does."""
        super().__init__()
        self.tokens = Tokens(VOCABULARY)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Returns shape [n, VOCABULARY] for tokens as float32, shape [n, T]."""
        tokens = self.tokens(features)
        none = torch.zeros(len(tokens), VOCABULARY, dtype=features.dtype, device=features.device)
        held = none.scatter(1, tokens, 1.0)
        held = torch.cat([held[:, :PADDING], none[:, :1], held[:, PADDING + 1 :]], 1)
        return functional.normalize(held)


class Movements(nn.Module):
    """A first layer without parameters: four numbers that sum up each channel of a series.

    Its mean, deviation, mean step from one time to the next, and largest value.
    """

    def forward(self, series: torch.Tensor) -> torch.Tensor:
        """Returns shape [n, 4 * channels] for series of shape [n, time, channels]."""
        steps = series.diff(dim=1).abs().sum(1) / max(1, series.shape[1] - 1)
        deviation = series.var(1, correction=0).clamp(min=1e-12).sqrt()
        return torch.cat([series.mean(1), deviation, steps, series.amax(1)], 1)


def word_bag(input_shape: tuple[int, ...], outputs: int) -> nn.Module:
    """Logistic regression on which of 4,096 tokens a text of T tokens holds, 0 for padding."""
    return nn.Sequential(WordsHeld(), nn.Linear(VOCABULARY, outputs))


def movements(input_shape: tuple[int, ...], outputs: int) -> nn.Module:
    """Logistic regression on mean, deviation, mean step and largest value of each channel."""
    return nn.Sequential(Movements(), nn.Linear(_STATISTICS * input_shape[1], outputs))
