"""A lead's own model: signed, reviewed as a diff, approved, and what becomes of runs with it."""

import json
from dataclasses import replace
from io import StringIO

import pytest
from desk_folder import DORA, Folder, folder, settings  # noqa: F401
from model_wheel import FILES, PARTS, endorsement, install, kidney, texts_of, write_wheel

from lepton_cli.compose import compose_settings
from lepton_client.approved_models import read_approved
from lepton_client.site import Site
from lepton_common.errors import SettingsError
from lepton_common.identity.keys import SigningKey
from lepton_common.identity.roster import Person


def signed(path, key=DORA):
    path.with_name(path.name + ".sig").write_text(endorsement(path, key))
    return str(path)


def review(lepton, wheel):
    return json.loads(lepton("site", "model", "review", "site-1", wheel, "--json").out)


@pytest.fixture
def person(folder, tmp_path):  # noqa: F811
    """Makes a person's folder in the site's federation."""

    def make(key):
        made = tmp_path / "person"
        made.mkdir(exist_ok=True)
        key.save(made / "signing.pem")
        for name in ("roster.json", "roster.root"):
            (made / name).write_bytes((folder.path / name).read_bytes())
        return made

    return make


def test_from_the_leads_signature_to_a_run_that_may_be(lepton, folder, person, tmp_path):  # noqa: F811
    wheel = kidney(tmp_path)
    ended = lepton("model", "sign", str(wheel), "--as", str(person(DORA)))
    assert ended.code == 0, ended.err
    found = review(lepton, str(wheel))
    assert (found["by"], found["before"]) == ("dora", None)
    for text in FILES.values():
        for line in filter(None, text.split("\n")):
            assert f"+{line}" in found["diff"]
    folder.propose(made=replace(settings(), model=found["models"][0]))
    row = json.loads(lepton("site", "requests", "site-1", "--json").out)[0]
    assert (row["state"], row["reasons"][0]["name"]) == ("beyond the policy", "ModelNotApproved")
    assert lepton("site", "model", "approve", "site-1", str(wheel), "--yes").code == 0
    row = json.loads(lepton("site", "requests", "site-1", "--json").out)[0]
    assert row["state"] == "waits"
    Site(folder.path).note_models()
    assert (
        "approved the models in kidney 1.0, signed by dora" in lepton("site", "log", "site-1").out
    )
    listed = json.loads(lepton("site", "model", "list", "site-1", "--json").out)
    assert listed == [{"model": found["models"][0], "version": "1.0", "by": "dora"}]


def test_a_new_version_is_shown_as_its_difference(lepton, folder, tmp_path):  # noqa: F811
    first = signed(kidney(tmp_path))
    lepton("site", "model", "approve", "site-1", first, "--yes")
    changed = {**FILES, "kidney/parts.py": PARTS.replace("Flatten()", "Flatten(1)")}
    second = signed(kidney(tmp_path, "1.1", {**changed, "kidney/empty.py": ""}))
    assert review(lepton, second)["diff"] == [
        "+++ new, empty: kidney/empty.py",
        "--- kidney/parts.py", "+++ kidney/parts.py", "@@ -2,5 +2,5 @@",
        " ", " ", " def flat():", "-    return nn.Flatten()", "+    return nn.Flatten(1)", " ",
    ]  # fmt: skip
    assert review(lepton, first)["diff"] == []
    said = lepton("site", "model", "review", "site-1", second).out
    assert "What changes against version 1.0" in said
    assert "\n-    return nn.Flatten()\n+    return nn.Flatten(1)\n" in said


def test_reviewing_and_saying_no_changes_nothing(lepton, folder, tmp_path, monkeypatch):  # noqa: F811
    wheel, before = signed(kidney(tmp_path)), folder.bytes()
    assert lepton("site", "model", "review", "site-1", wheel).code == 0
    monkeypatch.setattr("sys.stdin", StringIO("n\n"))
    assert lepton("site", "model", "approve", "site-1", wheel).code == 130
    assert folder.bytes() == before


def test_what_is_not_signed_or_not_plain_is_not_approved(lepton, folder, tmp_path):  # noqa: F811
    wheel = kidney(tmp_path)
    approve = ("site", "model", "approve", "site-1", str(wheel), "--yes")
    assert "lepton model sign" in lepton(*approve).err
    signed(wheel, SigningKey.generate())
    assert "PackageForged" in lepton(*approve).err
    signed(wheel)
    kidney(tmp_path, files={**FILES, "kidney/more.py": "MORE = 1\n"})  # exchanged afterwards
    ended = lepton(*approve)
    assert (ended.code, "another wheel" in ended.err) == (9, True)
    write_wheel(tmp_path, {**texts_of(), "kidney.pth": "import os"})
    assert "PackageNotPure" in lepton(*approve).err
    assert read_approved(folder.path) == {}


def test_a_wheel_cannot_take_the_name_of_what_is_installed(lepton, folder, tmp_path):  # noqa: F811
    files = {"lepton_client/__init__.py": "", "lepton_client/nets.py": "def tiny(): ...\n"}
    entry = "[lepton.models]\ntiny = lepton_client.nets:tiny\n"
    texts = texts_of(files=files, entry=entry, name="lepton_client")
    wheel = write_wheel(tmp_path, texts, "lepton_client-1.0-py3-none-any.whl")
    ended = lepton("site", "model", "review", "site-1", signed(wheel))
    assert (ended.code, "PackageNameTaken" in ended.err) == (9, True)


def test_an_altered_file_is_found_when_it_is_listed_or_compared(lepton, folder, tmp_path):  # noqa: F811
    wheel = signed(kidney(tmp_path))
    lepton("site", "model", "approve", "site-1", wheel, "--yes")
    (source,) = folder.path.rglob("parts.py")
    source.chmod(0o644)
    source.write_text(PARTS + "EVIL = True\n")
    for words in (("list", "site-1"), ("review", "site-1", wheel)):
        ended = lepton("site", "model", *words)
        assert (ended.code, "PackageAltered" in ended.err) == (9, True)
    assert lepton("site", "model", "remove", "site-1", "kidney").code == 0
    assert "No model" in lepton("site", "model", "list", "site-1").out


def test_only_a_lead_signs(lepton, folder, person, tmp_path):  # noqa: F811
    eve = SigningKey.generate()
    sign = ("model", "sign", str(kidney(tmp_path)), "--as")
    assert "RosterInvalid" in lepton(*sign, str(person(eve))).err
    people = [Person(name="eve", public_key=eve.public_hex, roles=["auditor"], authority="")]
    folder.enrol(people=people)
    assert "NotAllowed" in lepton(*sign, str(person(eve))).err


def test_a_run_names_the_wheel_that_is_installed_here(tmp_path, monkeypatch):
    place = tmp_path / "site-packages"
    place.mkdir()
    monkeypatch.syspath_prepend(place)
    name = install(kidney(tmp_path), place)
    words = ["task=breast_cancer", "privacy=none"]
    assert compose_settings([*words, "model=wheel", "wheel=kidney.tiny"]).model == name
    with pytest.raises(SettingsError, match="for model=wheel"):
        compose_settings([*words, "wheel=kidney.tiny"])
    with pytest.raises(SettingsError, match="needs the model"):
        compose_settings([*words, "model=wheel"])
