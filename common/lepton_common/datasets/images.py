"""Image data sets in their published binary forms: idx (MNIST family) and CIFAR-10 binary.

Prepared by a constant scale, or as scattering coefficients; nothing is learnt from the data.
"""

import gzip
import tarfile
import zlib
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from lepton_common.datasets.made_up_images import made_up_parts
from lepton_common.datasets.preparation import PER_RECORD, check_offered
from lepton_common.datasets.records import Dataset, Records, marks_of
from lepton_common.datasets.scattering import scattering_features
from lepton_common.datasets.source import MADE_UP, Source
from lepton_common.errors import DataInvalid

_MNIST = Source(
    "mnist",
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    {
        "train-images-idx3-ubyte.gz": (
            "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"
        ),
        "train-labels-idx1-ubyte.gz": (
            "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"
        ),
        "t10k-images-idx3-ubyte.gz": (
            "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"
        ),
        "t10k-labels-idx1-ubyte.gz": (
            "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"
        ),
    },
)
_FASHION_MNIST = Source(
    "fashion-mnist",
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    {
        "train-images-idx3-ubyte.gz": (
            "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84"
        ),
        "train-labels-idx1-ubyte.gz": (
            "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845"
        ),
        "t10k-images-idx3-ubyte.gz": (
            "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073"
        ),
        "t10k-labels-idx1-ubyte.gz": (
            "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5"
        ),
    },
)
_CIFAR10 = Source(
    "cifar10",
    "https://www.cs.toronto.edu/~kriz/",
    {
        "cifar-10-binary.tar.gz": (
            "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
        )
    },
)


def mnist(root: str | None, prepare: str) -> Dataset:
    """MNIST: 60,000 and 10,000 grey images 28x28, scaled by fixed public constants.

    Made up: ten patterns; 1.0 can be reached.
    """
    return _idx_dataset("mnist", _MNIST, root, prepare, seed=21)


def fashion_mnist(root: str | None, prepare: str) -> Dataset:
    """Fashion-MNIST: 60,000 and 10,000 grey images 28x28, scaled by fixed public constants.

    Made up: ten patterns, others than those of `mnist`; 1.0 can be reached.
    """
    return _idx_dataset("fashion_mnist", _FASHION_MNIST, root, prepare, seed=22)


def cifar10(root: str | None, prepare: str) -> Dataset:
    """CIFAR-10, binary edition: 50,000 and 10,000 colour images 32x32.

    Made up: ten patterns; 1.0 can be reached.
    """
    check_offered("cifar10", prepare, PER_RECORD)
    if root == MADE_UP:
        train, test = _made_up((3, 32, 32), 23, prepare)
    else:
        archive = _CIFAR10.fetch(root)["cifar-10-binary.tar.gz"]
        train, test = read_cifar_binary(archive, prepare)
    return Dataset("cifar10", train, test, input_shape=_shape(train), classes=10)


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Returns the array in a gzipped idx file of unsigned bytes.

    Raises:
        DataInvalid: not such a file.
    """
    try:
        data = gzip.decompress(path.read_bytes())
        zero, kind, rank = int.from_bytes(data[:2]), data[2], data[3]
        shape = tuple(int.from_bytes(data[4 + 4 * i : 8 + 4 * i]) for i in range(rank))
        if zero != 0 or kind != 0x08:
            raise ValueError
        return np.frombuffer(data, np.uint8, offset=4 + 4 * rank).reshape(shape)
    except (OSError, EOFError, ValueError, IndexError, zlib.error) as error:
        raise DataInvalid(
            f"{path} is not a gzipped idx file of unsigned bytes; fetch it again."
        ) from error


def read_cifar_binary(archive: Path, prepare: str) -> tuple[Records, Records]:
    """Returns the training and test records in a CIFAR-10 binary archive, read in place.

    Args:
        archive: the published file.
        prepare: ``public_ranges`` or ``scattering``.

    Raises:
        DataInvalid: a batch is missing or has no whole number of records.
    """
    try:
        with tarfile.open(archive) as tar:
            batches = {
                Path(member.name).name: file.read()
                for member in tar
                if member.name.endswith(".bin") and (file := tar.extractfile(member)) is not None
            }
        train = b"".join(batches[f"data_batch_{index}.bin"] for index in range(1, 6))
        test = batches["test_batch.bin"]
        rows = [np.frombuffer(part, np.uint8).reshape(-1, 3073) for part in (train, test)]
    except (tarfile.TarError, OSError, EOFError, KeyError, ValueError, zlib.error) as error:
        raise DataInvalid(
            f"{archive} is not the CIFAR-10 binary archive (five training batches and a test "
            "batch of 3,073-byte records); fetch it again."
        ) from error
    first, last = (
        byte_images(part[:, 1:].reshape(-1, 3, 32, 32), part[:, 0], prepare) for part in rows
    )
    return first, last


def _idx_dataset(name: str, source: Source, root: str | None, prepare: str, seed: int) -> Dataset:
    check_offered(name, prepare, PER_RECORD)
    if root == MADE_UP:
        train, test = _made_up((1, 28, 28), seed, prepare)
    else:
        paths = source.fetch(root)
        train, test = (
            byte_images(
                read_idx(paths[f"{part}-images-idx3-ubyte.gz"])[:, None],
                read_idx(paths[f"{part}-labels-idx1-ubyte.gz"]),
                prepare,
            )
            for part in ("train", "t10k")
        )
    return Dataset(name, train, test, input_shape=_shape(train), classes=10)


def _made_up(shape: tuple[int, int, int], seed: int, prepare: str) -> tuple[Records, Records]:
    parts = made_up_parts(np.arange(10), shape, seed)
    return byte_images(*parts["train"], prepare), byte_images(*parts["test"], prepare)


def _shape(records: Records) -> tuple[int, ...]:
    return tuple(records.features.shape[1:])


def byte_images(images: NDArray[np.uint8], labels: NDArray[np.uint8], prepare: str) -> Records:
    """Returns records of images, [n, channels, height, width], scaled to -1 to 1 or scattered."""
    if prepare == "scattering":
        features = scattering_features(images.astype(np.float32) / np.float32(255))
    else:
        features = torch.from_numpy(images.copy()).float().div_(127.5).sub_(1.0)
    return Records(
        features, torch.from_numpy(labels.astype(np.int64)), marks=marks_of(images, labels)
    )
