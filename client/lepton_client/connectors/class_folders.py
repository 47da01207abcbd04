"""Files in a folder for each class, and everything that is wrong with them in one error."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from lepton_common.datasets.records import Dataset
from lepton_common.errors import (
    DataInvalid,
    EmptySite,
    OneClassOnly,
    SettingsError,
    SourceUnreachable,
)


class Found(NamedTuple):
    """A file, its class, and the folder that names its privacy unit, if any does."""

    path: Path
    label: int
    unit: str | None


class Faults:
    """Gathers what is wrong with files, by rule, until all were read.

    The error names a file, as its text stays at the site: only the error's name leaves it. It
    quotes nothing that stands in a file.
    """

    def __init__(self) -> None:
        self._found: dict[tuple[type[DataInvalid], str], list[Path]] = {}

    def add(self, kind: type[DataInvalid], rule: str, path: Path) -> None:
        """Notes a file that breaks a rule: one sentence that says what to do."""
        self._found.setdefault((kind, rule), []).append(path)

    def check(self) -> None:
        """Raises what was found, all of it, as the first kind of error.

        Raises:
            DataInvalid: of the kind that was noted first.
        """
        if not self._found:
            return
        said = [
            f"{rule} (files: {len(paths)}, the first of them {paths[0]})"
            for (_, rule), paths in self._found.items()
        ]
        kind = next(iter(self._found))[0]
        raise kind(". ".join(said) + ".")


def files_by_class(
    root: Path, classes: Sequence[str], endings: Sequence[str], *, unit_folders: bool
) -> list[Found]:
    """Returns all files, in the order of their paths; hidden ones do not count.

    Args:
        root: holds a folder for each class.
        classes: their names, in the order of labels.
        endings: of files, in small letters; none: any.
        unit_folders: whether each class's folder holds a folder for each privacy unit.

    Raises:
        SourceUnreachable: the folder cannot be read.
        DataInvalid: something else stands in it.
        EmptySite: there is no file.
    """
    faults, found = Faults(), []
    label_of = {name: label for label, name in enumerate(classes)}
    for folder in _inside(root):
        label = label_of.get(folder.name)
        if label is None or not folder.is_dir():
            rule = "What is no class's folder should not be there: move it, or name its class"
            faults.add(DataInvalid, rule, folder)
            continue
        groups = _inside(folder) if unit_folders else [folder]
        for group in groups:
            if not group.is_dir():
                rule = "A file should be in the folder of its privacy unit: move it there"
                faults.add(DataInvalid, rule, group)
                continue
            for path in _inside(group):
                if path.is_dir() or (endings and path.suffix.lower() not in endings):
                    rule = f"Only files {', '.join(endings)} should be in a class's folder"
                    faults.add(DataInvalid, rule, path)
                    continue
                found.append(Found(path, label, group.name if unit_folders else None))
    faults.check()
    if not found:
        raise EmptySite(f"{root} holds no file in a class's folder; correct data.source.path.")
    return found


def check_classes(classes: Sequence[str], dataset: Dataset) -> None:
    """Checks that a site names as many classes as the data set has.

    Raises:
        SettingsError: it does not.
    """
    if len(set(classes)) != len(classes) or len(classes) != dataset.classes:
        raise SettingsError(
            f"data.source.classes should name the {dataset.classes} classes of '{dataset.name}', "
            f"each once, in the order of its labels, not {len(classes)}."
        )


def check_several(labels: Sequence[int], *, allow_one_class: bool) -> None:
    """Checks that records are of more than one class.

    Raises:
        OneClassOnly: they are not.
    """
    if len(set(labels)) < 2 and not allow_one_class:
        raise OneClassOnly(
            "All records are of one class; see that data.source leads to all of them and that "
            "labels are right, or set data.source.allow_one_class."
        )


def _inside(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise SourceUnreachable(
            f"Cannot read the folder {folder} ({error.strerror}); correct data.source.path in "
            "site.yaml, or let the trainer's user read it."
        ) from None
