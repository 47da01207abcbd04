"""The coordinator as a witness: it counter-signs how far sites' logs went, and keeps the newest."""

import logging
import threading
import time
from collections.abc import Iterable
from pathlib import Path

from lepton_common.audit import AuditLog
from lepton_common.errors import AuditRolledBack, HeadsInvalid
from lepton_common.identity.heads import (
    Heads,
    WitnessFile,
    brief,
    counter_sign,
    read_heads,
)
from lepton_common.identity.keys import SigningKey
from lepton_server.gateway.published import Published

_FILE, _HOUR_S = "witnessed.json", 3600.0
_LOG = logging.getLogger("lepton.server")


class Witness:
    """What the coordinator has seen of sites' logs; its audit log keeps one an hour of each."""

    def __init__(
        self, folder: Path, key: SigningKey, published: Published, audit: AuditLog
    ) -> None:
        """Opens the file of statements in the coordinator's folder.

        Raises:
            HeadsInvalid: it is damaged.
        """
        self._file, self._key = WitnessFile(folder / _FILE), key
        self._published, self._audit = published, audit
        self._lock = threading.Lock()
        self._logged: dict[tuple[str, str], float] = {}

    def sites(self) -> set[str]:
        """Returns the sites of which something was seen."""
        return {name for name, _ in self._file.all(self._published.roster)}

    def statement(self, site: str) -> str:
        """Returns the newest statement about a site, or ""."""
        found = self._file.newest(site, self._published.roster)
        return found[0] if found else ""

    def see(self, site: str, text: str) -> tuple[str, bool]:
        """Counter-signs a site's heads; returns the statement, and whether it is new.

        Raises:
            HeadsInvalid: they are not the site's.
            AuditRolledBack: its logs lack what they held before.
        """
        roster, now = self._published.roster, time.time()
        heads = read_heads(text, roster)
        if heads.site != site:
            raise HeadsInvalid(f"{site} sent heads of {heads.site}.")
        with self._lock:
            try:
                new = self._file.keep(counter_sign(self._key, text, now), roster)
            except AuditRolledBack as error:
                _LOG.warning("%s", error)
                self._note("rolled back", heads, now)
                raise
            if new:
                self._note("witnessed", heads, now)
            return self.statement(site), new

    def _note(self, kind: str, heads: Heads, now: float) -> None:
        """Puts on record what was seen: of each site once an hour, whatever it sends."""
        if now - self._logged.get((kind, heads.site), 0.0) >= _HOUR_S:
            self._logged[kind, heads.site] = now
            self._audit.append(kind, brief(heads, now))

    def recall(self, statements: Iterable[str]) -> None:
        """Takes back statements that sites have kept: an older copy may have been put back here."""
        for text in list(statements)[: len(self._published.roster.members)]:
            try:
                with self._lock:
                    self._file.keep(text, self._published.roster)
            except (HeadsInvalid, AuditRolledBack) as error:
                _LOG.warning("What a site has kept is not taken: %s", error)
