"""Tests that a file is either old or new, whatever fails."""

import errno
import os

import pytest

from lepton_common.durable import append_synced, link_atomic, write_atomic
from lepton_common.errors import DiskFull


def test_a_file_is_written_and_replaced_and_nothing_is_left_beside_it(tmp_path):
    path = tmp_path / "file.bin"
    write_atomic(path, b"old")
    assert path.read_bytes() == b"old"
    write_atomic(path, b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("mode", [0o600, 0o644, 0o400])
def test_the_mode_is_the_one_asked_for_whatever_was_there(tmp_path, mode):
    path = tmp_path / "file.bin"
    path.write_bytes(b"old")
    path.chmod(0o666)
    write_atomic(path, b"new", mode=mode)
    assert path.stat().st_mode & 0o777 == mode


def test_the_default_mode_lets_others_read_and_only_the_owner_write(tmp_path):
    write_atomic(tmp_path / "file.bin", b"")
    assert (tmp_path / "file.bin").stat().st_mode & 0o777 == 0o644


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "file.bin"
    write_atomic(path, b"old")
    with pytest.raises(TypeError):
        write_atomic(path, "text is not bytes")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_replacement_that_fails_leaves_no_temporary_file(tmp_path):
    path = tmp_path / "folder"
    path.mkdir()
    (path / "kept").touch()
    with pytest.raises(OSError, match="folder"):
        write_atomic(path, b"new")
    assert list(tmp_path.iterdir()) == [path]
    assert list(path.iterdir()) == [path / "kept"]


def test_a_missing_folder_is_an_error_and_is_not_made(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_atomic(tmp_path / "missing" / "file.bin", b"new")
    assert list(tmp_path.iterdir()) == []


def test_appending_keeps_what_is_there(tmp_path):
    path = tmp_path / "log"
    append_synced(path, b"one\n")
    append_synced(path, b"two\n")
    assert path.read_bytes() == b"one\ntwo\n"


@pytest.mark.parametrize("links", [True, False])
def test_a_second_name_takes_the_place_of_a_file_and_outlives_the_first(
    tmp_path, monkeypatch, links
):
    last, best = tmp_path / "last.bin", tmp_path / "best.bin"
    write_atomic(last, b"one")
    write_atomic(best, b"none")
    if not links:

        def refuse(*_):
            raise PermissionError

        monkeypatch.setattr("lepton_common.durable.os.link", refuse)
    link_atomic(last, best)
    assert best.read_bytes() == b"one"
    write_atomic(last, b"two")
    assert best.read_bytes() == b"one"
    assert sorted(tmp_path.iterdir()) == [best, last]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("write", [
    lambda path: write_atomic(path, b"new"),
    lambda path: append_synced(path, b"new"),
    lambda path: link_atomic(path.with_name("other"), path),
])  # fmt: skip
def test_a_full_disk_has_a_name_and_says_where(tmp_path, monkeypatch, write, code):
    (tmp_path / "folder").mkdir()
    path = tmp_path / "folder" / "file"
    write_atomic(path, b"old")
    write_atomic(path.with_name("other"), b"other")

    def full(*_):
        raise OSError(code, "no room")

    monkeypatch.setattr(os, "link", full)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskFull, match=f"No room is left on the disk of {path.parent}"):
        write(path)
    assert path.read_bytes().startswith(b"old")
    assert len(list(path.parent.iterdir())) == 2


def test_a_disk_that_is_gone_is_not_called_full(tmp_path, monkeypatch):
    def gone(*_):
        raise OSError(errno.EIO, "gone")

    monkeypatch.setattr(os, "fsync", gone)
    with pytest.raises(OSError, match="gone") as found:
        write_atomic(tmp_path / "file", b"new")
    assert not isinstance(found.value, DiskFull)


def test_a_path_that_cannot_be_written_is_the_one_that_the_error_names(tmp_path):
    with pytest.raises(FileNotFoundError) as missing:
        write_atomic(tmp_path / "none" / "file.bin", b"")
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError) as taken:
        write_atomic(tmp_path / "folder", b"")
    assert missing.value.filename == str(tmp_path / "none" / "file.bin")
    assert taken.value.filename == str(tmp_path / "folder")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
