"""Convolutional networks for small images; no normalisation layer, so records stay apart."""

from torch import nn


def cnn(input_shape: tuple[int, ...], outputs: int) -> nn.Module:
    """Two 5x5 convolutions (16, 32), each pooled, then 128 units, all ReLU.

    Each pooling comes before its ReLU, which gives the same values for a quarter of the work.
    """
    channels, height, width = input_shape
    return nn.Sequential(
        nn.Conv2d(channels, 16, 5, padding=2),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Conv2d(16, 32, 5, padding=2),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * (height // 4) * (width // 4), 128),
        nn.ReLU(),
        nn.Linear(128, outputs),
    )


def cnn_small(input_shape: tuple[int, ...], outputs: int) -> nn.Module:
    """The end-to-end network of Papernot et al. (AAAI 2021) for private training, with tanh.

    Convolutions 16 and 32 with two poolings, 32 hidden units: few parameters, so little noise;
    images smaller than 16 pixels a side are pooled once, after the second convolution.
    """
    channels, height, width = input_shape
    if min(height, width) < 16:
        return nn.Sequential(
            nn.Conv2d(channels, 16, 3, padding=1),
            nn.Tanh(),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.Tanh(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(32 * (height // 2) * (width // 2), outputs),
        )
    # 8x8 kernel, stride 2, padding 3, then pool 2/1; 4x4 kernel, stride 2, then pool 2/1.
    side = [((((size - 2) // 2 + 1) - 1) - 4) // 2 + 1 - 1 for size in (height, width)]
    return nn.Sequential(
        nn.Conv2d(channels, 16, 8, stride=2, padding=3),
        nn.Tanh(),
        nn.MaxPool2d(2, 1),
        nn.Conv2d(16, 32, 4, stride=2),
        nn.Tanh(),
        nn.MaxPool2d(2, 1),
        nn.Flatten(),
        nn.Linear(32 * side[0] * side[1], 32),
        nn.Tanh(),
        nn.Linear(32, outputs),
    )


def cnn_reference(input_shape: tuple[int, ...], outputs: int) -> nn.Module:
    """The network of pfl-research's CIFAR-10 benchmark, without its dropout.

    Valid 3x3 convolutions 32 and 64, pooling, 128 units; 1,626,442 parameters at 32x32x3.
    """
    channels, height, width = input_shape
    return nn.Sequential(
        nn.Conv2d(channels, 32, 3),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64 * ((height - 4) // 2) * ((width - 4) // 2), 128),
        nn.ReLU(),
        nn.Linear(128, outputs),
    )
