"""A convolutional network over the spectrogram of a sound."""

import math
from itertools import pairwise

import torch
from torch import nn

_WINDOW, _STEP = 256, 128
_WIDTHS = (1, 16, 32, 32)
_LOUD = 1000.0  # times the quietest sound that counts


class Spectrogram(nn.Module):
    """A first layer without parameters: how loud each frequency is over time, in log scale.

    Hann windows of 256 samples, half overlapping. A full sine gives about 1, and nothing is taken
    from statistics over records.
    """

    def forward(self, sounds: torch.Tensor) -> torch.Tensor:
        """Returns shape [n, 1, 129, windows] for sounds of shape [n, samples], within -1 and 1."""
        hann = torch.hann_window(_WINDOW, dtype=sounds.dtype, device=sounds.device)
        waves = torch.stft(sounds, _WINDOW, _STEP, window=hann, center=False, return_complex=True)
        # Half of the window's sum is the magnitude of a full sine.
        loud = waves.abs() / (_WINDOW / 4)
        return torch.log1p(_LOUD * loud).unsqueeze(1) / math.log1p(_LOUD)


def audio_cnn(input_shape: tuple[int, ...], outputs: int) -> nn.Module:
    """The spectrogram, convolutions 16, 32 and 32 that halve it, their mean, a linear layer."""
    convolved: list[nn.Module] = []
    for before, width in pairwise(_WIDTHS):
        convolved += [nn.Conv2d(before, width, 3, stride=2, padding=1), nn.ReLU()]
    return nn.Sequential(
        Spectrogram(),
        *convolved,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(_WIDTHS[-1], outputs),
    )
