"""Writes a software bill of materials (CycloneDX 1.6): what is installed here, or in wheels."""

import hashlib
import json
import zipfile
from collections.abc import Iterable, Iterator
from functools import cache
from importlib.metadata import Distribution, PathDistribution, distributions
from pathlib import Path
from uuid import NAMESPACE_URL, uuid5

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model import HashAlgorithm, HashType
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from lepton_common.errors import BundleError

_PROJECT = "lepton-fl"
_LONGEST_LICENCE = 80  # some packages put the whole text there


@cache
def installed_sbom() -> str:
    """Returns the bill of materials of the running environment, as `sbom` does."""
    return _bill((distribution, None) for distribution in distributions())


def sbom(wheels: Iterable[Path]) -> str:
    """Returns wheels' bill of materials as JSON; the same packages give the same text.

    Raises:
        BundleError: a file is not a wheel.
    """
    return _bill(_read(wheels))


def _bill(packages: Iterable[tuple[Distribution, str | None]]) -> str:
    found: dict[str, tuple[Distribution, Component]] = {}
    for distribution, digest in packages:
        name = canonicalize_name(distribution.name)
        found.setdefault(name, (distribution, _component(distribution, digest)))
    bom = Bom(components=[component for _, component in found.values()])
    if _PROJECT in found:
        bom.metadata.component = found[_PROJECT][1]
        bom.components.remove(found[_PROJECT][1])
    for distribution, component in found.values():
        needs = {canonicalize_name(need.name) for need in required(distribution)}
        bom.register_dependency(component, [found[n][1] for n in sorted(needs & found.keys())])
    document = json.loads(JsonV1Dot6(bom).output_as_string())
    # Neither the time nor chance belongs into it: whoever makes it again shall find the same.
    del document["metadata"]["timestamp"], document["serialNumber"]
    serial = uuid5(NAMESPACE_URL, json.dumps(document, sort_keys=True))
    return json.dumps({**document, "serialNumber": serial.urn}, indent=1, sort_keys=True) + "\n"


def required(distribution: Distribution, extras: Iterable[str] = ()) -> Iterator[Requirement]:
    """Yields what a package needs on this machine."""
    for text in distribution.requires or []:
        need = Requirement(text)
        wanted = ("", *extras)
        if need.marker is None or any(need.marker.evaluate({"extra": e}) for e in wanted):
            yield need


def read_wheel(path: Path) -> Distribution:
    """Returns a wheel's metadata; it has one folder for them, named as its file is.

    Raises:
        BundleError: the file is not a wheel.
    """
    folder = "-".join(path.name.split("-")[:2]) + ".dist-info"
    try:
        distribution = PathDistribution(zipfile.Path(path) / folder)
        if distribution.metadata["Name"]:
            return distribution
    except (zipfile.BadZipFile, KeyError, OSError):
        pass
    raise BundleError(f"{path.name} is not a wheel, or holds no {folder}.")


def _read(wheels: Iterable[Path]) -> Iterator[tuple[Distribution, str | None]]:
    for path in wheels:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        yield read_wheel(path), digest


def _component(distribution: Distribution, digest: str | None) -> Component:
    name, version = canonicalize_name(distribution.name), distribution.version
    said = distribution.metadata["License-Expression"] or distribution.metadata["License"] or ""
    short = 0 < len(said) <= _LONGEST_LICENCE and "\n" not in said
    main = name == _PROJECT
    return Component(
        name=name,
        version=version,
        type=ComponentType.APPLICATION if main else ComponentType.LIBRARY,
        bom_ref=f"{name}=={version}",
        purl=PackageURL(type="pypi", name=name, version=version),
        licenses=[LicenseFactory().make_from_string(said)] if short else [],
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=digest)] if digest else [],
    )
