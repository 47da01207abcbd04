"""A site's audit log as a person reads it: when, what run, what left, and what protects it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from lepton_common.chain import ChainRecord

_WORDS = {
    "open": "the log was begun",
    "proposed": "a run was proposed",
    "engine": "gradients are computed by {engine}",
    "refusal": "refused: {error}",
    "model_approved": "the operator approved the models in {package} {version}, signed by {by}",
    "model_removed": "the operator removed the models in {package}",
    "succession": "{charges} charges came over from an earlier key",
}
_ITEMS = {
    "site": "public facts",
    "update": "update",
    "loss": "loss",
    "secagg": "message of the secure sum",
    "masked": "masked update",
    "receipt": "receipt",
}
_DECIDED = {"approved": "the operator approved the run", "refused": "the operator refused the run"}


@dataclass(frozen=True)
class Line:
    """One record of the log.

    Attributes:
        number: its place in the chain.
        at: when, in UTC.
        run: the run it belongs to; "" where it names none.
        round: of the run; None where it names none.
        what: what happened, or what left.
        bytes: how many left.
        protection: what protects what left: "" where nothing did.
    """

    number: int
    at: datetime
    run: str
    round: int | None
    what: str
    bytes: int
    protection: str

    @property
    def bare(self) -> bool:
        """Whether something left that was computed from records, without any protection."""
        return "nothing" in self.protection


def lines(records: list[ChainRecord], run: str | None = None) -> list[Line]:
    """Returns the records of a log, or those of a run; refusals that repeat as one line."""
    found: list[Line] = []
    rounds: dict[str, ChainRecord] = {}  # of secure sums, by what most of their records name
    times = 1
    for record in records:
        spec = str(record.body.get("spec"))
        if "run" in record.body:
            rounds[spec] = record
        of = rounds[spec].body if "spec" in record.body and spec in rounds else record.body
        if run not in (None, of.get("run")):
            continue
        told = line(record, of)
        same = record.kind == "refusal" and found and found[-1].what.split(",")[0] == told.what
        times = times + 1 if same else 1
        if same:
            found.pop()
            told = replace(told, what=f"{told.what}, {times} times")
        found.append(told)
    return found


def line(record: ChainRecord, of: Mapping[str, Any] | None = None) -> Line:
    """Returns a record of a log as a person reads it; ``of`` names run and round in its place."""
    of = record.body if of is None else of
    body, what, size, protection = record.body, record.kind, 0, ""
    if record.kind == "release":
        stage = f"{str(body['stage']).lower()}: " if "stage" in body else ""
        what = stage + ", ".join(_ITEMS[str(item["name"])] for item in body["items"])
        size = sum(int(item["bytes"]) for item in body["items"])
        found = [_protection(item["provenance"]) for item in body["items"]]
        protection = ", ".join(dict.fromkeys(sorted(found)))
    elif record.kind == "decided":
        what = _DECIDED.get(str(body["verdict"]), what)
    elif record.kind in _WORDS:
        what = _WORDS[record.kind].format(**body)
    return Line(
        number=record.sequence,
        at=datetime.fromtimestamp(record.time, UTC),
        run=str(of.get("run", "")),
        round=int(of["round"]) if "round" in of else None,
        what=what,
        bytes=size,
        protection=protection,
    )


def _protection(provenance: object) -> str:
    """Returns what protects an item, in words, as the log has it."""
    if isinstance(provenance, dict):
        kinds = {"secagg": "masked", "dp": "noised"}
        return " and ".join(word for kind, word in kinds.items() if kind in provenance)
    return "nothing" if provenance == "unprotected" else str(provenance)
