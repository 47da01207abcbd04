"""Models from packages: which one a name means, and who may build it in this process.

In a run a model from a package is called ``wheel.PACKAGE.MODEL.SHA256``: the digest is the
wheel's, so whoever signs, approves or compares the name speaks of these very bytes.
"""

import json
import re
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, NamedTuple

from lepton_common.errors import SettingsError, UnknownName
from lepton_common.names import unknown

if TYPE_CHECKING:
    from torch import nn

GROUP, PREFIX = "lepton.models", "wheel."
PACKAGE, MODEL = r"[a-z][a-z0-9_]{0,62}", r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}"
_NAME = re.compile(rf"wheel\.({PACKAGE})\.({MODEL})\.([0-9a-f]{{64}})")
Build = Callable[[tuple[int, ...], int], "nn.Module"]


class PackagedModel(NamedTuple):
    """What the name of a model from a package says.

    Attributes:
        package: its import name.
        model: name of the entry point.
        sha256: of the wheel.
    """

    package: str
    model: str
    sha256: str

    @property
    def name(self) -> str:
        """What a run calls it."""
        return f"{PREFIX}{self.package}.{self.model}.{self.sha256}"


def packaged(name: str) -> PackagedModel | None:
    """Returns what a model's name says, where it is one from a package."""
    found = _NAME.fullmatch(name)
    return PackagedModel(*found.groups()) if found else None


def fault_in(name: str) -> str | None:
    """Returns what is wrong with a name that begins with ``wheel.``; None if it can be read."""
    if packaged(name):
        return None
    return f"'{name[:80]}' is no wheel.PACKAGE.MODEL.SHA256; say model=wheel wheel=PACKAGE.MODEL."


def any_version(name: str) -> str:
    """Returns a model's name without the digest of a wheel: what a policy may call it."""
    return name.rpartition(".")[0] if packaged(name) else name


def named_here(short: str) -> str:
    """Returns the whole name of a model that is installed here.

    Args:
        short: ``PACKAGE.MODEL``.

    Raises:
        UnknownName: no installed package has it.
        SettingsError: it was not installed from a wheel, so that nobody knows its digest.
    """
    entries = {f"{_package(entry)}.{entry.name}": entry for entry in entry_points(group=GROUP)}
    if short not in entries:
        if not entries:
            raise UnknownName(
                f"No package with models is installed here: install that of '{short}' from its "
                "wheel by pip, or choose a model of ours."
            )
        raise UnknownName(unknown("model of a package", short, entries))
    package, _, model = short.partition(".")
    return PackagedModel(package, model, _digest(entries[short])).name


def build_of(name: str) -> Build:
    """Returns what builds a model from a package in this process.

    Raises:
        UnknownName, SettingsError: no package here has it, or of another wheel.
        LeptonError: what `find_by` was given refuses it.
    """
    found = packaged(name)
    if found is None:
        raise SettingsError(fault_in(name) or name)
    return _finder(found)


def find_by(finder: Callable[[PackagedModel], Build]) -> None:
    """Has all models from packages found by ``finder``, and by nothing else, in this process."""
    global _finder
    _finder = finder


def installed(model: PackagedModel) -> Build:
    """Returns what builds a model of a package that pip has installed here; imports its code.

    Raises:
        UnknownName, SettingsError: it is not installed, or from another wheel.
    """
    here = named_here(f"{model.package}.{model.model}")
    if here != model.name:
        raise SettingsError(
            f"{model.package} is installed here from another wheel than {model.sha256[:16]}...; "
            "install that one: pip install --force-reinstall FILE.whl"
        )
    (entry,) = (
        entry
        for entry in entry_points(group=GROUP, name=model.model)
        if _package(entry) == model.package
    )
    build: Build = entry.load()
    return build


_finder: Callable[[PackagedModel], Build] = installed


def _package(entry: EntryPoint) -> str:
    return entry.module.partition(".")[0]


def _digest(entry: EntryPoint) -> str:
    """Returns the digest that pip has noted of the file it installed (PEP 610)."""
    text = entry.dist.read_text("direct_url.json") if entry.dist else None
    try:
        digest = str(json.loads(text or "{}")["archive_info"]["hashes"]["sha256"])
    except (ValueError, KeyError, TypeError):
        raise SettingsError(
            f"{_package(entry)} was not installed from a wheel's file, so a run cannot say which "
            "one it means: pip install --force-reinstall FILE.whl"
        ) from None
    return digest
