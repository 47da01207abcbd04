"""A site's part in witnessing: it tells how far its logs went, and keeps how far others' did."""

import logging
import threading
from collections.abc import Mapping
from typing import Any

from lepton_client.site import Site
from lepton_common.chain import GENESIS, ChainRecord
from lepton_common.errors import AuditRolledBack, HeadsInvalid, LedgerRolledBack
from lepton_common.identity.heads import Head, Heads, WitnessFile, brief, read_witnessed

_FILE, _HOUR_S = "witnessed.json", 3600.0
_LOG = logging.getLogger("lepton.agent")


class Witnessing:
    """What a site has seen of its own and of others' logs."""

    def __init__(self, site: Site) -> None:
        """Opens the site's file of statements.

        Raises:
            HeadsInvalid: it is damaged.
        """
        self._site, self._file = site, WitnessFile(site.folder / _FILE)
        self._lock = threading.Lock()
        self._logged: dict[str, float] = {}

    def report(self, about: Mapping[str, Any]) -> str:
        """Returns the site's newest heads, signed, as the door lets them out.

        Args:
            about: what leaves beside them, for the log.
        """
        site = self._site
        return site.door.report(site.key, site.roster.federation, site.file.name, about)

    def held(self) -> list[str]:
        """Returns the coordinator's own statements as they are held here, one about each site."""
        return [text for _, text in self._file.all(self._site.roster)]

    def take(self, text: str) -> None:
        """Takes a statement: one about this site must fit its logs, others are kept.

        Raises:
            AuditRolledBack, LedgerRolledBack: this site's logs lack what was witnessed.
        """
        roster = self._site.roster
        try:
            heads, time = read_witnessed(text, roster)
        except HeadsInvalid as error:
            _LOG.warning("What came is no good statement: %s", error)
            return
        if heads.site == self._site.file.name:
            self._check_own(heads)
        try:
            with self._lock:
                new = self._file.keep(text, roster)
        except AuditRolledBack as error:
            self._note("rolled back", heads, time)
            _LOG.warning("%s", error)
            return
        if new and heads.site != self._site.file.name:
            self._note("witnessed", heads, time)

    def _note(self, kind: str, heads: Heads, time: float) -> None:
        """Puts a statement on record, about each site once an hour."""
        last = self._logged.get(kind + heads.site)
        if last is None or time - last >= _HOUR_S:
            self._logged[kind + heads.site] = time
            self._site.audit.append(kind, brief(heads, time))

    def _check_own(self, heads: Heads) -> None:
        if not _holds(self._site.audit.records, heads.audit):
            raise AuditRolledBack(
                f"This site's audit log held {heads.audit.length} records when it was witnessed, "
                "and lacks the last of them: an older copy was put back. Restore the newest one, "
                "or retire this site's key and data."
            )
        if not _holds(self._site.ledger.records, heads.ledger):
            raise LedgerRolledBack(
                f"This site's privacy ledger held {heads.ledger.length} entries when it was "
                "witnessed, and lacks the last of them: an older copy was put back. Restore the "
                "newest one, or retire this site's data."
            )


def _holds(records: list[ChainRecord], head: Head) -> bool:
    if head.length == 0:
        return head.hash == GENESIS
    return head.length <= len(records) and records[head.length - 1].hash == head.hash
