"""Made-up images with a known answer: a pattern for each class under noise."""

import numpy as np
from numpy.typing import NDArray

_CONTRAST, _NOISE = 45.0, 35.0
_TRAIN, _TEST = 400, 200


def class_patterns(classes: int, shape: tuple[int, int, int], seed: int) -> NDArray[np.float64]:
    """Returns a smooth pattern of mean 0 and deviation 1 for each class, [classes, *shape]."""
    generator = np.random.default_rng(seed)
    channels, height, width = shape
    down, right = np.mgrid[0:height, 0:width]
    waves = []
    for across, along, phase in zip(
        generator.uniform(-2.5, 2.5, (classes, channels, 3)).reshape(-1),
        generator.uniform(-2.5, 2.5, (classes, channels, 3)).reshape(-1),
        generator.uniform(0, 2 * np.pi, (classes, channels, 3)).reshape(-1),
        strict=True,
    ):
        waves.append(np.cos(2 * np.pi * (across * down / height + along * right / width) + phase))
    patterns = np.array(waves).reshape(classes, channels, 3, height, width).sum(2)
    patterns -= patterns.mean(axis=(1, 2, 3), keepdims=True)
    found: NDArray[np.float64] = patterns / patterns.std(axis=(1, 2, 3), keepdims=True)
    return found


def made_up_images(
    labels: NDArray[np.int64], classes: int, shape: tuple[int, int, int], seed: int
) -> NDArray[np.uint8]:
    """Returns an image for each label, uint8, shape [n, *shape].

    Each is its class's pattern under noise of nearly the same strength, pixel by pixel: whoever
    knows `class_patterns` names every class by the product with them, so 1.0 can be reached.

    Args:
        labels: int64, shape [n].
        classes: how many there are.
        shape: channels, height and width.
        seed: of the patterns, and of the noise.
    """
    patterns = class_patterns(classes, shape, seed)
    noise = np.random.default_rng([seed, 1]).normal(0.0, _NOISE, (len(labels), *shape))
    return np.clip(128.0 + _CONTRAST * patterns[labels] + noise, 0, 255).astype(np.uint8)


def made_up_parts(
    cycle: NDArray[np.int64], shape: tuple[int, int, int], seed: int
) -> dict[str, tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
    """Returns 400 images for training and 200 for tests, each with their labels, both uint8.

    Args:
        cycle: the labels, again and again, int64; of all classes, from 0.
        shape: channels, height and width.
        seed: see `made_up_images`.
    """
    labels = np.resize(cycle, _TRAIN + _TEST)
    images = made_up_images(labels, int(cycle.max()) + 1, shape, seed)
    shares = {"train": slice(_TRAIN), "test": slice(_TRAIN, None)}
    return {part: (images[rows], labels[rows].astype(np.uint8)) for part, rows in shares.items()}
