"""Reads image files as arrays of the size and channels that a data set declares."""

import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from lepton_common.errors import FileDamaged, SizeMismatch

ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
_FORMATS = ("PNG", "JPEG", "BMP", "TIFF")
_MODES = {1: "L", 3: "RGB"}
_GREY = {"1", "L", "LA"}

Image.MAX_IMAGE_PIXELS = 1 << 27  # of a file that claims more, nothing is unpacked


def read_image(path: Path, shape: tuple[int, ...], *, fit: bool) -> NDArray[np.uint8]:
    """Returns an image, uint8, channels first.

    Args:
        path: the file.
        shape: channels (1 or 3), height and width.
        fit: whether another size is brought to this one, by the mean over areas where it is larger.

    Raises:
        FileDamaged: it cannot be read as an image.
        SizeMismatch: its size is another, or it has colours where it should not, or none where it
            should. Images of more than 8 bits a channel are refused so: what their range is, they
            do not say.
    """
    channels, height, width = shape
    try:
        # What Pillow warns of may quote the file.
        with warnings.catch_warnings(action="ignore"), Image.open(path, formats=_FORMATS) as opened:
            opened.load()
            image: Image.Image = opened.convert("RGB") if opened.mode == "P" else opened.copy()
    except (
        OSError,
        ValueError,
        SyntaxError,
        UnidentifiedImageError,
        Image.DecompressionBombError,
    ):
        raise FileDamaged("A file is no whole image: export it again, or remove it") from None
    if image.mode not in (_GREY if channels == 1 else {"RGB", "RGBA"}):
        kind = "grey" if channels == 1 else "in colour"
        raise SizeMismatch(f"An image should be {kind}, with 8 bits a channel: convert it")
    image = image.convert(_MODES[channels])
    if image.size != (width, height):
        if not fit:
            raise SizeMismatch(
                f"An image should be {height} high and {width} wide: export it so, or set "
                "data.source.fit"
            )
        image = image.resize((width, height), Image.Resampling.BOX)
    pixels = np.asarray(image, np.uint8)
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)
