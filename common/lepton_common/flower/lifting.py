"""Large arrays beside a message rather than in it: taken out, and put back as views of memory."""

from collections.abc import Iterable

from flwr.app import Array, ArrayRecord, Message, RecordDict

from lepton_common.flower.message_id import with_content

Lifted = tuple[str, bytes | memoryview]
"""An array's name in its record, and its bytes."""

_LARGE = 1 << 16


def lift(message: Message) -> tuple[Message, dict[str, list[Lifted]]]:
    """Returns a message whose large arrays are empty, and by record's name what was in them.

    The message that is given stays as it is.
    """
    if not message.has_content():
        return message, {}
    content, lifted = RecordDict(), dict[str, list[Lifted]]()
    for key, record in message.content.items():
        content[key] = record
        if not isinstance(record, ArrayRecord):
            continue
        large = [(name, array.data) for name, array in record.items() if len(array.data) >= _LARGE]
        if large:
            lifted[key] = [*large]
            empty = {name: _with(array, b"") for name, array in record.items()}
            kept = {name: array for name, array in record.items() if len(array.data) < _LARGE}
            content[key] = ArrayRecord(empty | kept)
    return (with_content(message, content), lifted) if lifted else (message, {})


def put_back(message: Message, key: str, arrays: Iterable[Lifted]) -> None:
    """Fills the empty arrays of one record.

    Views of memory stay views, but for arrays that Flower made: it copies them in reading a view,
    so they are copied here, and apps find the bytes that they expect.
    """
    record = message.content.array_records[key]
    for name, data in arrays:
        record[name].data = bytes(data) if _flowers_own(record[name]) else data  # type: ignore[assignment]


def _flowers_own(array: Array) -> bool:
    from flwr.common.constant import SType

    return array.stype == SType.NUMPY


def _with(array: Array, data: bytes) -> Array:
    return Array(dtype=array.dtype, shape=tuple(array.shape), stype=array.stype, data=data)
