"""Models that a site's operator approves: as files, in the log, and for the trainer alone."""

import importlib
import os
import py_compile
import sys
from dataclasses import replace

import pytest
import torch
from model_wheel import FILES, PARTS, kidney
from toy_site import PERMISSIVE

from lepton_client.approved_models import (
    approvals_file,
    approve,
    approved_version,
    note_changes,
    read_approved,
    read_sources,
    remove,
)
from lepton_client.model_imports import build_approved_only
from lepton_common.errors import ModelNotApproved, PackageAltered
from lepton_common.models import packaged as packages
from lepton_common.models.catalog import build_model
from lepton_common.models.packaged import PackagedModel
from lepton_common.models.wheel import read_model_wheel


@pytest.fixture
def first(tmp_path):
    return read_model_wheel(kidney(tmp_path))


@pytest.fixture
def second(tmp_path):
    changed = {**FILES, "kidney/parts.py": PARTS.replace("Flatten()", "Flatten(1)")}
    return read_model_wheel(kidney(tmp_path, "1.1", changed))


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "site"
    made.mkdir()
    return made


@pytest.fixture
def trainer(folder):
    """Makes this process build models as a trainer does, and forgets it afterwards."""
    before = list(sys.meta_path)
    build_approved_only(folder)
    yield
    packages.find_by(packages.installed)
    sys.meta_path[:] = before
    for name in [name for name in sys.modules if name.partition(".")[0] == "kidney"]:
        del sys.modules[name]


def model(wheel, name="tiny"):
    return PackagedModel(wheel.package, name, wheel.sha256)


def files(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


def test_what_is_approved_is_there_read_only_and_to_the_byte(folder, first):
    approve(folder, first, "dora")
    place = folder / "models" / f"kidney-1.0-{first.sha256}"
    assert {str(p.relative_to(place)): p.read_text() for p in files(place)} == FILES
    assert {path.stat().st_mode & 0o777 for path in files(place)} == {0o444}
    assert {path.stat().st_mode & 0o777 for path in (place, place / "kidney")} == {0o555}
    found = approved_version(folder, model(first))
    assert (found.by, read_sources(folder, found)) == ("dora", FILES)


def test_a_new_version_takes_the_place_of_the_old_one(folder, first, second):
    approve(folder, first, "dora")
    approve(folder, second, "dora")
    assert [p.name for p in (folder / "models").iterdir() if p.is_dir()] == [
        f"kidney-1.1-{second.sha256}"
    ]
    assert approved_version(folder, model(second)).version == "1.1"
    for wheel, name in ((first, "tiny"), (second, "other")):
        with pytest.raises(ModelNotApproved, match=r"approved version 1\.1"):
            approved_version(folder, model(wheel, name))


def test_what_is_removed_is_gone(folder, first):
    approve(folder, first, "dora")
    remove(folder, "kidney")
    assert files(folder) == [approvals_file(folder)]
    with pytest.raises(ModelNotApproved, match="No version"):
        approved_version(folder, model(first))
    with pytest.raises(ModelNotApproved):
        remove(folder, "kidney")


def test_an_approval_that_is_cut_off_leaves_the_earlier_one(folder, first, second, monkeypatch):
    approve(folder, first, "dora")
    monkeypatch.setattr("lepton_client.approved_models._write", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        approve(folder, second, "dora")
    monkeypatch.undo()
    assert read_sources(folder, approved_version(folder, model(first))) == FILES
    approve(folder, second, "dora")
    assert approved_version(folder, model(second))


def test_a_list_of_approvals_that_cannot_be_read_stops_everything(folder, first):
    approve(folder, first, "dora")
    approvals_file(folder).write_text('{"packages": [{"package": "kidney"}]}')
    with pytest.raises(PackageAltered, match="approve the models anew"):
        read_approved(folder)


def test_the_trainer_builds_what_is_approved_and_nothing_else(folder, first, second, trainer):
    with pytest.raises(ModelNotApproved):
        build_model(model(first).name, (4,), 3)
    approve(folder, first, "dora")
    assert build_model(model(first).name, (4,), 3)(torch.zeros(2, 4)).shape == (2, 3)
    with pytest.raises(ModelNotApproved):
        build_model(model(second).name, (4,), 3)
    with pytest.raises(ModuleNotFoundError, match="approved"):
        importlib.import_module("kidney.more")
    approve(folder, second, "dora")  # whose code would be mixed with the first one's here
    with pytest.raises(ModelNotApproved, match="start it again"):
        build_model(model(second).name, (4,), 3)


def test_the_trainer_does_not_take_an_installed_one(folder, first, trainer, tmp_path, monkeypatch):
    for path in FILES:
        (tmp_path / "other" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "other" / path).write_text("raise RuntimeError('installed, not approved')")
    monkeypatch.syspath_prepend(tmp_path / "other")
    with pytest.raises(ModelNotApproved):
        build_model(model(first).name, (4,), 3)
    approve(folder, first, "dora")
    build_model(model(first).name, (4,), 3)


def test_altered_source_is_refused_and_a_cached_one_never_looked_at(folder, first, trainer):
    approve(folder, first, "dora")
    place = folder / "models" / f"kidney-1.0-{first.sha256}" / "kidney"
    place.chmod(0o755)
    source = place / "parts.py"
    source.chmod(0o644)
    source.write_text(PARTS + "\nraise RuntimeError('altered')\n")
    with pytest.raises(PackageAltered, match=r"kidney/parts\.py"):
        build_model(model(first).name, (4,), 3)
    # Where Python's own loader looks first, the altered one is there still.
    cached = py_compile.compile(str(source), doraise=True)
    was = source.stat()
    source.write_text(PARTS)
    os.utime(source, ns=(was.st_atime_ns, was.st_mtime_ns))
    assert cached is not None
    build_model(model(first).name, (4,), 3)


def test_the_log_says_what_was_approved_and_removed_once(make_site, first, second):
    site = make_site()
    for act in (lambda: approve(site.folder, first, "dora"),
                lambda: approve(site.folder, second, "dora"),
                lambda: remove(site.folder, "kidney"),
                lambda: approve(site.folder, second, "eve")):  # fmt: skip
        act()
        site.refresh()
        site.refresh()
    said = [r for r in make_site().audit.records if r.kind.startswith("model")]
    assert [(r.kind, r.body.get("version"), r.body.get("by")) for r in said] == [
        ("model_approved", "1.0", "dora"),
        ("model_approved", "1.1", "dora"),
        ("model_removed", None, None),
        ("model_approved", "1.1", "eve"),
    ]
    assert said[0].body["sha256"] == first.sha256
    note_changes(site.audit, read_approved(site.folder))
    assert len(make_site().audit.records) == len(site.audit.records)


def test_a_site_answers_nothing_while_its_approvals_cannot_be_read(make_site, first):
    site = make_site()
    approve(site.folder, first, "dora")
    approvals_file(site.folder).write_text("{}")
    for _ in range(2):
        with pytest.raises(PackageAltered):
            site.refresh()
    with pytest.raises(PackageAltered):
        make_site().note_models()


def test_a_policy_names_a_model_in_one_version_or_in_all(first):
    name = model(first).name
    assert PERMISSIVE.trains(name)
    cases = {name: True, "wheel.kidney.tiny": True, "wheel.kidney": False, "mlp": False}
    for named, trained in cases.items():
        assert replace(PERMISSIVE, models=[named]).trains(name) == trained
    other = name[:-64] + "b" * 64
    assert not replace(PERMISSIVE, models=[name]).trains(other)
    assert not replace(PERMISSIVE, models=["layers"]).trains("layers.relu")
