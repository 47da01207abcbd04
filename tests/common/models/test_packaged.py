"""Models of packages by name: which wheel is meant, and that an installed one is that wheel."""

import sys

import pytest
import torch
from model_wheel import install, kidney

from lepton_common.errors import SettingsError, UnknownName
from lepton_common.models.catalog import build_model, model_fault
from lepton_common.models.packaged import any_version, named_here, packaged

SHA = "a" * 64


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder on Python's path; what was imported from it is forgotten."""
    folder = tmp_path / "site-packages"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    yield folder
    for name in [name for name in sys.modules if name.partition(".")[0] == "kidney"]:
        del sys.modules[name]


def test_a_name_says_package_model_and_wheel():
    name = f"wheel.kidney.tiny.{SHA}"
    assert packaged(name) == ("kidney", "tiny", SHA)
    assert packaged(name).name == name
    assert any_version(name) == "wheel.kidney.tiny"
    assert any_version("layers.linear4-relu") == "layers.linear4-relu"


@pytest.mark.parametrize(
    "name",
    ["wheel", "wheel.", "wheel.kidney.tiny", f"wheel.kidney.tiny.{SHA[1:]}", f"wheel.os.{SHA}",
     f"wheel.kidney.tiny.{SHA.upper()}", f"wheel.kidney.a.b.{SHA}", f"wheel..tiny.{SHA}"],
)  # fmt: skip
def test_other_names_are_none(name):
    assert model_fault(name) is not None
    assert packaged(name) is None


def test_a_good_name_is_no_fault_wherever_the_package_is():
    assert model_fault(f"wheel.nowhere.tiny.{SHA}") is None
    with pytest.raises(UnknownName, match=r"nowhere\.tiny"):
        build_model(f"wheel.nowhere.tiny.{SHA}", (4,), 2)


def test_an_installed_model_is_named_and_built(tmp_path, place):
    name = install(kidney(tmp_path), place)
    assert named_here("kidney.tiny") == name
    assert "kidney" not in sys.modules
    assert build_model(name, (4,), 3)(torch.zeros(2, 4)).shape == (2, 3)


def test_another_wheel_than_is_installed_is_refused_unimported(tmp_path, place):
    name = install(kidney(tmp_path), place)
    other = name[:-64] + SHA
    with pytest.raises(SettingsError, match="another wheel"):
        build_model(other, (4,), 3)
    assert "kidney" not in sys.modules


def test_what_did_not_come_from_a_wheel_has_no_name(tmp_path, place):
    install(kidney(tmp_path), place)
    (place / "kidney-1.0.dist-info" / "direct_url.json").unlink()
    with pytest.raises(SettingsError, match="not installed from a wheel"):
        named_here("kidney.tiny")
    with pytest.raises(UnknownName, match=r"did you mean 'kidney\.tiny'"):
        named_here("kidney.tinny")


def test_what_builds_no_network_is_refused_and_batch_norms_are_replaced(tmp_path, place):
    path = kidney(tmp_path, files={
        "kidney/__init__.py": "", "kidney/parts.py": "from torch.nn import BatchNorm1d",
        "kidney/nets.py": "from kidney.parts import *\n\n\ndef tiny(shape, outputs):\n"
                          "    return BatchNorm1d(8) if outputs == 2 else [outputs]\n",
    })  # fmt: skip
    name = install(path, place)
    assert isinstance(build_model(name, (4,), 2), torch.nn.GroupNorm)
    with pytest.raises(SettingsError, match=r"no torch\.nn\.Module"):
        build_model(name, (4,), 3)
