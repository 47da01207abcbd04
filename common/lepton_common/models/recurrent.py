"""Recurrent networks: over series, and over characters or other tokens."""

import torch
from torch import nn

from lepton_common.models.tokens import Tokens

_UNITS, _WIDTH = 64, 32


class Last(nn.Module):
    """The last output of a recurrent layer that has records first."""

    def __init__(self, recurrent: nn.Module) -> None:
        """Takes the layer."""
        super().__init__()
        self.recurrent = recurrent

    def forward(self, series: torch.Tensor) -> torch.Tensor:
        """Returns what follows the last step, shape [n, units], of series [n, time, channels]."""
        outputs: torch.Tensor = self.recurrent(series)[0]
        return outputs[:, -1]


class _Every(nn.Module):
    """All outputs of a recurrent layer."""

    def __init__(self, recurrent: nn.Module) -> None:
        super().__init__()
        self.recurrent = recurrent

    def forward(self, series: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = self.recurrent(series)[0]
        return outputs


def lstm(input_shape: tuple[int, ...], outputs: int) -> nn.Module:
    """An LSTM of 64 units over a series (time, channels), and a linear layer on its last output."""
    recurrent = nn.LSTM(input_shape[1], _UNITS, batch_first=True)
    return nn.Sequential(Last(recurrent), nn.Linear(_UNITS, outputs))


def gru(input_shape: tuple[int, ...], outputs: int) -> nn.Module:
    """As `lstm`, with gated recurrent units."""
    recurrent = nn.GRU(input_shape[1], _UNITS, batch_first=True)
    return nn.Sequential(Last(recurrent), nn.Linear(_UNITS, outputs))


def char_lstm(input_shape: tuple[int, ...], outputs: int) -> nn.Module:
    """The next token after each of T: embedded in 32 numbers, an LSTM of 64 units, logits.

    There are as many tokens as ``outputs``; logits have shape [n, T, outputs].
    """
    return _next_token(nn.LSTM(_WIDTH, _UNITS, batch_first=True), outputs)


def char_gru(input_shape: tuple[int, ...], outputs: int) -> nn.Module:
    """As `char_lstm`, with gated recurrent units."""
    return _next_token(nn.GRU(_WIDTH, _UNITS, batch_first=True), outputs)


def _next_token(recurrent: nn.Module, tokens: int) -> nn.Module:
    return nn.Sequential(
        Tokens(tokens), nn.Embedding(tokens, _WIDTH), _Every(recurrent), nn.Linear(_UNITS, tokens)
    )
