"""Reads DICOM files: grey levels by the header's own scale and window, the patient as the unit."""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lepton_common.errors import ConnectorMissing, DataInvalid, FileDamaged, SizeMismatch

if TYPE_CHECKING:
    from pydicom import Dataset as Header

_MOST_PIXELS = 1 << 27
_NO_DICOM = "A file is no whole DICOM file: export it again, or remove it"


def read_dicom(path: Path, shape: tuple[int, ...], *, fit: bool) -> tuple[NDArray[np.float32], str]:
    """Returns an image, float32 from 0 (dark) to 1, shape [1, height, width], and its patient's id.

    Stored values are rescaled by slope and intercept and then by the first window that the header
    names (DICOM PS3.3, C.11.1 and C.11.2.1.2); without one, by all values that its bits can hold.
    MONOCHROME1 is inverted. All of this is by one file alone.

    Args:
        path: the file.
        shape: 1, height and width.
        fit: whether another size is brought to this one, by the mean over areas where it is larger.

    Raises:
        ConnectorMissing: pydicom is not installed.
        FileDamaged: it is no DICOM file, or its pixels are not all there or cannot be unpacked.
        SizeMismatch: it is of another size, in colour, or a series of images.
        DataInvalid: it names no patient.
    """
    try:
        from pydicom import dcmread
    except ImportError:
        raise ConnectorMissing("DICOM files need the extra 'dicom': lepton-fl[dicom].") from None
    _, height, width = shape
    # What pydicom warns of may quote the header, which names the patient.
    with warnings.catch_warnings(action="ignore"):
        try:
            header = dcmread(path)
            size = (int(header.Rows), int(header.Columns))
            kind = (int(header.SamplesPerPixel), str(header.PhotometricInterpretation))
            frames = int(header.get("NumberOfFrames") or 1)
            patient = str(header.get("PatientID") or "").strip()
        # Damaged files make it raise whatever a damaged number leads to.
        except Exception:
            raise FileDamaged(_NO_DICOM) from None
        if kind not in ((1, "MONOCHROME1"), (1, "MONOCHROME2")) or frames != 1:
            raise SizeMismatch("A DICOM file should hold one grey image: export single ones")
        if (size != (height, width) and not fit) or not 0 < size[0] * size[1] <= _MOST_PIXELS:
            raise SizeMismatch(
                f"A DICOM image should be {height} high and {width} wide: export it so, or set "
                "data.source.fit"
            )
        if not patient:
            raise DataInvalid(
                "A DICOM file should name its patient (PatientID), who is the privacy unit: export "
                "it with a pseudonym"
            )
        try:
            grey = _levels(header)
        except Exception:
            raise FileDamaged(
                "A DICOM file's pixels are not all there, or compressed in a way that cannot be "
                "read here: export it uncompressed"
            ) from None
    if kind[1] == "MONOCHROME1":
        grey = 1 - grey
    if grey.shape != (height, width):
        resized = Image.fromarray(grey).resize((width, height), Image.Resampling.BOX)
        grey = np.asarray(resized, np.float32)
    return grey[None], patient


def _levels(header: "Header") -> NDArray[np.float32]:
    """Returns grey levels from 0 to 1, by what a header says of its own pixels."""
    slope = float(header.get("RescaleSlope", 1))
    intercept = float(header.get("RescaleIntercept", 0))
    values = header.pixel_array.astype(np.float64) * slope + intercept
    center, width = _first(header.get("WindowCenter")), _first(header.get("WindowWidth"))
    if center is None or width is None:
        bits, signed = int(header.BitsStored), bool(header.PixelRepresentation)
        low = -(1 << bits - 1) if signed else 0
        ends = sorted((low * slope + intercept, (low + (1 << bits) - 1) * slope + intercept))
        scaled = (values - ends[0]) / (ends[1] - ends[0])
    else:
        scaled = (values - (center - 0.5)) / max(width - 1, 1e-9) + 0.5
    if not np.isfinite(scaled).all():
        raise ValueError
    grey: NDArray[np.float32] = np.clip(scaled, 0, 1).astype(np.float32)
    return grey


def _first(value: object) -> float | None:
    """Returns the first number of a header's value, which may be one or several."""
    if value is None or value == "":
        return None
    several = isinstance(value, list | tuple) or hasattr(value, "insert")
    return float(str(value[0] if several else value))  # type: ignore[index]
