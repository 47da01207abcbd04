"""A site's own images, texts, sounds or arrays as records of the form a data set declares."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lepton_client.connectors import images, sounds
from lepton_client.connectors.arrays import read_array
from lepton_client.connectors.class_folders import (
    Faults,
    check_classes,
    check_several,
    files_by_class,
)
from lepton_client.connectors.dicom import read_dicom
from lepton_client.connectors.file_sources import (
    ArraySource,
    DicomSource,
    FileSource,
    ImageSource,
    TextSource,
    WavSource,
)
from lepton_client.connectors.texts import read_labelled, read_passages
from lepton_common.datasets.catalog import load_dataset
from lepton_common.datasets.records import Dataset, Records, check
from lepton_common.datasets.shakespeare import windows
from lepton_common.datasets.source import MADE_UP
from lepton_common.datasets.tables import unit_number
from lepton_common.datasets.tokens import word_tokens
from lepton_common.errors import DataInvalid, EmptySite, SettingsError, SizeMismatch

_Read = Callable[[Path], tuple[NDArray[np.float32], str | None]]


def declared(name: str) -> Dataset:
    """Returns what is public of a data set, as its made-up form has it; no record is in it.

    Raises:
        UnknownName: no such data set.
        DataMissing: it has no made-up form.
    """
    dataset = load_dataset(name, MADE_UP, "public_ranges")
    nothing = np.empty(0, np.int64)
    return replace(dataset, train=dataset.train.take(nothing), test=dataset.test.take(nothing))


def read_files(source: FileSource, dataset: Dataset, folder: Path) -> Records:
    """Returns the records of a site's own files, checked.

    Args:
        source: where they are.
        dataset: what their form should be; of its records none is looked at.
        folder: the site's.

    Raises:
        SettingsError: the source does not fit the data set.
        ConnectorMissing: a package that reads it is not installed.
        SourceUnreachable: a file or folder cannot be read.
        FileDamaged: a file is not of its kind.
        SizeMismatch: something has another size than the data set's.
        OneClassOnly: all records are of one class.
        EmptySite: there is no record.
        DataInvalid: anything else is not as declared.
    """
    if isinstance(source, ArraySource):
        records = _arrays(source, dataset, folder)
    elif isinstance(source, TextSource):
        records = _texts(source, dataset, folder)
    else:
        records = _class_folders(source, dataset, folder)
    if dataset.label_kind == "class":
        check_several(records.labels.tolist(), allow_one_class=source.allow_one_class)
    return check(records, dataset)


def _class_folders(
    source: ImageSource | WavSource | DicomSource, dataset: Dataset, folder: Path
) -> Records:
    check_classes(source.classes, dataset)
    read, endings = _reader(source, dataset)
    by_folder = not isinstance(source, DicomSource) and source.units == "folder"
    root = folder / source.path
    faults, features, labels, units = Faults(), [], [], []
    for found in files_by_class(root, source.classes, endings, unit_folders=by_folder):
        try:
            values, unit = read(found.path)
        except DataInvalid as error:
            faults.add(type(error), str(error), found.path)
            continue
        features.append(values)
        labels.append(found.label)
        units.append(found.unit if unit is None else unit)
    faults.check()
    known = [unit_number(unit) for unit in units if unit is not None]
    return Records(
        torch.from_numpy(np.stack(features)),
        torch.tensor(labels),
        units=np.array(known, np.int64) if known else None,
    )


def _reader(
    source: ImageSource | WavSource | DicomSource, dataset: Dataset
) -> tuple[_Read, tuple[str, ...]]:
    """Returns what reads a file's features and the unit it names itself, and endings of files."""
    shape, fit = dataset.input_shape, source.fit
    wanted = {"images": (3, (1, 3)), "dicom": (3, (1,)), "wav": (1, None)}[source.kind]
    if len(shape) != wanted[0] or (wanted[1] and shape[0] not in wanted[1]):
        raise SettingsError(
            f"data.source.kind={source.kind} does not fit '{dataset.name}', whose records have "
            f"shape {shape}; choose the kind that does."
        )
    if isinstance(source, WavSource):
        rate_hz = source.rate_hz
        return lambda path: (
            sounds.read_wav(path, shape[0], rate_hz, fit=fit),
            None,
        ), sounds.ENDINGS
    if isinstance(source, ImageSource):
        return lambda path: (
            _scaled(images.read_image(path, shape, fit=fit)),
            None,
        ), images.ENDINGS

    def dicom(path: Path) -> tuple[NDArray[np.float32], str]:
        levels, patient = read_dicom(path, shape, fit=fit)
        return 2 * levels - 1, patient

    return dicom, ()


def _texts(source: TextSource, dataset: Dataset, folder: Path) -> Records:
    path = folder / source.path
    if len(dataset.input_shape) != 1:
        raise SettingsError(
            f"data.source.kind=text does not fit '{dataset.name}', whose records have shape "
            f"{dataset.input_shape}; choose the kind that does."
        )
    if dataset.label_kind == "tokens":
        passages = read_passages(path)
        parts = [windows(passage) for passage in passages]
        # By what it says and not by its place, which others take once texts come or go.
        units = [unit_number(passage) for passage in passages]
        return Records(
            torch.from_numpy(np.concatenate([before for before, _ in parts])).float(),
            torch.from_numpy(np.concatenate([labels for _, labels in parts])),
            units=np.repeat(np.array(units, np.int64), [len(labels) for _, labels in parts]),
        )
    check_classes(source.classes, dataset)
    lines = read_labelled(path, source.classes)
    tokens = [word_tokens(text, dataset.input_shape[0]) for _, text in lines]
    return Records(torch.from_numpy(np.stack(tokens)), torch.tensor([label for label, _ in lines]))


def _arrays(source: ArraySource, dataset: Dataset, folder: Path) -> Records:
    features, labels = (read_array(named, folder) for named in (source.features, source.labels))
    units = read_array(source.units, folder) if source.units is not None else None
    if features.ndim and not len(features):
        raise EmptySite("The array of features holds no record; correct data.source.features.")
    if features.shape[1:] == dataset.input_shape[1:] and dataset.input_shape[0] == 1:
        features = features[:, None]  # grey images are often kept without their one channel
    if features.shape[1:] != dataset.input_shape:
        raise SizeMismatch(
            f"Features should have shape [n, {', '.join(map(str, dataset.input_shape))}]; write "
            "the array so, channels first."
        )
    if len(labels) != len(features) or (units is not None and units.shape != labels.shape[:1]):
        raise SizeMismatch("Features, labels and units should be of as many records each.")
    whole = dataset.label_kind in ("class", "tokens")
    if (whole and labels.dtype.kind == "f") or (units is not None and units.dtype.kind == "f"):
        raise DataInvalid("Labels of classes, and units, should be whole numbers: write them so.")
    return Records(
        torch.from_numpy(_scaled(features)),
        torch.from_numpy(labels.astype(np.int64 if whole else np.float32)),
        units=None if units is None else units.astype(np.int64),
    )


def _scaled(values: NDArray[Any]) -> NDArray[np.float32]:
    """Returns bytes scaled to -1 to 1, as data sets have them; other numbers as they are."""
    with np.errstate(over="ignore"):  # what is too large becomes infinite, which `check` refuses
        scaled = values.astype(np.float32)
    return scaled / np.float32(127.5) - np.float32(1) if values.dtype == np.uint8 else scaled
