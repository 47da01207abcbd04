"""Image data sets in NumPy archives: PneumoniaMNIST, and a part of CIFAR-10."""

import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lepton_common.datasets.images import byte_images
from lepton_common.datasets.made_up_images import made_up_parts
from lepton_common.datasets.preparation import PER_RECORD, check_offered
from lepton_common.datasets.records import Dataset
from lepton_common.datasets.source import MADE_UP, Source
from lepton_common.errors import DataInvalid

_PNEUMONIA = Source(
    "pneumoniamnist",
    None,
    {"pneumoniamnist-28.npz": ("8adc2319716dd06a410ac2835561f421ce67c21da9d082d4fbf9008e35f2e3b1")},
)
_CIFAR10_SUBSET = Source(
    "cifar10-subset",
    None,
    {"cifar10-20k-5k.npz": "b6081ed9d2cd991c475b63e4314d29839923b757f360dc31ff832a1d3dd39dad"},
)
_ONE_HOSPITAL = (
    "The files name no patients, of whom some have several images: each image counts as a unit."
)


def pneumoniamnist(root: str | None, prepare: str) -> Dataset:
    """PneumoniaMNIST: 4,708 and 624 chest X-rays, 28x28; 0 normal, 1 pneumonia.

    The 524 images that are published for choosing settings are left for that. One hospital, so
    no natural sites. (Yang et al.: MedMNIST v2, Scientific Data 10, 2023; CC BY 4.0.)
    Made up: two patterns, 3 of 4 images of class 1; 1.0 can be reached.
    """
    check_offered("pneumoniamnist", prepare, PER_RECORD)
    if root == MADE_UP:
        parts = made_up_parts(np.array([0, 1, 1, 1]), (1, 28, 28), seed=11)
    else:
        path = _PNEUMONIA.fetch(root)["pneumoniamnist-28.npz"]
        arrays = read_npz(path, ("train_images", "train_labels", "test_images", "test_labels"))
        parts = {
            part: (arrays[f"{part}_images"][:, None], arrays[f"{part}_labels"].reshape(-1))
            for part in ("train", "test")
        }
    return _dataset("pneumoniamnist", parts, 2, prepare, notes=(_ONE_HOSPITAL,))


def cifar10_subset(root: str | None, prepare: str) -> Dataset:
    """A part of CIFAR-10, as many of each class: 20,000 and 5,000 colour images, 32x32.

    Training images are of the published training set, test images of the published test set.
    Made up: ten patterns; 1.0 can be reached.
    """
    check_offered("cifar10_subset", prepare, PER_RECORD)
    if root == MADE_UP:
        parts = made_up_parts(np.arange(10), (3, 32, 32), seed=12)
    else:
        path = _CIFAR10_SUBSET.fetch(root)["cifar10-20k-5k.npz"]
        arrays = read_npz(path, ("x_train", "y_train", "x_test", "y_test"))
        parts = {
            part: (arrays[f"x_{part}"].transpose(0, 3, 1, 2), arrays[f"y_{part}"])
            for part in ("train", "test")
        }
    return _dataset("cifar10_subset", parts, 10, prepare)


def read_npz(path: Path, names: tuple[str, ...]) -> dict[str, NDArray[np.uint8]]:
    """Returns the named arrays of a NumPy archive of unsigned bytes; nothing is unpickled.

    Raises:
        DataInvalid: not such a file, or an array is missing or of another type.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in names}
        if any(array.dtype != np.uint8 for array in arrays.values()):
            raise ValueError
    except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise DataInvalid(
            f"{path} is not a NumPy archive with {', '.join(names)} as unsigned bytes; fetch it "
            "again."
        ) from error
    return arrays


_Part = tuple[NDArray[np.uint8], NDArray[np.uint8]]


def _dataset(
    name: str,
    parts: Mapping[str, _Part],
    classes: int,
    prepare: str,
    notes: tuple[str, ...] = (),
) -> Dataset:
    train, test = (byte_images(*parts[part], prepare) for part in ("train", "test"))
    return Dataset(name, train, test, tuple(train.features.shape[1:]), classes, notes=notes)
