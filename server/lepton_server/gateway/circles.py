"""Who takes part in a run, and who may know of it: of a study's run, its sites and people alone."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from lepton_common.errors import LeptonError
from lepton_common.identity.roster import Person
from lepton_common.identity.study import Study
from lepton_server.gateway.runs import Runs


@dataclass(frozen=True)
class Circles:
    """Answers by the newest version of a study that the partners have signed, also once it is over.

    Where that cannot be told, it is nobody, but for administrators.

    Attributes:
        runs: the coordinator's.
        studies: returns the newest versions of all studies, by name.
    """

    runs: Runs
    studies: Callable[[], Mapping[str, Study]]

    def takes_part(self, site: str, run: str) -> bool:
        """Says whether a site is asked anything for a run, and told of it."""
        try:
            name = self.runs.study_of(run)
        except LeptonError:
            return False
        study = self.studies().get(name or "")
        return name is None or (study is not None and site in study.sites)

    def knows(self, person: Person | None, run: str) -> bool:
        """Says whether someone may know of a run; None is who is in the roster no more."""
        if person is None:
            return False
        try:
            name = self.runs.study_of(run)
        except LeptonError:
            return False
        study = self.studies().get(name or "")
        people = [*study.leads, *study.auditors] if study else []
        return name is None or person.name in people or "administrator" in person.roles

    def leads(self, person: Person, run: str) -> bool:
        """Says whether someone who leads runs leads this one."""
        name = self.runs.study_of(run)
        study = self.studies().get(name or "")
        return name is None or (study is not None and person.name in study.leads)
