"""Messages in Flower's pieces: pulled, and joined as they come, so that no model is held twice."""

import json
import math
from collections import Counter
from collections.abc import Callable
from io import BytesIO
from typing import TYPE_CHECKING

import httpx
import numpy as np
from flwr.app import Array, Message

from lepton_common.errors import MalformedMessage

if TYPE_CHECKING:
    from flwr.proto.message_pb2 import ObjectTree
    from flwr.supercore.inflatable.inflatable_object import InflatableObject

Pull = Callable[[str], bytes]
# A message is announced before its content is there. Flower waits a second before it looks again.
_FIRST_WAIT_S, _LONGEST_WAIT_S, _TRIES = 0.01, 0.5, 40
_AT_ONCE = 2
_PIECE = "ArrayChunk"
_HEADER = 1 << 10  # more than NumPy writes in front of an array
LARGEST_ARRAY = 1 << 34


def pull_message(
    message_id: str, tree: "ObjectTree", pull: Pull, most: int = LARGEST_ARRAY
) -> Message:
    """Pulls the objects of a message and returns what they make up.

    Args:
        message_id: of the message, which is that of its outermost object.
        tree: the ids of its objects, as announced.
        pull: returns the bytes of one object.
        most: bytes of one array; a small message can say that its pieces come again and again.

    Raises:
        httpx.HTTPError: whoever has them cannot be reached.
        flwr's ObjectPullError: one did not come within some 20 seconds of waiting.
        MalformedMessage: they make up no message. Flower's parsers raise whatever they stumble
            over.
    """
    from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
    from flwr.supercore.inflatable.inflatable_utils import (
        ObjectPullError,
        inflate_object_from_contents,
    )

    try:
        announced = {part.object_id: bool(part.children) for part in iterate_object_tree(tree)}
        contents = _pull_each([name for name, inner in announced.items() if inner], pull)
        pieces = {name for part in contents.values() for name in _pieces_of(part)}
        if not pieces <= set(announced):
            raise ValueError
        others = [name for name in announced if name not in contents and name not in pieces]
        contents |= _pull_each(others, pull)
        arrays: dict[str, InflatableObject] = {
            name: _joined(part, pull, most)
            for name, part in contents.items()
            if _head(part)[0] == Array.__qualname__
        }
        message = inflate_object_from_contents(message_id, contents, objects=arrays)
    except (ObjectPullError, httpx.HTTPError):
        raise
    except Exception as error:
        raise MalformedMessage("What came cannot be read as a message.") from error
    if not isinstance(message, Message):
        raise MalformedMessage("What came is something else than a message.")
    message.metadata.__dict__["_message_id"] = message_id
    return message


def _joined(described: bytes, pull: Pull, most: int) -> Array:
    """Returns an array, of whose pieces two at a time are pulled and copied to their place."""
    from flwr.supercore.inflatable.inflatable_object import get_object_body

    said = json.loads(get_object_body(described, Array))
    children = _head(described)[1]
    order = [children[index] for index in said["arraychunk_ids"]]
    size = math.prod(said["shape"]) * np.dtype(said["dtype"]).itemsize
    # Flower stores and sends pieces of the same bytes once, of zeros for instance.
    left, again, whole = Counter(order), dict[str, bytes](), BytesIO()
    for start in range(0, len(order), _AT_ONCE):
        names = order[start : start + _AT_ONCE]
        missing = [name for name in dict.fromkeys(names) if name not in again]
        again |= _pull_each(missing, pull) if missing else {}
        for name in names:
            piece = _piece(again[name])
            if not whole.tell():
                # All its room at once, since growing might copy.
                whole.seek(max(0, min(size, most, len(order) * len(piece)) - 1))
                whole.write(bytes(1))
                whole.seek(0)
            if whole.tell() + len(piece) > min(size, most) + _HEADER:
                raise ValueError
            whole.write(piece)
            left[name] -= 1
            if not left[name]:
                del again[name]
    if whole.tell() < size:
        raise ValueError
    whole.truncate()
    # The buffer itself: no copy is made of what nobody writes to any more.
    return Array(said["dtype"], tuple(said["shape"]), said["stype"], whole.getvalue())


def _pull_each(names: list[str], pull: Pull) -> dict[str, bytes]:
    """Returns objects by their ids, asking again soon for what is not there yet."""
    from flwr.supercore.inflatable.inflatable_utils import pull_objects

    return pull_objects(
        names,
        pull,
        max_tries_per_object=_TRIES,
        initial_backoff=_FIRST_WAIT_S,
        backoff_cap=_LONGEST_WAIT_S,
    )


def _pieces_of(content: bytes) -> list[str]:
    kind, children, _ = _head(content)
    return children if kind == Array.__qualname__ else []


def _piece(content: bytes) -> memoryview:
    """Returns the bytes that an object adds to an array."""
    from flwr.supercore.constant import HEAD_BODY_DIVIDER

    kind, _, length = _head(content)
    begin = content.index(HEAD_BODY_DIVIDER) + 1
    if kind != _PIECE or length == 0 or begin + length != len(content):
        raise ValueError
    return memoryview(content)[begin:]


def _head(content: bytes) -> tuple[str, list[str], int]:
    """Returns an object's kind, its children's ids and the length of its body."""
    from flwr.supercore.inflatable.inflatable_object import (
        get_object_head_values_from_object_content,
    )

    return get_object_head_values_from_object_content(content)
