"""Data sets that come with scikit-learn: real data with no download."""

import numpy as np
import torch
from numpy.typing import NDArray

from lepton_common.datasets.preparation import PER_RECORD, check_offered
from lepton_common.datasets.records import Dataset, Records, marks_of
from lepton_common.datasets.scattering import scattering_features

# Public ranges of the 30 measurements, from the description that ships with the data set.
CANCER_RANGES = """
6.981 28.11   9.71 39.28    43.79 188.5   143.5 2501.0  0.053 0.163   0.019 0.345
0.0 0.427     0.0 0.201     0.106 0.304   0.05 0.097    0.112 2.873   0.36 4.885
0.757 21.98   6.802 542.2   0.002 0.031   0.002 0.135   0.0 0.396     0.0 0.053
0.008 0.079   0.001 0.03    7.93 36.04    12.02 49.54   50.41 251.2   185.2 4254.0
0.071 0.223   0.027 1.058   0.0 1.252     0.0 0.291     0.156 0.664   0.055 0.208
"""


def digits(root: str | None, prepare: str) -> Dataset:
    """UCI handwritten digits, 8x8: 1,437 training and 360 test images, split once for all."""
    from sklearn import datasets as bundled

    del root
    check_offered("digits", prepare, PER_RECORD)
    data = bundled.load_digits()
    images = (data.images / 16.0).astype(np.float32)[:, None]
    marks = marks_of(images, data.target)
    if prepare == "scattering":
        images = scattering_features(images).numpy()
    return _split("digits", images, data.target, classes=10, marks=marks)


def breast_cancer(root: str | None, prepare: str) -> Dataset:
    """Wisconsin diagnostic breast cancer: 455 training and 114 test rows of 30 measurements."""
    from sklearn import datasets as bundled

    del root
    check_offered("breast_cancer", prepare, {"public_ranges"})
    data = bundled.load_breast_cancer()
    low, high = np.array(CANCER_RANGES.split(), dtype=np.float64).reshape(30, 2).T
    scaled = np.clip(2.0 * (data.data - low) / (high - low) - 1.0, -1.0, 1.0).astype(np.float32)
    names = tuple(map(str, data.feature_names))
    return _split("breast_cancer", scaled, data.target, classes=2, names=names)


def _split(
    name: str,
    features: np.ndarray,
    labels: np.ndarray,
    *,
    classes: int,
    marks: NDArray[np.uint8] | None = None,
    names: tuple[str, ...] = (),
) -> Dataset:
    from sklearn.model_selection import train_test_split

    train, test = train_test_split(
        np.arange(len(labels)), test_size=0.2, random_state=0, stratify=labels
    )
    everything = Records(
        torch.from_numpy(features), torch.from_numpy(labels.astype(np.int64)), marks=marks
    )
    return Dataset(
        name=name,
        train=everything.take(np.sort(train)),
        test=everything.take(np.sort(test)),
        input_shape=tuple(features.shape[1:]),
        classes=classes,
        features=names,
    )
