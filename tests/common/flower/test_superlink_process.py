"""The SuperLink's replaced parts: objects in files, bodies that come whole."""

import asyncio
from collections.abc import Iterator

import pytest
from flwr.app import Array, ArrayRecord, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree

from lepton_common.flower import superlink_process
from lepton_common.flower.fleet import push_bounded
from lepton_common.flower.superlink_process import FileObjectStore, WholeBodies


@pytest.fixture
def message() -> RecordDict:
    data = bytes(range(256)) * 1024
    array = Array(dtype="uint8", shape=(len(data),), stype="x", data=data)
    return RecordDict({"model": ArrayRecord({"vector": array})})


@pytest.fixture
def store(tmp_path):
    return FileObjectStore(tmp_path / "objects")


def contents_of(content):
    return {key: value.deflate() for key, value in get_all_nested_objects(content).items()}


def test_what_is_put_comes_back_and_large_objects_lie_in_files(store, message, tmp_path):
    contents = contents_of(message)
    assert set(store.preregister(1, get_object_tree(message))) == set(contents)
    assert all(store.get(key) == b"" for key in contents)
    for key, content in contents.items():
        store.put(key, content)
    assert {key: store.get(key) for key in contents} == contents
    large = [key for key, content in contents.items() if len(content) > 1 << 16]
    assert [path.name for path in (tmp_path / "objects").iterdir()] == large
    assert sum(len(entry.content) for entry in store.store.values()) < 2000
    store.put(large[0], contents[large[0]])  # once more, as after a lost answer
    assert store.get(large[0]) == contents[large[0]]


def test_what_is_deleted_leaves_no_file(store, message, tmp_path):
    store.preregister(1, get_object_tree(message))
    for key, content in contents_of(message).items():
        store.put(key, content)
    store.delete_objects_in_run(1)
    assert len(store) == 0
    assert not list((tmp_path / "objects").iterdir())


def test_a_content_that_is_not_its_id_s_is_refused(store, message, tmp_path):
    store.preregister(1, get_object_tree(message))
    contents = contents_of(message)
    key = max(contents, key=lambda each: len(contents[each]))
    with pytest.raises(ValueError, match="does not match"):
        store.put(key, contents[key][:-1] + b"?")
    assert store.get(key) == b""
    assert not list((tmp_path / "objects").iterdir())


def test_what_an_earlier_store_left_is_removed(tmp_path):
    (tmp_path / "left").write_bytes(b"x")
    FileObjectStore(tmp_path)
    assert not list(tmp_path.iterdir())


def ask(events: Iterator[dict]):
    seen = []

    async def app(scope, receive, send):
        seen.append([await receive()])
        if scope["type"] == "http":
            seen[-1].append(await receive())

    async def receive():
        return next(events)

    asyncio.run(WholeBodies(app)({"type": "http", "path": "/v1/x"}, receive, None))
    return seen


def test_a_body_comes_whole_and_then_what_comes_next():
    gone = {"type": "http.disconnect"}
    pieces = [
        {"type": "http.request", "body": b"a", "more_body": True},
        {"type": "http.request", "body": b"b", "more_body": False},
        gone,
    ]
    whole = {"type": "http.request", "body": b"ab", "more_body": False}
    assert ask(iter(pieces)) == [[whole, gone]]


def test_a_body_that_breaks_off_is_answered_by_nobody():
    pieces = [{"type": "http.request", "body": b"a", "more_body": True}]
    assert ask(iter([*pieces, {"type": "http.disconnect"}])) == []


def test_few_objects_are_worked_on_at_once_and_a_slow_reader_keeps_nobody_waiting():
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
        bodies, forever = WholeBodies(app), asyncio.Event()

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


def test_once_nobody_carries_objects_memory_is_given_back_once(monkeypatch):
    given = []
    monkeypatch.setattr(superlink_process, "_IDLE_S", 0.05)
    monkeypatch.setattr(superlink_process, "give_back_freed_memory", lambda: given.append(1))

    async def app(scope, receive, send):
        await receive()

    async def receive():
        return {"type": "http.request", "body": b"x"}

    async def some():
        bodies = WholeBodies(app)
        for path in ["/v1/fleet/push-object"] * 3 + ["/v1/fleet/heartbeat"]:
            await bodies({"type": "http", "path": path}, receive, None)
        assert not given
        await asyncio.sleep(0.2)

    asyncio.run(some())
    assert given == [1]


def test_objects_are_made_into_bytes_two_at_a_time(message):
    objects = get_all_nested_objects(message)
    wanted, left, sent = list(objects)[1:], [], {}

    def push(key, content):
        left.append(len(objects))
        sent[key] = content

    expected = contents_of(message)
    push_bounded(objects, push, object_ids_to_push=set(wanted))
    assert sent == {key: expected[key] for key in wanted}
    assert max(left) >= len(expected) - 2
    with pytest.raises(ZeroDivisionError):
        push_bounded(
            get_all_nested_objects(message), lambda *_: 1 / 0, object_ids_to_push=set(wanted)
        )
