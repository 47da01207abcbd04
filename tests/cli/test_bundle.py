"""Bundles: what goes in comes out, and nothing that was not signed ever does."""

import hashlib
import io
import json
import shutil
import subprocess
import sys
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wheel import build_wheel

from lepton_cli import bundle as bundles
from lepton_cli import wheels
from lepton_cli.bundle import BundleFile, Manifest, read_bundle, write_bundle
from lepton_common.errors import (
    BundleAltered,
    BundleError,
    BundleForged,
    BundleUnsafe,
    WheelMissing,
)
from lepton_common.identity.keys import SigningKey

PACKAGES = {"tiny": "1.0", "small": "2.0"}


@pytest.fixture(scope="module")
def key():
    return SigningKey.generate()


@pytest.fixture(scope="module")
def made(tmp_path_factory, key):
    """A bundle of two wheels, one of which needs the other."""
    folder = tmp_path_factory.mktemp("wheels")
    build_wheel(folder, "tiny", "1.0", needs=["small>=2"])
    build_wheel(folder, "small", "2.0")
    path = tmp_path_factory.mktemp("made") / "lepton.tar"
    write_bundle(list(folder.iterdir()), path, key)
    return path


@pytest.fixture
def nothing_left(tmp_path):
    """Holds after the test: nothing is in the folder, nor above it under an attacker's name."""
    yield tmp_path / "in" / "out"
    assert not (tmp_path / "in").exists() or not list((tmp_path / "in").iterdir())
    assert not [path for path in tmp_path.rglob("*") if "evil" in path.name]


def refused(data, key, into):
    """Returns what reading a bundle of these bytes raises; it never unpacks anything."""
    into.parent.mkdir(exist_ok=True)
    path = into.parent.parent / "came.tar"
    path.write_bytes(data)
    with pytest.raises(BundleError) as error:
        read_bundle(path, key.public_hex, into)
    return error.value


