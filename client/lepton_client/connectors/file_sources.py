"""What a site file may say about where the site's images, texts, sounds and arrays are."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from lepton_common.strict import Count, record

Classes = Annotated[list[str], Field(min_length=1, max_length=1 << 16)]


@record
class _Folders:
    """Files in a folder for each class.

    Attributes:
        path: the folder that holds them; absolute, or in the site's folder.
        classes: names of the classes' folders, in the order of the data set's labels.
        units: what of a class's folder is a privacy unit: each ``file``, or each ``folder`` in it
            with all its files, named by the unit's id: the same id is the same unit anywhere.
        fit: whether what has another size is made to fit: images reduced or enlarged, sounds cut
            off or filled up with silence; otherwise it is refused.
        allow_one_class: whether records that are all of one class are trained on.
    """

    path: str
    classes: Classes
    units: Literal["file", "folder"] = "file"
    fit: bool = False
    allow_one_class: bool = False


@record
class ImageSource(_Folders):
    """PNG, JPEG, BMP or TIFF files, grey or in colour as the data set's images are."""

    kind: Literal["images"]


@record
class WavSource(_Folders):
    """WAV files of uncompressed samples; several channels are averaged.

    Attributes:
        rate_hz: samples a second that each must have, as the data set has.
    """

    kind: Literal["wav"]
    rate_hz: Count


@record
class DicomSource:
    """DICOM files of single grey images in a folder for each class.

    The privacy unit is the patient, by the header's id.

    Attributes:
        path: the folder that holds them; absolute, or in the site's folder.
        classes: names of the classes' folders, in the order of the data set's labels.
        fit: whether images of another size are reduced or enlarged; otherwise they are refused.
        allow_one_class: whether records that are all of one class are trained on.
    """

    kind: Literal["dicom"]
    path: str
    classes: Classes
    fit: bool = False
    allow_one_class: bool = False


@record
class TextSource:
    """Texts in UTF-8.

    Attributes:
        path: a file of lines ``label<TAB>text``, or a folder with a file ``CLASS.txt`` for each
            class, a text a line; or, where the next character is to be told, a file of texts with
            an empty line between them, each a privacy unit, equal ones together. Absolute, or in
            the site's folder.
        classes: names of the classes, in the order of the data set's labels; none for characters.
        allow_one_class: whether records that are all of one class are trained on.
    """

    kind: Literal["text"]
    path: str
    classes: list[str] = Field(default_factory=list)
    allow_one_class: bool = False


@record
class ArraySource:
    """Arrays of records, in ``.npy`` or gzipped idx files, or as ``archive.npz#name``.

    Attributes:
        features: shape [n, *the data set's shape]; unsigned bytes are scaled to -1 to 1, other
            numbers are taken as they are. Absolute, or in the site's folder, as all three.
        labels: whole numbers for classes, shape [n].
        units: whole numbers, shape [n]: the privacy unit of each record; None: each is one.
        allow_one_class: whether records that are all of one class are trained on.
    """

    kind: Literal["arrays"]
    features: str
    labels: str
    units: str | None = None
    allow_one_class: bool = False


FileSource = Annotated[
    ImageSource | WavSource | DicomSource | TextSource | ArraySource, Field(discriminator="kind")
]
FILES = (ImageSource, WavSource, DicomSource, TextSource, ArraySource)
"""The same, to ask for with `isinstance`."""


def paths_of(source: FileSource, folder: Path) -> list[Path]:
    """Returns the files and folders that reading a source takes, whether or not they are there."""
    if not isinstance(source, ArraySource):
        return [folder / source.path]
    named = [source.features, source.labels, source.units]
    return [folder / path.partition("#")[0] for path in named if path is not None]
