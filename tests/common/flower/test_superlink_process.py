"""The SuperLink's replaced parts: bodies that come whole, and large ones that stay in files."""

import asyncio
from collections.abc import Iterator

import pytest
from flwr.proto.message_pb2 import PullObjectResponse, PushObjectRequest
from flwr.superlink import main as superlink_main
from starlette.middleware.base import BaseHTTPMiddleware

from lepton_common.flower import superlink_process
from lepton_common.flower.bulk_transport import BODY_HEADER, FILE_HEADER, owner_header
from lepton_common.flower.object_files import FileObjectStore
from lepton_common.flower.superlink_process import WholeBodies, _only

LARGE = bytes(range(256)) * 1024


@pytest.fixture
def layer(tmp_path):
    """Returns a maker of the layer around an app, whose files are there."""
    (tmp_path / "body").mkdir()
    (tmp_path / "secret").write_bytes(b"the owner's")
    store = FileObjectStore(tmp_path / "objects")
    return lambda app: WholeBodies(app, store, tmp_path)


def request(layer, app, path, body=b"", headers=()):
    """Returns the answer's events to one request through the layer around an app."""
    sent = []

    async def receive():
        return {"type": "http.request", "body": body}

    async def send(event):
        sent.append(event)

    scope = {"type": "http", "path": path, "headers": list(headers)}
    asyncio.run(layer(app)(scope, receive, send))
    return sent


def ask(layer, events: Iterator[dict]):
    seen = []

    async def app(scope, receive, send):
        seen.append([await receive()])
        if scope["type"] == "http":
            seen[-1].append(await receive())

    async def receive():
        return next(events)

    asyncio.run(layer(app)({"type": "http", "path": "/v1/x"}, receive, None))
    return seen


def test_a_body_comes_whole_and_then_what_comes_next(layer):
    gone = {"type": "http.disconnect"}
    pieces = [
        {"type": "http.request", "body": b"a", "more_body": True},
        {"type": "http.request", "body": b"b", "more_body": False},
        gone,
    ]
    whole = {"type": "http.request", "body": b"ab", "more_body": False}
    assert ask(layer, iter(pieces)) == [[whole, gone]]


def test_a_body_that_breaks_off_is_answered_by_nobody(layer):
    pieces = [{"type": "http.request", "body": b"a", "more_body": True}]
    assert ask(layer, iter([*pieces, {"type": "http.disconnect"}])) == []


def test_few_objects_are_worked_on_at_once_and_a_slow_reader_keeps_nobody_waiting(layer):
    working, most, answered = 0, 0, []

    async def app(scope, receive, send):
        nonlocal working, most
        assert (await receive())["body"] == b"x"
        working += 1
        most = max(most, working)
        await asyncio.sleep(0.01)
        await send({"type": "http.response.start"})
        await send({"type": "http.response.body"})
        working -= 1

    async def everyone():
        bodies, forever = layer(app), asyncio.Event()

        async def one(number):
            async def receive():
                return {"type": "http.request", "body": b"x"}

            async def send(event):
                answered.append((number, event["type"]))
                if number < 8:  # these take the head of their answer, and never the rest
                    await forever.wait()

            await bodies({"type": "http", "path": "/v1/fleet/pull-object"}, receive, send)

        tasks = [asyncio.create_task(one(number)) for number in range(12)]
        await asyncio.wait(tasks[8:], timeout=20)
        for task in tasks:
            task.cancel()

    asyncio.run(everyone())
    assert most == 4
    for number in range(12):
        kinds = [kind for who, kind in answered if who == number]
        wanted = ["http.response.start", "http.response.body"]
        assert kinds == (wanted if number >= 8 else wanted[:1])


def test_once_nobody_carries_objects_memory_is_given_back_once(layer, monkeypatch):
    given = []
    monkeypatch.setattr(superlink_process, "_IDLE_S", 0.05)
    monkeypatch.setattr(superlink_process, "give_back_freed_memory", lambda: given.append(1))

    async def app(scope, receive, send):
        await receive()

    async def receive():
        return {"type": "http.request", "body": b"x"}

    async def some():
        bodies = layer(app)
        for path in ["/v1/fleet/push-object"] * 3 + ["/v1/fleet/heartbeat"]:
            await bodies({"type": "http", "path": path, "headers": []}, receive, None)
        assert not given
        await asyncio.sleep(0.2)

    asyncio.run(some())
    assert given == [1]


def takes(layer, seen):
    """An app that takes objects as Flower's does, into the layer's store."""

    async def app(scope, receive, send):
        event = await receive()
        assert not event["more_body"]
        seen.append(PushObjectRequest.FromString(event["body"]))
        store = layer(None)._store
        seen.append(store._coming.get(seen[-1].object_content))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"taken"})

    return app


