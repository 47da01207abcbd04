"""The bill of materials: valid by CycloneDX's own schema, the same each time, and complete."""

import hashlib
import json
from importlib.metadata import version
from importlib.resources import files

import jsonschema
import pytest
from referencing import Registry, Resource
from wheel import build_wheel

from lepton_cli.sbom import installed_sbom, sbom
from lepton_common.errors import BundleError


@pytest.fixture(scope="module")
def check():
    """Returns a check by the schema that CycloneDX publishes."""
    folder = files("cyclonedx.schema") / "_res"

    def read(name):
        return json.loads((folder / f"{name}.SNAPSHOT.schema.json").read_text("utf-8"))

    registry = Registry().with_resources(
        (
            f"http://cyclonedx.org/schema/{name}.SNAPSHOT.schema.json",
            Resource.from_contents(read(name)),
        )
        for name in ("spdx", "jsf-0.82")
    )
    return jsonschema.Draft7Validator(read("bom-1.6"), registry=registry).validate


def test_it_lists_what_is_installed_here(check):
    document = json.loads(installed_sbom())
    check(document)
    listed = {part["name"]: part["version"] for part in document["components"]}
    assert listed["flwr"] == version("flwr")
    assert document["metadata"]["component"]["name"] == "lepton-fl"
    needs = {entry["ref"]: entry.get("dependsOn", []) for entry in document["dependencies"]}
    assert f"flwr=={version('flwr')}" in needs[f"lepton-fl=={version('lepton-fl')}"]


def test_of_wheels_it_holds_digests_licences_and_needs(check, tmp_path):
    paths = [
        build_wheel(tmp_path, "tiny", "1.0", needs=["Small>=2", "absent; sys_platform == 'none'"]),
        build_wheel(tmp_path, "small", "2.0", licence="Apache-2.0 OR MIT"),
    ]
    document = json.loads(sbom(paths))
    check(document)
    by_name = {part["name"]: part for part in document["components"]}
    digest = hashlib.sha256(paths[0].read_bytes()).hexdigest()
    assert by_name["tiny"]["hashes"] == [{"alg": "SHA-256", "content": digest}]
    assert by_name["small"]["licenses"][0]["expression"] == "Apache-2.0 OR MIT"
    needs = {entry["ref"]: entry.get("dependsOn") for entry in document["dependencies"]}
    assert needs == {"tiny==1.0": ["small==2.0"], "small==2.0": None}
    assert sbom(paths) == sbom(paths[::-1])


def test_what_is_no_wheel_is_a_named_error(tmp_path):
    for data in (b"", b"PK", build_wheel(tmp_path, "tiny", "1.0").read_bytes()):
        path = tmp_path / "other-1.0-py3-none-any.whl"
        path.write_bytes(data)
        with pytest.raises(BundleError, match="is not a wheel"):
            sbom([path])
