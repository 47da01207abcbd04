"""The wheel of a model as a site's operator reviews it: who signed it, and what it would change."""

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lepton_cli.desk.folder import Desk
from lepton_client.approved_models import ApprovedModels, read_approved, read_sources
from lepton_common.errors import PackageForged, PackageNameTaken
from lepton_common.identity.endorsed import check_endorsed
from lepton_common.models.packaged import GROUP, PackagedModel
from lepton_common.models.wheel import ModelWheel, read_model_wheel


@dataclass(frozen=True)
class Reviewed:
    """A wheel whose signature is good.

    Attributes:
        wheel: what it holds.
        by: the lead who signed it.
        before: the version that is approved now; None where it is new.
        diff: unified, against that version; all of it where it is new.
    """

    wheel: ModelWheel
    by: str
    before: ApprovedModels | None
    diff: list[str]

    def record(self) -> dict[str, Any]:
        """Returns what a program is told."""
        return {
            "package": self.wheel.package,
            "version": self.wheel.version,
            "sha256": self.wheel.sha256,
            "by": self.by,
            "models": self._names(),
            "before": self.before.sha256 if self.before else None,
            "diff": self.diff,
        }

    def sentences(self) -> Iterator[str]:
        """Yields what a person is told before the diff."""
        wheel, before = self.wheel, self.before
        yield f"{wheel.package} {wheel.version}: {wheel.summary}"
        yield f"Signed by {self.by}, a lead of the roster. SHA-256 {wheel.sha256}"
        for name, builder in sorted(wheel.builders.items()):
            yield f"Model {name}, built by {builder}, of which runs say:"
            yield f"  {PackagedModel(wheel.package, name, wheel.sha256).name}"
        lines = sum(text.count("\n") for text in wheel.files.values())
        count = len(wheel.files)
        yield f"{count} file{'' if count == 1 else 's'} of Python, {lines} lines in all."
        if before is None:
            yield "No version of it is approved here. All of it:"
        elif before.sha256 == wheel.sha256:
            yield "It is approved here already."
        else:
            yield f"What changes against version {before.version}, {before.sha256[:16]}...:"

    def _names(self) -> list[str]:
        wheel = self.wheel
        return [PackagedModel(wheel.package, n, wheel.sha256).name for n in sorted(wheel.builders)]


def signature_of(wheel: Path) -> Path:
    """Returns where a wheel's signature lies."""
    return wheel.with_name(f"{wheel.name}.sig")


def reviewed(desk: Desk, path: Path) -> Reviewed:
    """Reads a wheel and its signature, and compares it with what is approved.

    Raises:
        PackageError: it is not what a model's wheel may be, or nobody has signed it who may; or
            the version approved before has been altered.
    """
    wheel = read_model_wheel(path)
    try:
        text = signature_of(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise PackageForged(
            f"There is no {signature_of(path)} that can be read; the lead makes it: lepton model "
            f"sign {path.name}"
        ) from None
    endorsed = check_endorsed(text, wheel.package, wheel.version, wheel.sha256, desk.roster)
    if _taken(wheel.package):
        raise PackageNameTaken(
            f"Something else named {wheel.package} is installed here; the package needs another "
            "name."
        )
    before = read_approved(desk.folder).get(wheel.package)
    old = read_sources(desk.folder, before) if before else {}
    return Reviewed(wheel, endorsed.by, before, list(_diff(old, wheel.files)))


def _taken(package: str) -> bool:
    """Says whether Python would import something else by that name; models may be installed too."""
    ours = {entry.module.partition(".")[0] for entry in entry_points(group=GROUP)}
    return package not in ours and find_spec(package) is not None


def _diff(old: dict[str, str], new: dict[str, str]) -> Iterator[str]:
    for path in sorted(old.keys() | new.keys()):
        before, after = old.get(path, ""), new.get(path, "")
        if (path in old) != (path in new) and not before + after:
            yield f"{'--- removed' if path in old else '+++ new'}, empty: {path}"
        names = (path if path in old else "/dev/null", path if path in new else "/dev/null")
        # Not splitlines: its other ends of lines are not Python's.
        yield from difflib.unified_diff(_lines(before), _lines(after), *names, lineterm="")


def _lines(text: str) -> list[str]:
    return text.split("\n") if text else []