@pytest.mark.parametrize("in_file", [False, True])
def test_a_large_content_goes_round_the_next_layers(layer, tmp_path, in_file):
    asked, seen = PushObjectRequest(run_id=7, object_id="a" * 64, object_content=LARGE), []
    body, headers = asked.SerializeToString(), []
    if in_file:
        (tmp_path / "body" / "0001").write_bytes(body)
        body, headers = b"", [(BODY_HEADER.encode(), str(tmp_path / "body/0001").encode())]
    sent = request(layer, takes(layer, seen), "/v1/fleet/push-object", body, headers)
    assert sent[1]["body"] == b"taken"
    (handed, content) = seen
    assert (handed.run_id, handed.object_id) == (7, "a" * 64)
    assert len(handed.object_content) < 100
    assert content == LARGE
    assert not layer(None)._store._coming


@pytest.mark.parametrize("named", ["../secret", "/etc/hostname", "gone", ".."])
def test_no_other_file_is_read_for_a_body(layer, tmp_path, named):
    (tmp_path / "secret").write_bytes(LARGE)
    seen = []

    async def app(scope, receive, send):
        seen.append((await receive())["body"])

    request(layer, app, "/v1/fleet/push-object", b"", [(BODY_HEADER.encode(), named.encode())])
    request(layer, app, "/v1/fleet/pull-object", b"x", [(BODY_HEADER.encode(), b"0001")])
    assert seen == [b"", b"x"]


def test_a_body_that_is_no_request_is_handed_on_as_it_came(layer):
    seen = []

    async def app(scope, receive, send):
        seen.append((await receive())["body"])

    request(layer, app, "/v1/fleet/push-object", b"\xff" * (1 << 17))
    assert seen == [b"\xff" * (1 << 17)]


def test_who_asks_for_a_large_object_is_told_its_file(layer):
    store = layer(None)._store
    contents = iter([store.mark + b"a" * 64, b"small"])

    async def app(scope, receive, send):
        answer = PullObjectResponse(object_found=True, object_content=next(contents))
        body = answer.SerializeToString()
        headers = [(b"content-type", b"x"), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    start, body = request(layer, app, "/v1/fleet/pull-object", b"x")
    assert dict(start["headers"]) == {
        b"content-type": b"x",
        b"content-length": b"0",
        FILE_HEADER.encode(): b"/objects/" + b"a" * 64,
    }
    assert (start["status"], body["body"]) == (200, b"")
    start, body = request(layer, app, "/v1/fleet/pull-object", b"x")
    assert FILE_HEADER.encode() not in dict(start["headers"])
    assert PullObjectResponse.FromString(body["body"]).object_content == b"small"


def test_no_path_with_a_line_s_end_gets_by(layer):
    async def app(scope, receive, send):
        raise AssertionError

    for path in ("/v1/fleet/pull-object\n", "/v1/fleet/push-object\n", "/v1/fleet/\x00"):
        start, _ = request(layer, app, path)
        assert start["status"] == 404


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([owner_header(b"the owner's")], 200),
        ([owner_header(b"another's")], 403),
        ([("x-lepton-owner", "")], 403),
        ([], 403),
    ],
)
def test_the_control_interface_is_its_owner_s_alone(layer, headers, status):
    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    said = [(name.encode(), value.encode()) for name, value in headers]
    start, _ = request(layer, app, "/v1/control/register-node", headers=said)
    assert start["status"] == status
    start, _ = request(layer, app, "/v1/fleet/pull-messages")
    assert start["status"] == 200


@pytest.mark.parametrize(
    "content", [b"%b/nofile", b"x%b" + b"a" * 64, b"%b" + b"a" * 65, b"%b" + b"A" * 64]
)
def test_a_content_that_only_holds_the_mark_is_answered_as_it_is(layer, content):
    content = content % layer(None)._store.mark

    async def app(scope, receive, send):
        body = PullObjectResponse(object_content=content).SerializeToString()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})

    start, body = request(layer, app, "/v1/fleet/pull-object", b"x")
    assert start["headers"] == []
    assert PullObjectResponse.FromString(body["body"]).object_content == content


@pytest.mark.parametrize(("path", "passed"), [("/v1/fleet/x", ["fleet"]), ("/v1/x", [])])
def test_a_layer_sees_its_own_paths_only(path, passed):
    seen, answers = [], []

    class Looks(BaseHTTPMiddleware):
        async def dispatch(self, request, call_next):
            seen.append("fleet")
            return await call_next(request)

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"answer"})

    async def receive():
        return {"type": "http.request", "body": b""}

    async def send(event):
        answers.append(event.get("body"))

    made = _only("/v1/fleet/", Looks)(app)
    asyncio.run(made({"type": "http", "path": path, "headers": []}, receive, send))
    assert seen == passed
    assert b"answer" in answers


def test_the_layers_that_are_passed_by_are_all_that_flower_has_for_one_interface():
    stock = [layer.cls.__name__ for layer in superlink_main._get_middleware()]
    for_all = {"BaseHTTPMiddleware", "ProtobufTranslationMiddleware"}
    assert set(stock) - for_all == set(superlink_process._LAYERS)
