"""Which messages a site has answered, so that none is answered twice: read from its audit log.

Each answer is on record before it leaves, so a message that is delivered again, to this process
or to the next, finds its id there.
"""

from lepton_common.audit import AuditLog


class Answered:
    """A site's memory of its answers."""

    def __init__(self, audit: AuditLog) -> None:
        self._audit, self._seen = audit, 0
        self._ids: set[str] = set()

    def __contains__(self, message_id: object) -> bool:
        """Whether a message, by its id, was answered or refused."""
        # Another thread may add records meanwhile: about the log's own heads.
        new = self._audit.records[self._seen :]
        self._seen += len(new)
        self._ids |= {r.body["reply_to"] for r in new if r.kind in ("release", "refusal")}
        return message_id in self._ids
