"""The one way out of a site: allow-list, provenance, log, and only then a reply.

Nothing else in a site constructs Flower replies (a test over the syntax tree sees to it). Each
item that leaves is on the list below with the protections that it may carry. With DP on, each
item computed from records must be covered by the event that was charged for this very release.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeGuard

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict

from lepton_client.hosted.leaves import Leaves
from lepton_client.hosted.ledger import HostLedger
from lepton_client.ledger import Charge, Ledger
from lepton_common.arrays import Vector, digest_of, pack
from lepton_common.audit import AuditLog
from lepton_common.chain import head_of
from lepton_common.errors import DoorRefused, TokenGone
from lepton_common.hosting import Enrolled, HostFacts, ManyReceipts, Vectors, pack_vectors
from lepton_common.identity.heads import Head, Heads, sign_heads
from lepton_common.identity.keys import SigningKey
from lepton_common.messages import Receipt, SiteFacts
from lepton_common.policy import SitePolicy
from lepton_common.privacy.provenance import PROTOCOL, Protection, Provenance
from lepton_common.stages import masked_record
from lepton_common.strict import to_json

_REFUSED = 100  # error code of a named refusal; Flower's own codes end at 8

_COMPUTED = frozenset({Protection.DP, Protection.UNPROTECTED})
_MASKED = frozenset({Protection.SECAGG})
Value = Vector | float | bytes | SiteFacts | Receipt | HostFacts | Enrolled | ManyReceipts
_ALLOWED: dict[str, tuple[type, frozenset[Protection]]] = {
    "update": (np.ndarray, _COMPUTED),
    "loss": (float, _COMPUTED),
    "site": (SiteFacts, frozenset({Protection.PUBLIC})),
    "receipt": (Receipt, frozenset({Protection.PROTOCOL})),
    "secagg": (bytes, frozenset({Protection.PROTOCOL})),
    "masked": (bytes, _MASKED),
    "host": (HostFacts, frozenset({Protection.PUBLIC})),
    "enrolled": (Enrolled, frozenset({Protection.PUBLIC})),
    "receipts": (ManyReceipts, frozenset({Protection.PROTOCOL})),
}


@dataclass(frozen=True)
class Outbound:
    """Something that is about to leave.

    Attributes:
        name: a name on the door's list.
        value: the value, of the type that the list gives.
        provenance: what protects it.
    """

    name: str
    value: Value
    provenance: Provenance


class Door:
    """A site's door."""

    def __init__(self, audit: AuditLog, ledger: Ledger | HostLedger, policy: SitePolicy) -> None:
        self._audit, self._ledger, self._policy = audit, ledger, policy

    def release(
        self,
        message: Message,
        items: list[Outbound],
        about: Mapping[str, str | int],
        charge: Charge | None = None,
    ) -> Message:
        """Checks, logs and then builds the reply to ``message``.

        Args:
            message: what is being answered.
            items: what shall leave.
            about: the run and the round it belongs to, for the log.
            charge: the ledger's charge for this release; with it, DP is on.

        Raises:
            DoorRefused: an item is not on the list, not of its type, without the protection it
                needs, or the charge is used up; nothing has left and nothing is logged.
        """
        for item in items:
            self._check(item, charge)
        if charge is not None:
            assert isinstance(self._ledger, Ledger), "a host releases for its sites by release_many"
            self._ledger.redeem(charge)
        arrays = {item.name: pack(item.value) for item in items if _is_vector(item.value)}
        contents = {
            item.name: arrays[item.name].data if item.name in arrays else _encode(item.value)
            for item in items
        }
        record = self._audit.append(
            "release",
            {
                **about,
                "reply_to": message.metadata.message_id,
                "charge": charge.id if charge else None,
                "items": [
                    {
                        "name": item.name,
                        "bytes": len(contents[item.name]),
                        "sha256": digest_of(contents[item.name]),
                        "provenance": item.provenance.record(),
                    }
                    for item in items
                ],
            },
        )
        stamped = [replace(item, value=self._stamp(item.value, record.hash)) for item in items]
        return Message(_records(stamped, contents, arrays, record.hash), reply_to=message)

    def release_many(
        self,
        message: Message,
        updates: Vectors,
        losses: list[float] | None,
        receipts: ManyReceipts,
        provenance: Provenance,
        about: Mapping[str, str | int],
        charge: Charge | None,
        leaves: Leaves,
        ledger: HostLedger,
    ) -> Message:
        """Checks each of some hosted sites' releases, logs them in one record, and then replies.

        Args:
            message: what is being answered.
            updates: one of each site, float32, shape [k, d].
            losses: of each site, where they leave.
            receipts: of each site, in the same order.
            provenance: what protects the updates, and the losses.
            about: the run and the round they belong to, for the log.
            charge: the ledger's charge for these releases; with it, DP is on.
            leaves: where a line for each site goes, whose Merkle root the record holds.
            ledger: what was charged, and to whom.

        Raises:
            DoorRefused: as `release`; nothing has left and nothing is logged.
        """
        self._check(Outbound("receipts", receipts, PROTOCOL), charge)
        counts = {len(updates), len(receipts.names), len(set(receipts.names)), len(receipts.of)}
        if len(counts | ({len(losses)} if losses is not None else set())) != 1:
            raise DoorRefused("Each site releases one update, under its own name.")
        for update in updates:
            self._check(Outbound("update", update, provenance), charge)
        for loss in losses or []:
            self._check(Outbound("loss", loss, provenance), charge)
        if charge is not None:
            ledger.redeem(charge, receipts.names)
        array, said = pack_vectors(updates), to_json(receipts).encode()
        digests = [[name] for name in receipts.names]
        for values in (array.data, np.array(losses or [], "<f8").tobytes()):
            size = len(values) // max(1, len(digests))
            for number, digest in enumerate(digests if size else []):
                digest.append(digest_of(memoryview(values)[number * size : (number + 1) * size]))
        lines = [json.dumps(digest).encode() for digest in digests]
        record = self._audit.append(
            "releases",
            {
                **about,
                "reply_to": message.metadata.message_id,
                "charge": charge.id if charge else None,
                "leaves": leaves.add(lines) if lines else None,
                "failed": receipts.failed,
                "bytes": {"update": updates.shape[1] * 4, "loss": 0 if losses is None else 8},
                "provenance": provenance.record(),
                # Before the head of this record is stamped into them.
                "receipts": {
                    "bytes": len(said),
                    "sha256": digest_of(said),
                    "provenance": PROTOCOL.record(),
                },
            },
        )
        # A host's charges are in this very log, whose newest record may be another answer's by now.
        stamped = [
            replace(receipt, audit_head=record.hash, ledger_head=record.hash)
            for receipt in receipts.receipts
        ]
        content = RecordDict(
            {
                "updates": ArrayRecord({"vector": array}),
                "metrics": MetricRecord() if losses is None else MetricRecord({"loss": losses}),
                "receipts": ConfigRecord({"json": to_json(replace(receipts, receipts=stamped))}),
            }
        )
        return Message(content, reply_to=message)

    def report(self, key: SigningKey, federation: str, site: str, about: Mapping[str, Any]) -> str:
        """Logs and signs how far audit log and ledger went, for others to witness.

        Args:
            key: the site's.
            federation: its name.
            site: the site's name.
            about: what leaves beside it, for the log.
        """
        entries = self._ledger.records
        ledger = Head(hash=head_of(entries), length=len(entries))
        body = {**about, "ledger": ledger.hash, "ledger_length": ledger.length}
        record = self._audit.records[-1]
        # A report that was just made is made again without a further record.
        if (record.kind, record.body) != ("heads", body):
            record = self._audit.append("heads", body)
        audit = Head(hash=record.hash, length=record.sequence + 1)
        return sign_heads(key, Heads(federation=federation, site=site, audit=audit, ledger=ledger))

    def refuse(self, message: Message, error: BaseException) -> Message:
        """Logs a failure and answers with its name; its text stays at the site."""
        try:
            self._audit.append(
                "refusal",
                {"reply_to": message.metadata.message_id, "error": type(error).__name__},
            )
        except (OSError, TokenGone) as unwritten:
            return refuse_without_site(message, unwritten)
        return refuse_without_site(message, error)

    def _stamp(self, value: Value, audit_head: str) -> Value:
        """Puts the newest heads of audit log and ledger, this release included, on a value."""
        if isinstance(value, Receipt):
            return replace(value, audit_head=audit_head, ledger_head=self._ledger.head)
        if isinstance(value, SiteFacts | HostFacts):
            return replace(value, audit_head=audit_head)
        return value

    def _check(self, item: Outbound, charge: Charge | None) -> None:
        kind, protections = _ALLOWED.get(item.name, (type(None), frozenset[Protection]()))
        protection = item.provenance.protection
        if not isinstance(item.value, kind):
            raise DoorRefused(f"'{item.name}' is not on the door's list with that type.")
        if isinstance(item.value, np.ndarray) and (
            item.value.dtype != np.float32 or item.value.ndim != 1
        ):
            raise DoorRefused(f"'{item.name}' should be one flat float32 vector.")
        if protection not in protections:
            raise DoorRefused(f"'{item.name}' may not leave as {protection.value}.")
        if protections not in (_COMPUTED, _MASKED):
            return
        if charge is not None and item.provenance.event != charge.event:
            raise DoorRefused(f"With DP on, '{item.name}' needs the event charged for it.")
        if charge is None and protection is Protection.DP:
            raise DoorRefused(f"'{item.name}' claims DP, but nothing was charged for it.")
        if charge is None and not self._policy.allow_without_dp:
            raise DoorRefused(f"This site's policy keeps '{item.name}' from leaving without DP.")
        if protections is _COMPUTED and not self._policy.allow_without_secagg:
            raise DoorRefused(f"This site's policy keeps '{item.name}' from leaving unmasked.")


