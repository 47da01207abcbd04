"""Convolutions over time, for windows of sensors: alone, or with a recurrent layer behind them."""

import torch
from torch import nn

from lepton_common.models.recurrent import Last

_WIDTH, _UNITS = 32, 64


class _Turn(nn.Module):
    """Time and channels change places."""

    def forward(self, series: torch.Tensor) -> torch.Tensor:
        return series.transpose(1, 2)


def cnn1d(input_shape: tuple[int, ...], outputs: int) -> nn.Module:
    """Convolutions 32 and 64 over time, each pooled, their mean over time, and a linear layer."""
    return nn.Sequential(
        *_convolved(input_shape[1]),
        nn.Conv1d(_WIDTH, _UNITS, 5, padding=2),
        nn.MaxPool1d(2),
        nn.ReLU(),
        nn.AdaptiveAvgPool1d(1),
        nn.Flatten(),
        nn.Linear(_UNITS, outputs),
    )


def cnn_rnn(input_shape: tuple[int, ...], outputs: int) -> nn.Module:
    """Convolutions 32 and 32 over time, each pooled, then 64 gated recurrent units.

    What DeepConvLSTM (Ordonez and Roggen 2016) does with more of both.
    """
    return nn.Sequential(
        *_convolved(input_shape[1]),
        nn.Conv1d(_WIDTH, _WIDTH, 5, padding=2),
        nn.MaxPool1d(2),
        nn.ReLU(),
        _Turn(),
        Last(nn.GRU(_WIDTH, _UNITS, batch_first=True)),
        nn.Linear(_UNITS, outputs),
    )


def _convolved(channels: int) -> list[nn.Module]:
    # Each pooling comes before its ReLU, which gives the same values for half the work.
    return [_Turn(), nn.Conv1d(channels, _WIDTH, 5, padding=2), nn.MaxPool1d(2), nn.ReLU()]
