"""What the partners have published, as this coordinator's folder holds it; verified when read.

`lepton server join` puts newer versions there, also while the coordinator runs.
"""

import logging
from collections.abc import Mapping
from datetime import UTC, date, datetime
from pathlib import Path

from lepton_common.errors import IdentityError, RosterInvalid, ServerFailed
from lepton_common.identity.roster import Coordinator, check_newer, read_roster
from lepton_common.identity.study import Study, newest_studies, read_studies, sites_before
from lepton_server.gateway.proxy import admitted

ROSTER_FILE, ROOT_FILE, STUDIES = "roster.json", "roster.root", "studies"
_LOG = logging.getLogger("lepton.server")


class Published:
    """A federation's roster and studies.

    Attributes:
        roster: its newest version.
        text: of the roster file.
        root: text of the file of its root.
        coordinator: whom the roster names.
        studies: those that are good, with their files' texts, by name.
        newest: the newest versions of all, also of those that are over.
    """

    def __init__(self, folder: Path, public_key: str) -> None:
        """Reads a folder.

        Args:
            folder: the coordinator's.
            public_key: its own, in hexadecimal.

        Raises:
            IdentityError: the roster is not good.
            ServerFailed: it names another coordinator.
        """
        self._folder, self._key = folder, public_key
        self.text = self.root = ""
        self.studies: dict[str, tuple[Study, str]] = {}
        self.newest: dict[str, Study] = {}
        self._before: dict[str, set[str]] = {}
        self._seen = self._stamps()
        self._read()
        self.roster.check_date(_today())

    def look(self) -> bool:
        """Takes over what is new in the folder, and says whether anything is.

        What does not verify is not taken over; the log says so, and what was before goes on.

        Raises:
            ServerFailed: a newer roster names another coordinator.
        """
        stamps = self._stamps()
        if stamps == self._seen:
            return False
        self._seen = stamps
        try:
            self._read()
        except IdentityError as error:
            _LOG.warning("What is new in %s is not taken over: %s", self._folder, error)
            return False
        return True

    def studies_for(self, site: str, held: Mapping[str, int]) -> list[str]:
        """Returns the studies' texts that a site needs: its own, and those that dropped it."""
        return [
            text
            for study, text in self.studies.values()
            if study.version > held.get(study.name, 0) and self.hears_of(site, study)
        ]

    def hears_of(self, site: str, study: Study) -> bool:
        """Says whether a site is told of a study: it is in it or was, whatever it says."""
        return site in study.sites or site in self._before.get(study.name, ())

    def days_left(self) -> int | None:
        """Returns how many days the roster is good for after today; None where it has no end."""
        until = self.roster.until
        return None if until is None else (date.fromisoformat(until) - _today()).days

    def _read(self) -> None:
        path, pin = self._folder / ROSTER_FILE, self._folder / ROOT_FILE
        try:
            text, root = path.read_text(encoding="utf-8"), pin.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            raise RosterInvalid(
                f"Cannot read {path} and {pin.name} beside it: 'lepton server join' brings them."
            ) from None
        roster = read_roster(text, root.strip())
        if self.text:
            check_newer(self.text, text)
        coordinator = roster.coordinator
        if coordinator is None or coordinator.public_key != self._key:
            raise ServerFailed("The roster names another coordinator than this one.")
        admitted(roster)
        self.roster, self.text, self.root = roster, text, root
        self.coordinator: Coordinator = coordinator
        found = read_studies(self._folder / STUDIES, roster, _today())
        self.studies = {study.name: (study, text) for study, text in found}
        self.newest = newest_studies(self._folder / STUDIES, roster)
        self._before = sites_before(self._folder / STUDIES, roster)

    def _stamps(self) -> list[tuple[str, int]]:
        paths = [self._folder / ROSTER_FILE, *sorted((self._folder / STUDIES).glob("*.json"))]
        return [(path.name, path.stat().st_mtime_ns) for path in paths if path.exists()]


def _today() -> date:
    return datetime.now(UTC).date()
