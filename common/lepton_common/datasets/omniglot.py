"""Omniglot's two small background sets: which of eight alphabets a drawn character is of."""

import io
import re
import zipfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lepton_common.datasets.images import byte_images
from lepton_common.datasets.made_up_images import made_up_images
from lepton_common.datasets.preparation import PER_RECORD, check_offered
from lepton_common.datasets.records import Dataset, Records
from lepton_common.datasets.source import MADE_UP, Source
from lepton_common.errors import DataInvalid

ALPHABETS = (
    "Balinese",
    "Early_Aramaic",
    "Greek",
    "Japanese_(katakana)",
    "Korean",
    "Latin",
    "Sanskrit",
    "Tagalog",
)
_SOURCE = Source(
    "omniglot-small",
    "https://raw.githubusercontent.com/brendenlake/omniglot/master/python/",
    {
        "images_background_small1.zip": (
            "f38eb80f801274ac2b4dff5b24289016bfaba4a7d5bb50deebf27104ad6cb8a4"
        ),
        "images_background_small2.zip": (
            "3ccaa407515a8778e5d0861875af38b17e418f301ad5bb3b5a6b65d901a41c7f"
        ),
    },
)
_NAME = re.compile(r"[^/]+/([^/]+)/character\d\d/\d{4}_(\d\d)\.png")
_SIDE, _SIDE_THERE = 28, 105
_DRAWERS, _TRAINING_DRAWERS = 20, 16
_MADE_UP_EACH = 4
_DRAWERS_NOTE = (
    "Drawer k of one alphabet is another person than drawer k of the next: a site holds eight "
    "people, and a privacy unit is one of them."
)


def omniglot(root: str | None, prepare: str) -> Dataset:
    """242 characters of 8 alphabets by 20 drawers each, 28x28, ink bright: 3,872 and 968 drawings.

    Natural sites are drawers 1 to 16; drawers 17 to 20 are the test set, so that nobody is in
    both. The privacy unit is the person. (Lake et al., Science 350, 2015; MIT licence.)
    Made up: a pattern for each alphabet, 4 drawings by each drawer; 1.0 can be reached.
    """
    check_offered("omniglot", prepare, PER_RECORD)
    if root == MADE_UP:
        alphabets, drawers = (
            grid.reshape(-1)
            for grid in np.meshgrid(
                np.arange(len(ALPHABETS)), np.repeat(np.arange(_DRAWERS), _MADE_UP_EACH)
            )
        )
        images = made_up_images(alphabets, len(ALPHABETS), (1, _SIDE, _SIDE), seed=13)
    else:
        images, alphabets, drawers = read_drawings(list(_SOURCE.fetch(root).values()))
    everything = byte_images(images, alphabets.astype(np.uint8), prepare)
    known = Records(
        everything.features,
        everything.labels,
        units=alphabets * _DRAWERS + drawers,
        origins=drawers,
        marks=everything.marks,
    )
    return Dataset(
        name="omniglot",
        train=known.take(np.flatnonzero(drawers < _TRAINING_DRAWERS)),
        test=known.take(np.flatnonzero(drawers >= _TRAINING_DRAWERS)),
        input_shape=tuple(everything.features.shape[1:]),
        classes=len(ALPHABETS),
        unit="drawer",
        sites=tuple(f"drawer-{drawer + 1:02}" for drawer in range(_TRAINING_DRAWERS)),
        notes=(_DRAWERS_NOTE,),
    )


def read_drawings(
    archives: list[Path],
) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]:
    """Returns drawings, uint8, [n, 1, 28, 28], their alphabets and their drawers, from 0.

    An alphabet that is in several archives is taken from the first. Each drawing is reduced to 28
    pixels a side by the mean over areas, and inverted.

    Raises:
        DataInvalid: not such archives.
    """
    images: list[NDArray[np.uint8]] = []
    alphabets: list[int] = []
    drawers: list[int] = []
    try:
        for archive in archives:
            done = set(alphabets)
            with zipfile.ZipFile(archive) as opened:
                for name in sorted(opened.namelist()):
                    if (found := _NAME.fullmatch(name)) is None:
                        continue
                    alphabet = ALPHABETS.index(found[1])
                    if alphabet not in done:
                        images.append(_reduced(opened.read(name)))
                        alphabets.append(alphabet)
                        drawers.append(int(found[2]) - 1)
        if not images or not 0 <= min(drawers) <= max(drawers) < _DRAWERS:
            raise ValueError
    except (OSError, ValueError, zipfile.BadZipFile, Image.DecompressionBombError) as error:
        raise DataInvalid(
            f"{archives[0].parent} does not hold Omniglot's archives of drawings, "
            f"{_SIDE_THERE}x{_SIDE_THERE}, in folders by alphabet; fetch them again."
        ) from error
    return np.stack(images)[:, None], np.array(alphabets), np.array(drawers)


def _reduced(png: bytes) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(png), formats=("PNG",)) as image:
        if image.size != (_SIDE_THERE, _SIDE_THERE):
            raise ValueError
        small = image.convert("L").resize((_SIDE, _SIDE), Image.Resampling.BOX)
    return 255 - np.asarray(small, np.uint8)
