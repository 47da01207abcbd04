"""Reads the records of a Flower message strictly: any other record, field or type is refused."""

from typing import TypeVar

from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from lepton_common.errors import MalformedMessage
from lepton_common.strict import parse_json

T = TypeVar("T")
R = TypeVar("R", ArrayRecord, ConfigRecord, MetricRecord)


def expect_records(content: RecordDict, names: set[str]) -> None:
    """Checks that a message holds these records and no other.

    Raises:
        MalformedMessage: it does not.
    """
    if set(content) != names:
        raise MalformedMessage(
            f"Expected the records {sorted(names)}, got {len(content)} others; "
            "are both sides on the same version?"
        )


def records_of(content: RecordDict, kind: type[R]) -> dict[str, R]:
    """Returns the records of one kind, by name.

    What Flower's `array_records` and their like return holds itself and the whole message, a model
    perhaps, until Python looks for such circles.
    """
    return {name: found for name, found in content.items() if isinstance(found, kind)}


def read_text(cls: type[T], content: RecordDict, name: str) -> T:
    """Parses a record of one JSON text.

    Raises:
        MalformedMessage: anything but exactly that.
    """
    fields = records_of(content, ConfigRecord).get(name)
    text = fields.get("json") if fields is not None and len(fields) == 1 else None
    if not isinstance(text, str):
        raise MalformedMessage(f"The record '{name}' should hold one JSON text.")
    try:
        return parse_json(cls, text)
    except ValueError as error:
        raise MalformedMessage(f"The record '{name}' is {error}.") from None


def read_vector(content: RecordDict, name: str) -> Array:
    """Returns the one array, ``vector``, of a record.

    Raises:
        MalformedMessage: anything but exactly that.
    """
    arrays = records_of(content, ArrayRecord).get(name)
    if arrays is None or set(arrays) != {"vector"}:
        raise MalformedMessage(f"The record '{name}' should hold one array, 'vector'.")
    return arrays["vector"]
