"""Which rounds of secure aggregation this site took part in, and which updates they used up.

Read from the site's audit log, where each reply is on disk before it leaves: counters and
records outlive a crash, and rolling them back shows.
"""

from collections import defaultdict
from typing import NamedTuple

from lepton_client.participant import Participant, Stage
from lepton_common.audit import AuditLog
from lepton_common.errors import InconsistentView, ReplayError, StateError, UpdateAlreadySpent
from lepton_common.privacy.ledger_file import CARRIED
from lepton_common.secagg.grouping import Draw
from lepton_common.secagg.spec import RoundSpec

_MOST_DRAWS = 3  # of groups for one model, beside those that only leave sites out


class _Reveal(NamedTuple):
    """One draw in which the site revealed its secret; ``fewer``: it only left sites out."""

    commits: str
    members: frozenset[str]
    fewer: bool


class SpentRounds:
    """A site's memory of its rounds."""

    def __init__(self, audit: AuditLog) -> None:
        self._audit, self._seen = audit, 0
        self._last: dict[str, int] = {}
        self._answered: set[tuple[str, str]] = set()
        self._masked: dict[str, dict[str, str]] = defaultdict(dict)  # model -> spec -> cohort
        self._renounced: set[str] = set()
        self._revealed: dict[str, dict[str, _Reveal]] = defaultdict(dict)  # model -> draw

    def check_new(self, spec: RoundSpec) -> None:
        """Checks that the site may begin this round.

        Advertising a retry says: the earlier round was never unmasked here, and never will be.

        Raises:
            ReplayError: its number is not above the last one of the run.
            UpdateAlreadySpent: an update on the same model has left, and the round does not
                declare it, has another cohort, or the site helped to unmask it.
        """
        self._catch_up()
        last = self._last.get(spec.run_id.hex(), 0)
        if spec.round <= last:
            raise ReplayError(f"Round {spec.round} is not above {last}, this site's last one.")
        self.check_masking(spec)

    def check_masking(self, spec: RoundSpec) -> None:
        """Checks that no update on the same model has left but in rounds that this one repeats.

        Asked when a round begins and again when it masks: several may have begun side by side.

        Raises:
            UpdateAlreadySpent: see `check_new`.
        """
        self._catch_up()
        declared = {earlier.hex() for earlier in spec.retry_of}
        for earlier, cohort in self._masked[spec.model_hash.hex()].items():
            if earlier == spec.hash.hex():
                continue
            if earlier not in declared:
                raise UpdateAlreadySpent(
                    "An update on this very model has left before: the run needs another seed."
                )
            if (earlier, Stage.UNMASKED.name) in self._answered:
                raise UpdateAlreadySpent("This site has helped to unmask a sum on this model.")
            if cohort != spec.roster_hash.hex():
                raise UpdateAlreadySpent("A retry must keep the cohort of the round it repeats.")

    def check_stage(self, spec: RoundSpec, stage: Stage) -> None:
        """Checks that a stage may be answered, whatever the sealed file says.

        The unmasking's one answer may be sent again, but never once a retry has begun.

        Raises:
            StateError: it was answered before, or the site has renounced the round.
        """
        self._catch_up()
        name = spec.hash.hex()
        if name in self._renounced:
            raise StateError("This site has given the round up by taking part in a retry.")
        if stage is not Stage.UNMASKED and (name, stage.name) in self._answered:
            raise StateError("This stage was answered before.")
        if stage is Stage.MASKED:
            self.check_masking(spec)

    def about(self, part: Participant) -> dict[str, str | int]:
        """Returns what the release of a stage's answer puts on record."""
        spec, stage = part.spec, part.stage
        facts: dict[str, str | int] = {"spec": spec.hash.hex(), "stage": stage.name}
        if stage is Stage.ADVERTISED:
            retry_of = " ".join(earlier.hex() for earlier in spec.retry_of)
            facts |= {"run_id": spec.run_id.hex(), "attempt": spec.round, "retry_of": retry_of}
        if stage is Stage.MASKED:
            facts |= {"model": spec.model_hash.hex(), "cohort": spec.roster_hash.hex()}
        return facts

    def check_reveal(self, draw: Draw, commits: str) -> dict[str, str | int]:
        """Checks that the site may reveal its secret of a draw; returns what goes on record.

        Each draw that is given up after the secrets are known is one more throw of the dice for
        whoever made it fail. So there are few for one model, except where each leaves out a site
        of all earlier ones, as a server must that goes on without those who failed.

        Raises:
            ReplayError: the site has revealed it against other commitments, or too many others.
        """
        self._catch_up()
        before, members = self._revealed[draw.model_hash.hex()], _members(draw)
        known = before.get(draw.hash.hex())
        if known is not None and known.commits != commits:
            raise ReplayError("This site has revealed its secret against other commitments.")
        fewer = all(members < earlier.members for earlier in before.values())
        others = sum(not earlier.fewer for earlier in before.values())
        if known is None and not fewer and others >= _MOST_DRAWS:
            raise ReplayError(f"Groups for this model were drawn {_MOST_DRAWS} times already.")
        return {
            "commits": commits,
            "drawn_for": draw.model_hash.hex(),
            "members": " ".join(sorted(members)),
        }

    def check_drawn(self, draw: Draw, commits: str) -> None:
        """Checks that these are the groups in whose draw the site took part.

        Raises:
            InconsistentView: it revealed its secret against other commitments, or not at all.
        """
        self._catch_up()
        known = self._revealed[draw.model_hash.hex()].get(draw.hash.hex())
        if known is None or known.commits != commits:
            raise InconsistentView("This site has not taken part in that draw of groups.")

    def _catch_up(self) -> None:
        for record in self._audit.records[self._seen :]:
            if record.kind not in ("release", CARRIED):
                continue
            if "spec" in record.body:
                self._note(record.body)
            if "commits" in record.body:
                self._note_reveal(record.body)
        self._seen = len(self._audit.records)

    def _note_reveal(self, body: dict[str, str]) -> None:
        before, members = self._revealed[body["drawn_for"]], frozenset(body["members"].split())
        # The first is no redraw that leaves someone out.
        fewer = bool(before) and all(members < earlier.members for earlier in before.values())
        before.setdefault(body["draw"], _Reveal(body["commits"], members, fewer))

    def _note(self, body: dict[str, str]) -> None:
        spec, stage = body["spec"], body["stage"]
        self._answered.add((spec, stage))
        if stage == Stage.ADVERTISED.name:
            self._last[body["run_id"]] = int(body["attempt"])
            self._renounced |= set(body["retry_of"].split())
        if stage == Stage.MASKED.name:
            self._masked[body["model"]][spec] = body["cohort"]


def _members(draw: Draw) -> frozenset[str]:
    return frozenset(name for name, _ in draw.roster)
