"""The software of this Python environment as a CycloneDX 1.6 bill of materials, in JSON."""

import hashlib
import re
from functools import cache
from importlib import metadata
from uuid import UUID

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL
from packaging.requirements import InvalidRequirement, Requirement

_OURS = "lepton-fl"
_LONGEST_LICENSE = 80  # of a name; some packages put the whole text there


@cache
def sbom() -> str:
    """Returns the bill: every installed distribution, its version, licence and dependencies."""
    found = {_key(d.metadata["Name"]): d for d in metadata.distributions() if d.metadata["Name"]}
    parts = {key: _component(key, distribution) for key, distribution in sorted(found.items())}
    bom = Bom(components=[part for key, part in parts.items() if key != _OURS])
    named = "\n".join(
        f"{key}=={distribution.version}" for key, distribution in sorted(found.items())
    )
    bom.serial_number = UUID(bytes=hashlib.sha256(named.encode()).digest()[:16], version=4)
    bom.metadata.timestamp = None  # type: ignore[assignment]  # the same software, the same bytes
    bom.metadata.component = parts.get(_OURS)
    for key, distribution in sorted(found.items()):
        needed = _needed(distribution) & set(parts)
        bom.register_dependency(parts[key], [parts[other] for other in sorted(needed)])
    return JsonV1Dot6(bom).output_as_string(indent=1)


def _component(key: str, distribution: metadata.Distribution) -> Component:
    fields = distribution.metadata
    said = next((fields[n] for n in ("License-Expression", "License") if n in fields), None)
    short = said if said and len(said) <= _LONGEST_LICENSE and "\n" not in said else None
    ours = key == _OURS
    return Component(
        name=key,
        version=distribution.version,
        type=ComponentType.APPLICATION if ours else ComponentType.LIBRARY,
        bom_ref=f"{key}=={distribution.version}",
        purl=PackageURL("pypi", name=key, version=distribution.version),
        licenses=[LicenseFactory().make_from_string(short)] if short else [],
    )


def _needed(distribution: metadata.Distribution) -> set[str]:
    """Returns what a distribution needs on this machine, extras left out."""
    names = set()
    for line in distribution.requires or []:
        try:
            requirement = Requirement(line)
        except InvalidRequirement:
            continue  # of an old package; it is in the bill all the same
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            names.add(_key(requirement.name))
    return names


def _key(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()  # PEP 503
