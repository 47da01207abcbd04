"""Reads the wheel of a model package, as far as it is nothing but Python source to be reviewed.

Nothing of it is imported, unpacked or run here. What is not plain is refused, not cleaned.
"""

import ast
import hashlib
import io
import re
import stat
import zipfile
from dataclasses import dataclass
from importlib.metadata import Distribution, PackageNotFoundError, version
from pathlib import Path
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename
from packaging.version import InvalidVersion, Version

from lepton_common.errors import (
    PackageEntryPoints,
    PackageNeedsMore,
    PackageNotPure,
    PackageTooLarge,
    PackageUnreadable,
    PackageUnsafe,
)
from lepton_common.models.packaged import GROUP, MODEL, PACKAGE

_MOST_BYTES, _MOST_FILES = 4 << 20, 400
_SOURCE = re.compile(r"[A-Za-z_]\w*(/[A-Za-z_]\w*)*\.py", re.ASCII)
_ABOUT = re.compile(
    r"METADATA|WHEEL|RECORD|entry_points\.txt|top_level\.txt|(licenses/)?(LICEN[CS]E|NOTICE)[\w.-]*",
    re.ASCII,
)
_BUILDER = re.compile(r"([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*):[A-Za-z_]\w*", re.ASCII)


@dataclass(frozen=True)
class ModelWheel:
    """What a model package holds.

    Attributes:
        package: its import name.
        version: its version.
        sha256: of the wheel.
        summary: its own one sentence.
        files: source by path, such as ``kidney/unet.py``.
        builders: ``module:function`` by the name of each model.
    """

    package: str
    version: str
    sha256: str
    summary: str
    files: dict[str, str]
    builders: dict[str, str]


def read_model_wheel(path: Path) -> ModelWheel:
    """Reads a wheel.

    Raises:
        PackageUnreadable: it is no wheel.
        PackageTooLarge: it holds more than anyone reviews.
        PackageUnsafe: a path leads out of the package, or is a link or none at all, or a text
            holds characters that a screen does not show.
        PackageNotPure: it holds something else than Python source.
        PackageEntryPoints: its entry points are not models, or lead elsewhere.
        PackageNeedsMore: it needs what is not installed here.
    """
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise PackageTooLarge(f"{path.name} has more than {_MOST_BYTES >> 20} MiB.")
        data = path.read_bytes()
        name, release, _, tags = parse_wheel_filename(path.name)
    except OSError as error:
        raise PackageUnreadable(f"Cannot read {path}: {error.strerror}.") from None
    except InvalidWheelFilename:
        raise PackageUnreadable(f"{path.name} is not the name of a wheel.") from None
    if {(tag.abi, tag.platform) for tag in tags} != {("none", "any")}:
        raise PackageNotPure(f"{path.name} is for certain machines; build a wheel for all: -any.")
    package, about = name.replace("-", "_"), "-".join(path.name.split("-")[:2]) + ".dist-info/"
    if not re.fullmatch(PACKAGE, package):
        raise PackageUnreadable(f"{name} is no name of a package that Python can import.")
    texts = _texts(data, package, about)
    described = _Described({p.removeprefix(about): t for p, t in texts.items()})
    files = {path: text for path, text in texts.items() if not path.startswith(about)}
    _check(described, package, release, files)
    return ModelWheel(
        package=package,
        version=str(release),
        sha256=hashlib.sha256(data).hexdigest(),
        summary=_shown(described.said("Summary")),
        files=files,
        builders=_builders(described, package, files),
    )


class _Described(Distribution):
    """A package's metadata, out of texts that were read already."""

    def __init__(self, texts: dict[str, str]) -> None:
        self._texts = texts

    def read_text(self, filename: str) -> str | None:
        return self._texts.get(filename)

    def locate_file(self, path: object) -> Any:  # noqa: ANN401
        raise NotImplementedError(path)  # nothing is unpacked

    def said(self, field: str) -> str:
        return str(self.metadata[field]) if field in self.metadata else ""


def _shown(text: str) -> str:
    return text if text.isprintable() else ascii(text)


