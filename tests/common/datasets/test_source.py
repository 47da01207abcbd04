"""Tests of where data comes from: missing, altered and unreachable files are named errors."""

import hashlib
import socket
import threading

import pytest

from lepton_common.cache import cache_folder
from lepton_common.datasets.source import Source
from lepton_common.errors import ChecksumMismatch, DataMissing

_DATA = b"published"
_SUM = hashlib.sha256(_DATA).hexdigest()


def _source(address="http://127.0.0.1:9/"):
    return Source("example", address, {"file.bin": _SUM})


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LEPTON_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def serve():
    """Answers one connection on the loopback with fixed bytes, then closes it."""
    threads, sockets = [], []

    def start(answer):
        listener = socket.create_server(("127.0.0.1", 0))

        def work():
            connection, _ = listener.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(answer)

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        threads.append(thread)
        sockets.append(listener)
        return f"http://127.0.0.1:{listener.getsockname()[1]}/"

    yield start
    for thread in threads:
        thread.join(5)
    for listener in sockets:
        listener.close()


def _answer(body, length=None, status="200 OK"):
    length = len(body) if length is None else length
    return f"HTTP/1.1 {status}\r\nContent-Length: {length}\r\n\r\n".encode() + body


def test_a_file_that_is_there_is_returned(tmp_path):
    path = tmp_path / "example" / "file.bin"
    path.parent.mkdir()
    path.write_bytes(_DATA)
    assert _source().fetch(str(tmp_path)) == {"file.bin": path}


def test_a_missing_file_is_not_downloaded_into_a_folder_of_the_users(tmp_path):
    with pytest.raises(DataMissing, match=r"example/file.bin"):
        _source().fetch(str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_an_altered_file_is_refused(tmp_path):
    path = tmp_path / "example" / "file.bin"
    path.parent.mkdir()
    for altered in (_DATA + b"!", b"", _DATA[:-1] + b"D"):
        path.write_bytes(altered)
        with pytest.raises(ChecksumMismatch, match=_SUM[:12]):
            _source().fetch(str(tmp_path))
    assert path.exists()


def test_an_unreachable_address_is_missing_data(cache):
    with pytest.raises(DataMissing, match=r"set data.root"):
        _source().fetch(None)
    assert not cache.exists()


def test_a_download_is_kept_in_the_cache(cache, serve):
    source = _source(serve(_answer(_DATA)))
    path = cache / "example" / "file.bin"
    assert source.fetch(None) == {"file.bin": path}
    assert path.read_bytes() == _DATA
    assert source.fetch(None) == {"file.bin": path}  # the server answers only once


def test_a_download_of_something_else_is_refused_and_not_kept(cache, serve):
    with pytest.raises(ChecksumMismatch):
        _source(serve(_answer(b"something else"))).fetch(None)
    assert not cache.exists()


@pytest.mark.parametrize(
    "answer",
    [
        _answer(b"not found", status="404 Not Found"),
        _answer(_DATA[:4], length=len(_DATA)),
        b"this is not HTTP\r\n\r\n",
        b"",
    ],
    ids=["not found", "cut off", "not http", "closed"],
)
def test_a_download_that_fails_is_missing_data(cache, serve, answer):
    with pytest.raises(DataMissing):
        _source(serve(answer)).fetch(None)
    assert not cache.exists()


def test_the_cache_is_where_the_environment_says(cache, monkeypatch, tmp_path):
    assert cache_folder() == cache
    monkeypatch.setenv("LEPTON_CACHE", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "lepton"
