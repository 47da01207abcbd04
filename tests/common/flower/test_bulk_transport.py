"""Bodies whole and back, over real TLS, and each fault under the name that httpx gives it."""

import contextlib
import ssl
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest

from lepton_common.flower.bulk_transport import BODY_HEADER, FILE_HEADER, BulkTransport
from lepton_common.identity.certificates import issue_leaf, make_authority
from lepton_common.identity.keys import SigningKey

BODY = bytes(range(256)) * 20_000


class Echo(BaseHTTPRequestHandler):
    """Sends back what came, as the path says."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/slow":
            time.sleep(1.0)
        if self.path == "/silent":
            self.close_connection = True
            return
        self.send_response(404 if self.path == "/none" else 200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Path", self.path)
        self.send_header("X-Body", self.headers.get(BODY_HEADER, ""))
        if self.path.startswith("/objects/"):
            self.send_header(FILE_HEADER, self.path)
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(body[: len(body) // 2] if self.path == "/half" else body)
        self.close_connection = self.path in ("/half", "/last")

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder, key = tmp_path_factory.mktemp("tls"), SigningKey.generate()
    leaf = issue_leaf(key, "server", ["127.0.0.1"])
    (folder / "leaf.pem").write_bytes(leaf.certificate + leaf.private_key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "leaf.pem")
    with ThreadingHTTPServer(("127.0.0.1", 0), Echo) as made:
        made.socket = context.wrap_socket(made.socket, server_side=True)
        threading.Thread(target=made.serve_forever, daemon=True).start()
        yield f"https://127.0.0.1:{made.server_port}", make_authority(key, "server")
        made.shutdown()


def client(authority, folder=None):
    tls = ssl.create_default_context(cadata=authority)
    return httpx.Client(transport=BulkTransport(tls, folder))


@pytest.fixture
def opened(server):
    with client(server[1]) as made:
        yield made


def test_a_large_body_goes_and_comes_back_with_status_and_headers(server, opened):
    for path, status in (("/", 200), ("/none", 404)):
        answer = opened.post(server[0] + path, content=BODY)
        assert (answer.status_code, answer.headers["x-path"]) == (status, path)
        assert answer.content == BODY


def test_a_connection_that_the_server_ended_is_opened_again(server, opened):
    for _ in range(2):
        assert opened.post(server[0] + "/last", content=b"again").content == b"again"
        time.sleep(0.05)


@pytest.mark.parametrize("path", ["/half", "/silent"])
def test_an_answer_that_does_not_come_whole_is_none(server, opened, path):
    with pytest.raises(httpx.RemoteProtocolError):
        opened.post(server[0] + path, content=BODY)


def test_who_answers_too_late_has_not_answered(server, opened):
    with pytest.raises(httpx.ReadTimeout):
        opened.post(server[0] + "/slow", content=b"", timeout=0.2)


def test_nobody_else_is_trusted(server):
    other = make_authority(SigningKey.generate(), "server")
    with client(other) as made, pytest.raises(httpx.TransportError, match="CERTIFICATE_VERIFY"):
        made.post(server[0], content=b"secret")


def test_nobody_there_is_a_connection_that_failed(opened):
    with pytest.raises(httpx.ConnectError):
        opened.post("https://127.0.0.1:1", content=b"")


@pytest.fixture
def shared(tmp_path):
    """A folder that a server of one's own shares, with an object in it."""
    for name in ("body", "objects"):
        (tmp_path / name).mkdir()
    (tmp_path / "objects" / "a1").write_bytes(BODY)
    (tmp_path / "secret").write_bytes(b"secret")
    return tmp_path


def test_with_a_shared_folder_large_bodies_lie_in_files_both_ways(server, shared):
    with client(server[1], shared) as made:
        answer = made.post(server[0] + "/objects/a1", content=b"small")
        assert answer.content == BODY
        answer = made.post(server[0] + "/", content=BODY)
        assert answer.content == b""  # an echo of what went over the connection
        assert len(answer.headers["x-body"]) == 32
        assert not list((shared / "body").iterdir())
        small = made.post(server[0] + "/", content=b"small")
        assert (small.content, small.headers["x-body"]) == (b"small", "")


def test_a_full_disk_is_no_broken_connection_which_would_be_tried_again(
    server, shared, monkeypatch
):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with client(server[1], shared) as made, pytest.raises(OSError, match="No space"):
        made.post(server[0] + "/", content=BODY)


@pytest.mark.parametrize("name", ["gone", "../secret"])
def test_no_other_file_of_the_folder_is_read(server, shared, name):
    with client(server[1], shared) as made, pytest.raises(httpx.ReadError):
        made.post(f"{server[0]}/objects/x/{name.replace('..', '%2e%2e')}", content=b"small")


def test_at_the_word_of_another_s_server_no_file_is_read(server, shared, opened):
    answer = opened.post(server[0] + "/objects/a1", content=BODY)
    assert answer.content == BODY  # its echo
    assert answer.headers["x-body"] == ""
