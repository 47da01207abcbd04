"""A small residual network for images, with group normalisation, which keeps records apart."""

import torch
from torch import nn
from torch.nn import functional

_GROUPS = 8


class _Block(nn.Module):
    """Two convolutions with group normalisation, and a way around them (He et al. 2016)."""

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width_in, width, 3, stride=stride, padding=1, bias=False),
            nn.GroupNorm(_GROUPS, width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.GroupNorm(_GROUPS, width),
        )
        around = nn.Conv2d(width_in, width, 1, stride=stride, bias=False)
        self.around = nn.Identity() if (width_in, stride) == (width, 1) else around

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return functional.relu(self.body(images) + self.around(images))


def resnet(input_shape: tuple[int, ...], outputs: int) -> nn.Module:
    """Three residual blocks of 16, 32 and 64 channels; 77,850 parameters at 3x32x32 and 10."""
    return nn.Sequential(
        nn.Conv2d(input_shape[0], 16, 3, padding=1, bias=False),
        nn.GroupNorm(_GROUPS, 16),
        nn.ReLU(),
        *(_Block(a, b, s) for a, b, s in ((16, 16, 1), (16, 32, 2), (32, 64, 2))),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, outputs),
    )
