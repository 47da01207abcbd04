"""Collects the wheels of what Lepton needs, in the versions that are installed here."""

import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterable, Mapping
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from urllib.parse import unquote, urlsplit

from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename
from packaging.version import Version

from lepton_cli.sbom import read_wheel, required
from lepton_common.errors import WheelMissing

_PROJECT = "lepton-fl"
_TORCH_INDEX = "https://download.pytorch.org/whl"


def needed() -> dict[str, str]:
    """Returns names and versions of what Lepton needs to run, itself included; no test tools.

    Raises:
        WheelMissing: something of it is not installed here.
    """
    found: dict[tuple[str, frozenset[str]], Distribution] = {}
    waiting = [(_PROJECT, frozenset[str]())]
    while waiting:
        name, extras = waiting.pop()
        if (name, extras) in found:
            continue
        try:
            here = found[name, extras] = distribution(name)
        except PackageNotFoundError:
            raise WheelMissing(
                f"{name} is needed, but not installed here; install Lepton anew."
            ) from None
        waiting += [
            (canonicalize_name(need.name), frozenset(need.extras))
            for need in required(here, extras)
        ]
    return {name: here.version for (name, _), here in sorted(found.items(), key=lambda i: i[0][0])}


def collect(packages: Mapping[str, str], folder: Path, source: Path | None) -> list[Path]:
    """Puts one wheel for each package into a folder; pip tells its progress on standard error.

    Args:
        packages: their versions by name.
        folder: an empty one.
        source: folder to take all wheels from; None to fetch them as pip is configured here, and
            to build what is published as source only.

    Raises:
        WheelMissing: a wheel cannot be fetched, found or built.
    """
    if source is not None:
        where = ["--no-index", "--only-binary", ":all:", "--find-links", str(source)]
        _pip(packages, [f"{n}=={v}" for n, v in packages.items()], folder, where)
    else:
        # PyTorch's own index holds copies of other packages too: ask it for PyTorch alone.
        label = Version(packages["torch"]).local if "torch" in packages else None
        apart = {"torch", _PROJECT} if label else {_PROJECT}
        rest = [f"{n}=={v}" for n, v in packages.items() if n not in apart]
        _pip(packages, [*rest, *([_own()] if _PROJECT in packages else [])], folder, [])
        if label:
            index = ["--extra-index-url", f"{_TORCH_INDEX}/{label}", "--retries", "1"]
            _pip(packages, [f"torch=={packages['torch']}"], folder, index)
    return _complete(packages, folder)


def _pip(
    packages: Mapping[str, str], wanted: Iterable[str], folder: Path, where: Iterable[str]
) -> None:
    if importlib.util.find_spec("pip") is None:
        raise WheelMissing("There is no pip here; run `python -m ensurepip` and try again.")
    words = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", str(folder)]
    # Its progress is not our output: it goes to standard error.
    ended = subprocess.run([*words, *where, *wanted], stdout=2, check=False)  # noqa: S603
    if ended.returncode:
        raise WheelMissing(
            f"pip did not get all of {len(packages)} wheels; it says above which one. Check the "
            "network and `pip config list`, or give a folder that holds them all by --wheels."
        )


def _own() -> str:
    """Returns where this installation of Lepton came from: its checkout, or its wheel.

    Raises:
        WheelMissing: it is not known, or not there any more.
    """
    text = distribution(_PROJECT).read_text("direct_url.json")
    url = urlsplit(json.loads(text)["url"] if text else "")
    path = Path(unquote(url.path))
    if url.scheme != "file" or not path.exists():
        raise WheelMissing(
            "Where Lepton was installed from is not there any more; give a folder with its wheel "
            "and all others by --wheels."
        )
    return str(path)


def _complete(packages: Mapping[str, str], folder: Path) -> list[Path]:
    """Returns the wheels in a folder, which are exactly one for each package."""
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        try:
            name, version, _, _ = parse_wheel_filename(path.name)
        except InvalidWheelFilename:
            raise WheelMissing(f"pip left {path.name}, which is not a wheel.") from None
        if name in found or Version(packages.get(name, "0!0")) != version:
            raise WheelMissing(f"pip left {path.name}, which is not what is installed here.")
        found[name] = path
    if lacking := packages.keys() - found.keys():
        raise WheelMissing(f"No wheel was found for {', '.join(sorted(lacking))}.")
    # A checkout may need more by now than when it was installed.
    for path in found.values():
        for need in required(read_wheel(path)):
            if canonicalize_name(need.name) not in found:
                raise WheelMissing(
                    f"{path.name} needs {need.name}, which is not installed here; install Lepton "
                    "anew."
                )
    return list(found.values())
