"""Objects in files, each as the answer to a pull, and what stands for them elsewhere."""

import pytest
from flwr.app import Array, ArrayRecord, RecordDict
from flwr.proto.message_pb2 import PullObjectResponse
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree

from lepton_common.flower.object_files import FileObjectStore


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


def test_small_objects_come_back_and_large_ones_are_answers_in_files(store, message, tmp_path):
    contents = contents_of(message)
    assert set(store.preregister(1, get_object_tree(message))) == set(contents)
    assert all(store.get(key) == b"" for key in contents)
    for key, content in contents.items():
        store.put(key, content)
    (large,) = (key for key, content in contents.items() if len(content) > 1 << 16)
    small = {key: store.get(key) for key in contents if key != large}
    assert small == {key: content for key, content in contents.items() if key != large}
    assert store.get(large) == store.mark + large.encode()
    (file,) = (tmp_path / "objects").iterdir()
    assert file.name == large
    whole = PullObjectResponse(
        object_found=True, object_available=True, object_content=contents[large]
    )
    assert PullObjectResponse.FromString(file.read_bytes()) == whole
    store.put(large, contents[large])  # once more, as after a lost answer
    assert store.get(large) == store.mark + large.encode()
    assert PullObjectResponse.FromString(file.read_bytes()) == whole


def test_what_is_deleted_leaves_no_file(store, message, tmp_path):
    store.preregister(1, get_object_tree(message))
    for key, content in contents_of(message).items():
        store.put(key, content)
    store.delete_objects_in_run(1)
    assert len(store) == 0
    assert not list((tmp_path / "objects").iterdir())


@pytest.mark.parametrize("name", ["../secret", "{folder}/secret", "\U0001d7d8" * 64, "", "."])
def test_no_other_file_goes_whatever_a_node_calls_an_object(store, message, tmp_path, name):
    secret = tmp_path / "secret"
    secret.write_text("kept")
    store.preregister(1, get_object_tree(message))
    for key, content in contents_of(message).items():
        store.put(key, content)
    store.delete(name.format(folder=tmp_path))
    assert secret.read_text() == "kept"
    assert len(list((tmp_path / "objects").iterdir())) == 1


def test_a_file_that_finds_no_room_leaves_nothing(store, message, tmp_path, monkeypatch):
    store.preregister(1, get_object_tree(message))
    contents = contents_of(message)
    key = max(contents, key=lambda each: len(contents[each]))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.replace", full)
    with pytest.raises(OSError, match="No space"):
        store.put(key, contents[key])
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


@pytest.mark.parametrize("size", [1 << 16, (1 << 21) - 7, 1 << 21])
def test_a_file_is_what_protobuf_makes_of_a_content_of_any_length(store, tmp_path, size):
    array = Array(dtype="uint8", shape=(size,), stype="x", data=bytes(size))
    content = RecordDict({"model": ArrayRecord({"vector": array})})
    store.preregister(1, get_object_tree(content))
    contents = contents_of(content)
    key = max(contents, key=lambda each: len(contents[each]))
    store.put(key, contents[key])
    read = PullObjectResponse.FromString((tmp_path / "objects" / key).read_bytes())
    assert read.object_content == contents[key]


def test_what_stands_for_a_content_is_taken_once_it_was_announced(store, message, tmp_path):
    store.preregister(1, get_object_tree(message))
    contents = contents_of(message)
    key = max(contents, key=lambda each: len(contents[each]))
    announced = store.announce(contents[key])
    assert len(announced) < 100
    store.put(key, announced)
    read = PullObjectResponse.FromString((tmp_path / "objects" / key).read_bytes())
    assert read.object_content == contents[key]
    store.withdraw(announced)
    store.withdraw(b"")
    store.delete_objects_in_run(1)
    store.preregister(1, get_object_tree(message))
    for gone in (announced, bytes(len(announced))):
        with pytest.raises(ValueError, match="does not match"):
            store.put(key, gone)