def packed(key, members, manifest=None, tail=bytes(1024)):
    """Returns a bundle whose members may be anything; the manifest is signed and true to them."""
    files = [
        {"name": info.name, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        for info, data in members
    ]
    about = {"format": 1, "version": "1", "python": "3.11", "platform": "linux", "files": files}
    text = json.dumps(about if manifest is None else manifest)
    signature = key.sign(b"lepton/bundle/v2\0" + text.encode())
    first = [(tarfile.TarInfo("manifest.json"), text.encode())]
    first += [(tarfile.TarInfo("manifest.sig"), signature)]
    out = b""
    for info, data in [*first, *members]:
        info.size = len(data)
        out += info.tobuf(tarfile.GNU_FORMAT) + data + bytes(-len(data) % 512)
    return out + tail


def member(name, data=b"data", kind=tarfile.REGTYPE, target=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info, data


def test_a_bundle_unpacks_to_what_was_put_in(made, key, tmp_path):
    manifest = read_bundle(made, key.public_hex, tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"manifest.json", "manifest.sig", *(file.name for file in manifest.files)}
    assert {"tiny-1.0-py3-none-any.whl", "small-2.0-py3-none-any.whl", "sbom.json"} < names
    for file in manifest.files:
        data = (tmp_path / "out" / file.name).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (file.size, file.sha256)
    sums = (tmp_path / "out" / "SHA256SUMS").read_text().splitlines()
    assert {line.split("  ")[1] for line in sums} == names - {
        "manifest.json", "manifest.sig", "SHA256SUMS",
    }  # fmt: skip


@pytest.mark.system
def test_pip_installs_it_by_its_digests_and_nothing_else(made, key, tmp_path):
    out = tmp_path / "out"
    read_bundle(made, key.public_hex, out)
    words = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--find-links", "."]
    words += ["--require-hashes", "-r", "requirements.txt", "--target"]
    subprocess.run([*words, "good"], cwd=out, check=True)
    assert (out / "good" / "tiny.py").exists()
    build_wheel(out, "small", "2.0", licence="Exchanged")
    ended = subprocess.run([*words, "bad"], cwd=out, check=False, capture_output=True, text=True)
    assert ended.returncode != 0
    assert "DO NOT MATCH THE HASHES" in ended.stderr
    assert not (out / "bad").exists()


def test_the_same_wheels_make_the_same_bytes(made, key, tmp_path):
    read_bundle(made, key.public_hex, tmp_path / "out")
    again = tmp_path / "lepton.tar"
    write_bundle(sorted((tmp_path / "out").glob("*.whl"), reverse=True), again, key)
    assert again.read_bytes() == made.read_bytes()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_another_key_is_refused_before_anything_is_read(made, tmp_path, nothing_left):
    error = refused(made.read_bytes(), SigningKey.generate(), nothing_left)
    assert type(error) is BundleForged
    assert error.exit_code == 9


@given(place=st.integers(min_value=0), value=st.integers(1, 255))
def test_one_changed_byte_anywhere_is_found(made, key, place, value):
    data = bytearray(made.read_bytes())
    data[place % len(data)] ^= value
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("pathlib.Path.open", lambda path, mode: io.BytesIO(data))
        with pytest.raises((BundleForged, BundleAltered, BundleUnsafe)):
            read_bundle(made, key.public_hex)


@given(keep=st.integers(min_value=0))
def test_a_bundle_cut_anywhere_is_found(made, key, keep):
    data = made.read_bytes()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(
            "pathlib.Path.open", lambda path, mode: io.BytesIO(data[: keep % len(data)])
        )
        with pytest.raises((BundleForged, BundleAltered)):
            read_bundle(made, key.public_hex)


@pytest.mark.parametrize(
    "name",
    ["../evil", "/tmp/evil", "a/../../evil", "a/evil", "..", ".", "", ".evil", "-evil", "a\\evil",
     "evil\n", "C:evil", "evil\0", "e" * 201, "evil/"],
)  # fmt: skip
def test_a_signed_name_that_is_a_path_is_refused(key, nothing_left, name):
    error = refused(packed(key, [member(name)]), key, nothing_left)
    assert type(error) is BundleUnsafe


@pytest.mark.parametrize("name", ["../evil", "/tmp/evil", "a/evil", "..", ".evil", "evil"])
def test_a_member_under_another_name_than_signed_is_refused(key, nothing_left, name):
    honest = packed(key, [member("good")])
    swapped = honest.replace(
        member("good")[0].tobuf(tarfile.GNU_FORMAT)[:100], name.encode().ljust(100, b"\0")
    )
    kind = type(refused(packed(key, [member("good")], tail=b"x"), key, nothing_left))
    assert kind is BundleAltered
    assert type(refused(swapped, key, nothing_left)) in (BundleAltered, BundleUnsafe)


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE]
)
def test_links_folders_and_devices_are_refused(key, nothing_left, kind):
    evil = member("evil", b"", kind, "/etc/passwd" if kind in (b"1", b"2") else "")
    error = refused(packed(key, [evil, member("evil2")]), key, nothing_left)
    assert type(error) is BundleUnsafe
    assert "link" in str(error)


@pytest.mark.parametrize("names", [("a", "a"), ("a", "A"), ("manifest.json",), ("Manifest.sig",)])
def test_a_name_twice_is_refused(key, nothing_left, names):
    error = refused(packed(key, [member(name) for name in names]), key, nothing_left)
    assert type(error) is BundleUnsafe
    assert "twice" in str(error)


def test_members_more_fewer_and_in_another_order_are_refused(key, nothing_left):
    one, two, more = member("one", b"1"), member("two", b"2"), member("evil", b"3")
    about = json.loads(packed(key, [one, two])[512:].split(b"\0", 1)[0])
    for members in ([one], [two, one], [one, two, more]):
        assert type(refused(packed(key, members, about), key, nothing_left)) is BundleAltered


def test_a_manifest_beyond_bounds_is_refused_unread(key, nothing_left, monkeypatch):
    info = tarfile.TarInfo("manifest.json")
    info.size = 2**40
    assert type(refused(info.tobuf(), key, nothing_left)) is BundleUnsafe
    good = json.loads(packed(key, [member("a")])[512:].split(b"\0", 1)[0])
    for change in (
        {"format": 2}, {"unknown": 1}, {"files": []}, {"files": good["files"] * 2001},
        {"files": [{**good["files"][0], "size": 2**33 + 1}]},
        {"files": [{**good["files"][0], "size": -1}]},
    ):  # fmt: skip
        data = packed(key, [member("a")], {**good, **change})
        assert type(refused(data, key, nothing_left)) is BundleUnsafe


def test_it_unpacks_into_a_new_folder_only(made, key, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter").write_text("dear")
    with pytest.raises(BundleError, match="not empty"):
        read_bundle(made, key.public_hex, tmp_path / "mine")
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BundleError, match="unpack"):
        read_bundle(made, key.public_hex, tmp_path / "link")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["letter"]
    assert not list((tmp_path / "empty").iterdir())


