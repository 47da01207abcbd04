"""Reads labelled texts, or texts whose next characters are to be told."""

from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from lepton_client.connectors.class_folders import Faults
from lepton_common.errors import DataInvalid, EmptySite, FileDamaged, SourceUnreachable


def read_labelled(path: Path, classes: Sequence[str]) -> list[tuple[int, str]]:
    """Returns label and text of each line; empty lines do not count.

    Args:
        path: a file of lines ``label<TAB>text``, or a folder with a file ``CLASS.txt`` for each
            class.
        classes: their names, in the order of labels.

    Raises:
        SourceUnreachable: it cannot be read.
        FileDamaged: it is not UTF-8.
        DataInvalid: lines have no tab or another label, or a file belongs to no class.
        EmptySite: there is no text.
    """
    faults, found = Faults(), []
    label_of = {name: label for label, name in enumerate(classes)}
    if path.is_dir():
        for file in sorted(path.iterdir()):
            if file.name.startswith("."):
                continue
            label = label_of.get(file.stem)
            if label is None or file.suffix != ".txt":
                faults.add(DataInvalid, "A file should be CLASS.txt, of one of the classes", file)
                continue
            found += [(label, text) for text in _text(file).splitlines() if text.strip()]
    else:
        for line in filter(str.strip, _text(path).splitlines()):
            name, tab, text = line.partition("\t")
            if not tab or name not in label_of:
                rule = "A line should be one of the classes, a tab and a text: correct it"
                faults.add(DataInvalid, rule, path)
                continue
            found.append((label_of[name], text))
    faults.check()
    if not found:
        _nothing(path)
    return found


def read_passages(path: Path) -> list[str]:
    """Returns the texts of a file, which has an empty line between them.

    Raises:
        SourceUnreachable, FileDamaged, EmptySite: as `read_labelled`.
    """
    passages = [text for part in _text(path).split("\n\n") if (text := part.strip("\n"))]
    if not passages:
        _nothing(path)
    return passages


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise SourceUnreachable(
            f"Cannot read {path} ({error.strerror}); correct data.source.path in site.yaml, or let "
            "the trainer's user read it."
        ) from None
    except UnicodeDecodeError:
        raise FileDamaged(f"{path} is not text in UTF-8; convert it.") from None


def _nothing(path: Path) -> NoReturn:
    raise EmptySite(f"{path} holds no text; correct data.source.path.")