def refuse_without_site(message: Message, error: BaseException) -> Message:
    """Answers with the name of an error where no site could be opened to log it."""
    return Message(Error(_REFUSED, type(error).__name__), reply_to=message)


def _is_vector(value: Value) -> TypeGuard[Vector]:
    return isinstance(value, np.ndarray)


def _encode(value: Value) -> bytes:
    if isinstance(value, bytes):
        return value
    if isinstance(value, float):
        return np.float64(value).tobytes()
    return to_json(value).encode()


def _records(
    items: list[Outbound], contents: Mapping[str, bytes], arrays: Mapping[str, Array], head: str
) -> RecordDict:
    content = RecordDict()
    losses: dict[str, int | float | list[int] | list[float]] = {}
    for item in items:
        if item.provenance.protection is Protection.SECAGG:
            content[item.name] = masked_record(contents[item.name])
        elif isinstance(item.value, bytes):
            content[item.name] = ConfigRecord({"body": item.value, "head": head})
        elif item.name in arrays:
            content[item.name] = ArrayRecord({"vector": arrays[item.name]})
            content["metrics"] = MetricRecord()
        elif isinstance(item.value, float):
            losses[item.name] = item.value
        else:
            content[item.name] = ConfigRecord({"json": to_json(item.value)})
    if losses:
        content["metrics"] = MetricRecord(losses)
    return content