def test_the_commands_make_and_check_a_bundle(lepton, tmp_path, monkeypatch):
    build_wheel(tmp_path, "tiny", "1.0")
    build_wheel(tmp_path, "small", "2.0")
    monkeypatch.setattr(wheels, "needed", lambda: PACKAGES)
    assert lepton("federation", "key", "maker.pem").code == 0
    ended = lepton("site", "bundle", "b.tar", "--offline", "--key", "maker.pem", "--wheels", ".")
    assert ended.code == 0, ended.err
    public = (tmp_path / "maker.pem.pub").read_text().strip()
    assert f"Signed by: {public}" in ended.out
    assert hashlib.sha256((tmp_path / "b.tar").read_bytes()).hexdigest() in ended.out
    ended = lepton("site", "unbundle", "b.tar", "--signer", public, "--extract", "out")
    assert (ended.code, ended.out.startswith("Good: Lepton")) == (0, True)
    for signer in ("0" * 64, "no key"):
        ended = lepton("site", "unbundle", "b.tar", "--signer", signer, "--extract", "more")
        assert (ended.code, ended.err.split(":")[0]) == (9, "BundleForged")
    assert not (tmp_path / "more").exists()
    ended = lepton("site", "unbundle", "none.tar", "--signer", public)
    assert (ended.code, ended.err.split(":")[0]) == (9, "BundleError")


def test_a_wheel_that_cannot_be_had_is_a_named_error(tmp_path, capfd):
    source, folder = tmp_path / "source", tmp_path / "folder"
    source.mkdir()
    folder.mkdir()
    build_wheel(source, "tiny", "1.1")
    with pytest.raises(WheelMissing, match="--wheels"):
        wheels.collect({"tiny": "1.0"}, folder, source)
    assert "tiny==1.0" in capfd.readouterr().err


def test_what_pip_left_must_be_exactly_what_is_needed(tmp_path, monkeypatch):
    monkeypatch.setattr(wheels, "_pip", lambda *_: None)
    with pytest.raises(WheelMissing, match="No wheel was found for tiny"):
        wheels.collect({"tiny": "1.0"}, tmp_path, tmp_path)
    build_wheel(tmp_path, "tiny", "1.0", needs=["small", "absent; python_version < '3'"])
    with pytest.raises(WheelMissing, match=r"tiny-1.0-py3-none-any.whl needs small"):
        wheels.collect({"tiny": "1.0"}, tmp_path, tmp_path)
    build_wheel(tmp_path, "small", "2.0")
    assert len(wheels.collect(PACKAGES, tmp_path, tmp_path)) == 2
    build_wheel(tmp_path, "small", "2.1")
    with pytest.raises(WheelMissing, match=r"small-2.1-py3-none-any.whl, which is not what"):
        wheels.collect(PACKAGES, tmp_path, tmp_path)


def test_what_is_needed_holds_lepton_and_no_test_tools():
    found = wheels.needed()
    assert {"lepton-fl", "torch", "flwr", "cyclonedx-python-lib"} < found.keys()
    assert not {"pytest", "mypy", "hatchling"} & found.keys()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")
def test_openssl_checks_it_as_the_guide_says(made, key, tmp_path):
    with tarfile.open(made) as archive:
        guide = archive.extractfile("INSTALL.md").read().decode()
    shutil.copy(made, tmp_path / "lepton.tar")
    lines = [line.strip() for line in guide.split("## 2.")[0].splitlines() if line[:4] == "    "]
    script = "set -e\n" + "\n".join(lines[1:])

    def follow(public):
        shutil.rmtree(tmp_path / "lepton-bundle", ignore_errors=True)
        words = ["bash", "-c", script.replace("KEY", public)]
        return subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)

    ended = follow(key.public_hex)
    assert ended.stdout.split("\n")[-2:] == ["good", ""], ended.stderr
    assert follow(SigningKey.generate().public_hex).returncode != 0


def test_a_manifest_names_each_field_as_the_guide_greps_it():
    file = BundleFile(name="SHA256SUMS", size=1, sha256="0" * 64)
    manifest = Manifest(format=1, version="1", python="3.11", platform="linux", files=[file])
    assert f'"name":"SHA256SUMS","size":1,"sha256":"{"0" * 64}"' in bundles.to_json(manifest)
