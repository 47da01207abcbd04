"""Reads arrays from NumPy and idx files; nothing is unpickled."""

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lepton_common.datasets.images import read_idx
from lepton_common.errors import FileDamaged, SourceUnreachable


def read_array(named: str, folder: Path) -> NDArray[Any]:
    """Returns an array of numbers.

    Args:
        named: a ``.npy`` or gzipped idx file, or ``archive.npz#name``.
        folder: what relative paths begin at.

    Raises:
        SourceUnreachable: it is not there, or may not be read.
        DataInvalid: it is no such file, has no array of that name, or holds no numbers.
    """
    file_name, _, name = named.partition("#")
    path = folder / file_name
    try:
        with path.open("rb") as file:
            if path.suffix == ".gz":
                return read_idx(path)
            read = np.load(file, allow_pickle=False)
            array = read[name] if name else read
            if not isinstance(array, np.ndarray) or array.dtype.kind not in "biuf":
                raise ValueError
            return array
    except OSError as error:
        raise SourceUnreachable(
            f"Cannot read {path} ({error.strerror or 'damaged'}); correct data.source in "
            "site.yaml, or let the trainer's user read it."
        ) from None
    except (EOFError, ValueError, KeyError, IndexError, zlib.error, zipfile.BadZipFile):
        raise FileDamaged(
            f"{path} is no .npy file of numbers, or as .npz#name no archive with that array; write "
            "it again with numpy.save or numpy.savez."
        ) from None
