"""A model's wheel: what is read of a plain one, and that nothing else is taken for one."""

import hashlib
import stat
import zipfile

import pytest
from model_wheel import ENTRY, FILES, kidney, texts_of, write_wheel

from lepton_common.errors import (
    PackageEntryPoints,
    PackageNeedsMore,
    PackageNotPure,
    PackageTooLarge,
    PackageUnreadable,
    PackageUnsafe,
)
from lepton_common.models.wheel import read_model_wheel


def test_a_plain_wheel_is_read(tmp_path):
    needs = ["torch>=2", "numpy", 'nothing-like-it; extra == "all"']
    path = kidney(tmp_path, needs=needs)
    wheel = read_model_wheel(path)
    assert (wheel.package, wheel.version, wheel.summary) == ("kidney", "1.0", "Kidneys.")
    assert wheel.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert wheel.files == FILES
    assert wheel.builders == {"tiny": "kidney.nets:tiny"}


@pytest.mark.parametrize(
    ("file", "text", "error"),
    [
        ("../evil.py", "", PackageUnsafe),
        ("kidney/../../evil.py", "", PackageUnsafe),
        ("/etc/evil.py", "", PackageUnsafe),
        ("kidney//evil.py", "", PackageUnsafe),
        ("kidneys/evil.py", "", PackageUnsafe),
        ("evil.py", "", PackageUnsafe),
        ("kidney/", "", PackageUnsafe),
        ("kidney/NETS.py", "", PackageUnsafe),
        ("kidney/ne\u0442s.py", "", PackageUnsafe),
        ("kidney/x.py", "a = 1  # \u202e", PackageUnsafe),
        ("kidney/x.py", "a = '\x1b[2J'", PackageUnsafe),
        ("kidney/x.py", "import os\rimport sys", PackageUnsafe),
        ("kidney.pth", "import os", PackageNotPure),
        ("kidney/x.pth", "import os", PackageNotPure),
        ("kidney-1.0.data/scripts/run", "", PackageNotPure),
        ("kidney-1.0.data/purelib/torch/__init__.py", "", PackageNotPure),
        ("kidney-1.0.dist-info/evil.sh", "", PackageNotPure),
        ("kidney/native.so", "", PackageNotPure),
        ("kidney/nets.cpython-311-x86_64-linux-gnu.so", "", PackageNotPure),
        ("kidney/weights.pt", "", PackageNotPure),
        ("kidney/__pycache__/nets.cpython-311.pyc", "", PackageNotPure),
        ("kidney/a-b.py", "", PackageNotPure),
        ("kidney/x.py", b"\xff\xfe", PackageNotPure),
        ("kidney/x.py", "this is no Python", PackageNotPure),
        ("kidney/x.py", "#" * (5 << 20), PackageTooLarge),
    ],
)
def test_what_is_more_than_source_in_its_package_is_refused(tmp_path, file, text, error):
    with pytest.raises(error):
        read_model_wheel(write_wheel(tmp_path, {**texts_of(), file: text}))


@pytest.mark.parametrize("mode", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFDIR])
def test_links_and_devices_are_refused(tmp_path, mode):
    path = write_wheel(tmp_path, texts_of(), modes={"kidney/parts.py": mode | 0o644})
    with pytest.raises(PackageUnsafe, match="link"):
        read_model_wheel(path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_file_that_is_there_twice_is_refused(tmp_path):
    path = kidney(tmp_path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(zipfile.ZipInfo("kidney/nets.py"), "")
    with pytest.raises(PackageUnsafe, match="twice"):
        read_model_wheel(path)


def test_too_many_files_and_a_huge_file_are_refused_unread(tmp_path):
    many = {f"kidney/m{i}.py": "" for i in range(400)}
    with pytest.raises(PackageTooLarge):
        read_model_wheel(write_wheel(tmp_path, {**texts_of(), **many}))
    path = kidney(tmp_path)
    with path.open("ab") as file:
        file.truncate(5 << 20)
    with pytest.raises(PackageTooLarge):
        read_model_wheel(path)


@pytest.mark.parametrize(
    "entry",
    [
        "",
        "[console_scripts]\nrun = kidney.nets:tiny\n",
        ENTRY + "[console_scripts]\nrun = kidney.nets:tiny\n",
        "[lepton.models]\ntiny = os:system\n",
        "[lepton.models]\ntiny = kidney.gone:tiny\n",
        "[lepton.models]\ntiny = kidney.nets\n",
        "[lepton.models]\ntiny = kidney.nets:tiny [extra]\n",
        "[lepton.models]\na.b = kidney.nets:tiny\n",
        ENTRY + "tiny = kidney.parts:flat\n",
    ],
)
def test_other_entry_points_than_models_of_its_own_are_refused(tmp_path, entry):
    with pytest.raises(PackageEntryPoints):
        read_model_wheel(kidney(tmp_path, entry=entry))


@pytest.mark.parametrize(
    "need", ["no-such-package-here", "torch>=99", "torch @ https://example.org/torch.whl", "a b"]
)
def test_what_is_not_installed_cannot_be_needed(tmp_path, need):
    with pytest.raises(PackageNeedsMore):
        read_model_wheel(kidney(tmp_path, needs=[need]))


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("kidney.zip", PackageUnreadable),
        ("kidney-2.0-py3-none-any.whl", PackageUnsafe),
        ("liver-1.0-py3-none-any.whl", PackageUnsafe),
        ("kidney-1.0-cp311-cp311-linux_x86_64.whl", PackageNotPure),
    ],
)
def test_a_wheel_is_what_its_name_says(tmp_path, name, error):
    with pytest.raises(error):
        read_model_wheel(write_wheel(tmp_path, texts_of(), name))


def test_metadata_of_another_package_and_damage_are_found(tmp_path):
    with pytest.raises(PackageUnreadable, match="metadata"):
        read_model_wheel(kidney(tmp_path, said="liver"))
    with pytest.raises(PackageUnreadable, match="__init__"):
        read_model_wheel(kidney(tmp_path, files={"kidney/nets.py": ""}))
    path = kidney(tmp_path)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(PackageUnreadable, match="damaged"):
        read_model_wheel(path)
    with pytest.raises(PackageUnreadable, match="Cannot read"):
        read_model_wheel(tmp_path / "gone-1.0-py3-none-any.whl")