def _texts(data: bytes, package: str, about: str) -> dict[str, str]:
    """Returns all that an archive holds, as text; nothing is read before it is bounded."""
    texts: dict[str, str] = {}
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = archive.infolist()
            if len(entries) > _MOST_FILES or sum(e.file_size for e in entries) > _MOST_BYTES:
                raise PackageTooLarge(
                    f"The wheel unpacks to more than {_MOST_FILES} files, or "
                    f"{_MOST_BYTES >> 20} MiB."
                )
            for entry in entries:
                _check_place(entry, package, about)
                if entry.filename.lower() in map(str.lower, texts):
                    raise PackageUnsafe(f"'{entry.filename}' is in the wheel twice.")
                texts[entry.filename] = _text(entry.filename, archive.read(entry))
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError) as error:
        # Of a damaged, encrypted or unusual archive, or one that claims other sizes than it has.
        raise PackageUnreadable(f"This is no wheel, or it is damaged ({error}).") from None
    return texts


def _check_place(entry: zipfile.ZipInfo, package: str, about: str) -> None:
    name, mode = entry.filename, entry.external_attr >> 16
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG) or entry.is_dir():
        raise PackageUnsafe(f"{name!a} in the wheel is a link, a folder or no plain file.")
    if not name.isascii() or name.startswith("/") or {"", ".", ".."} & set(name.split("/")):
        raise PackageUnsafe(f"{name!a} in the wheel is no path within it.")
    if name.startswith(about):
        if not _ABOUT.fullmatch(name.removeprefix(about)):
            raise PackageNotPure(f"'{name}' in the wheel is nothing that a model needs.")
    elif name.endswith(".pth") or ".data/" in name:
        raise PackageNotPure(f"'{name}' in the wheel would change the installation around it.")
    elif not name.startswith(f"{package}/"):
        raise PackageUnsafe(f"'{name}' in the wheel lies outside its package {package}.")
    elif not _SOURCE.fullmatch(name):
        raise PackageNotPure(f"'{name}' in the wheel is no Python source; leave it out.")


def _text(name: str, data: bytes) -> str:
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise PackageNotPure(f"'{name}' in the wheel is no text in UTF-8.") from None
    shown = text.replace("\r\n", "").replace("\n", "").replace("\t", "")
    if name.endswith(".py") and not shown.isprintable():
        # Whoever reviews it would see another program than Python does.
        raise PackageUnsafe(f"'{name}' in the wheel holds characters that a screen does not show.")
    return text


def _check(described: _Described, package: str, release: Version, files: dict[str, str]) -> None:
    name = canonicalize_name(described.said("Name")).replace("-", "_")
    try:
        same = (name, Version(described.said("Version"))) == (package, release)
    except InvalidVersion:
        same = False
    if not same:
        raise PackageUnreadable(
            f"The wheel's metadata are not of {package} {release}, as its file's name says."
        )
    if f"{package}/__init__.py" not in files:
        raise PackageUnreadable(f"The wheel has no package {package} with an __init__.py.")
    for path, text in files.items():
        try:
            ast.parse(text, path)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            raise PackageNotPure(f"'{path}' in the wheel is no Python source.") from None
    for need in described.requires or []:
        if not _is_met(need):
            raise PackageNeedsMore(
                f"The package needs {need!a}, which is not installed here; a model may need what "
                "Lepton installs, and nothing else."
            )


def _is_met(text: str) -> bool:
    try:
        need = Requirement(text)
        if need.marker is not None and not need.marker.evaluate({"extra": ""}):
            return True
        return need.url is None and need.specifier.contains(version(need.name), prereleases=True)
    except (InvalidRequirement, PackageNotFoundError):
        return False


def _builders(described: _Described, package: str, files: dict[str, str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for entry in described.entry_points:
        if entry.group != GROUP:
            raise PackageEntryPoints(
                f"The wheel has entry points in {entry.group!a}; only {GROUP}."
            )
        builder = _BUILDER.fullmatch(entry.value)
        path = builder[1].replace(".", "/") if builder else ""
        if (
            not {f"{path}.py", f"{path}/__init__.py"} & files.keys()
            or not re.fullmatch(MODEL, entry.name)
            or entry.name in found
        ):
            raise PackageEntryPoints(
                f"The entry point {entry.name!a} is given twice, or is no MODEL = "
                f"{package}.MODULE:FUNCTION of this wheel."
            )
        found[entry.name] = entry.value
    if not found:
        raise PackageEntryPoints(f"The wheel has no entry point in {GROUP}, so it has no model.")
    return found
