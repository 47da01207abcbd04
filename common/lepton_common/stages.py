"""The stages of secure aggregation as Flower's records.

A stage is the ConfigRecord ``secagg`` with its name, the round and bytes in SA1's own encoding;
the masked vector rides beside it as the ArrayRecord ``masked``. Parsing is strict.
"""

import re
from dataclasses import dataclass
from enum import Enum

from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from lepton_common.content import expect_records, read_text, read_vector, records_of
from lepton_common.errors import MalformedMessage
from lepton_common.messages import Receipt, TrainRequest
from lepton_common.strict import to_json

_MASKED = "lepton.masked.u8"


class SecAggStage(Enum):
    """The exchanges of SA1, by what the server asks for; the first two draw groups, if any."""

    COMMIT = "commit"
    REVEAL = "reveal"
    ADVERTISE = "advertise"
    SHARE = "share"
    MASK = "mask"
    SIGN = "sign"
    UNMASK = "unmask"


DRAWING = frozenset({SecAggStage.COMMIT, SecAggStage.REVEAL})
_RECORDS = {
    SecAggStage.ADVERTISE: {"secagg", "request"},
    SecAggStage.MASK: {"secagg", "request", "model"},
}


@dataclass(frozen=True)
class StageRequest:
    """Asks a site for its part in one stage of secure aggregation.

    Attributes:
        stage: which one.
        spec: the encoded draw at ``commit`` and ``reveal``, the encoded round specification at
            ``advertise``, its hash afterwards.
        body: what the stage shows the site, in SA1's encoding.
    """

    stage: SecAggStage
    spec: bytes
    body: bytes


def stage_content(
    request: StageRequest, train: TrainRequest | None = None, model: ArrayRecord | None = None
) -> RecordDict:
    """Returns the records of one stage of secure aggregation."""
    fields: dict[str, str | bytes] = {
        "stage": request.stage.value,
        "spec": request.spec,
        "body": request.body,
    }
    content = RecordDict({"secagg": ConfigRecord(dict(fields))})
    if train is not None:
        content["request"] = ConfigRecord({"json": to_json(train)})
    if model is not None:
        content["model"] = model
    return content


def read_stage(content: RecordDict, *, alone: bool = True) -> StageRequest:
    """Parses one stage of secure aggregation.

    Args:
        content: what came.
        alone: whether Lepton's own records may stand beside it only.

    Raises:
        MalformedMessage: anything but exactly that.
    """
    fields = records_of(content, ConfigRecord).get("secagg")
    if fields is None or set(fields) != {"stage", "spec", "body"}:
        raise MalformedMessage("The record 'secagg' should hold a stage, a round and a body.")
    name, spec, body = fields["stage"], fields["spec"], fields["body"]
    if not isinstance(spec, bytes) or not isinstance(body, bytes):
        raise MalformedMessage("The record 'secagg' should hold bytes.")
    try:
        stage = SecAggStage(name)
    except ValueError:
        raise MalformedMessage("The record 'secagg' names no stage.") from None
    if alone:
        expect_records(content, _RECORDS.get(stage, {"secagg"}))
    return StageRequest(stage, spec, body)


def read_request(content: RecordDict) -> TrainRequest:
    """Parses the training request that rides in a stage of secure aggregation.

    Raises:
        MalformedMessage: anything but exactly that.
    """
    return read_text(TrainRequest, content, "request")


def read_stage_reply(content: RecordDict) -> bytes:
    """Returns what a site answered to a stage without a vector.

    Raises:
        MalformedMessage: anything but exactly that.
    """
    expect_records(content, {"secagg"})
    return _answer(content)[0]


def read_head(content: RecordDict) -> str:
    """Returns the newest hash of the audit log of a site that answered a stage.

    Raises:
        MalformedMessage: there is none.
    """
    return _answer(content)[1]


def read_masked(content: RecordDict) -> tuple[bytes, bytes, Receipt]:
    """Parses a masked update: signed header, packed ring elements, receipt.

    Raises:
        MalformedMessage: anything but exactly that.
    """
    expect_records(content, {"secagg", "masked", "receipt"})
    return *_masked(content), read_text(Receipt, content, "receipt")


def read_masked_only(content: RecordDict) -> tuple[bytes, bytes]:
    """Parses a masked update of a plain Flower app: signed header, packed ring elements.

    Raises:
        MalformedMessage: anything but exactly that.
    """
    expect_records(content, {"secagg", "masked"})
    return _masked(content)


def masked_record(packed: bytes) -> ArrayRecord:
    """Returns packed ring elements as a record."""
    array = Array(dtype="uint8", shape=(len(packed),), stype=_MASKED, data=packed)
    return ArrayRecord({"vector": array})


def _answer(content: RecordDict) -> tuple[bytes, str]:
    fields = records_of(content, ConfigRecord).get("secagg", ConfigRecord())
    body, head = fields.get("body"), fields.get("head")
    sound = isinstance(body, bytes) and isinstance(head, str) and len(fields) == 2
    if not sound or re.fullmatch("[0-9a-f]{64}", str(head)) is None:
        raise MalformedMessage("The record 'secagg' should hold a body and an audit log's hash.")
    return body, head  # type: ignore[return-value]


def _masked(content: RecordDict) -> tuple[bytes, bytes]:
    array = read_vector(content, "masked")
    if (array.dtype, array.stype, tuple(array.shape)) != ("uint8", _MASKED, (len(array.data),)):
        raise MalformedMessage("The record 'masked' should hold packed ring elements.")
    return _answer(content)[0], array.data
