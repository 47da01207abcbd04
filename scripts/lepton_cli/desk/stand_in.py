"""What stands around a site in a rehearsal: a watch on its trainer, and other sites without data.

The other sites are real ones in every step but training.
"""

import contextlib
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from lepton_client.site import KEY_FILE, SITE_FILE, Site, SiteFile, open_site
from lepton_client.trainer import Described, Initial, Trained, Trainer, Wanted
from lepton_client.training.conformance import OURS, SINGLE, Conformance
from lepton_common.arrays import Vector
from lepton_common.durable import write_atomic
from lepton_common.identity.keys import SigningKey
from lepton_common.identity.roster import Member, Roster
from lepton_common.messages import TrainRequest
from lepton_common.privacy.plan import PrivacyPlan
from lepton_common.secagg.ring import Integers
from lepton_common.strict import to_json


@dataclass
class Watched:
    """A trainer, and what it returned last; see `lepton_client.trainer.Trainer`.

    Attributes:
        inner: who trains.
        values: the update, or the sum, that it returned.
        seconds: how long all its work took.
    """

    inner: Trainer
    values: Vector | Integers | None = None
    seconds: float = 0.0

    def describe(self) -> Described:
        """Passes on."""
        return self.inner.describe()

    def initial(self, wanted: Wanted) -> Initial:
        """Passes on."""
        return self.inner.initial(wanted)

    def people(self) -> frozenset[bytes]:
        """Passes on."""
        with self._timed():
            return self.inner.people()

    def device(self, request: TrainRequest) -> str:
        """Passes on."""
        return self.inner.device(request)

    def conformance(self, request: TrainRequest) -> Conformance:
        """Passes on."""
        with self._timed():
            return self.inner.conformance(request)

    def train(self, request: TrainRequest, received: Vector) -> Trained:
        """Passes on, and keeps the update."""
        with self._timed():
            trained = self.inner.train(request, received)
        self.values = trained.update
        return trained

    def train_privately(self, request: TrainRequest, received: Vector, plan: PrivacyPlan) -> Vector:
        """Passes on, and keeps the update."""
        with self._timed():
            self.values = self.inner.train_privately(request, received, plan)
        return self.values

    def noised_sum(self, request: TrainRequest, received: Vector, plan: PrivacyPlan) -> Integers:
        """Passes on, and keeps the sum."""
        with self._timed():
            self.values = self.inner.noised_sum(request, received, plan)
        return self.values

    @contextlib.contextmanager
    def _timed(self) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        finally:
            self.seconds += time.monotonic() - began


class NoTrainer:
    """A `lepton_client.trainer.Trainer` that has no data and answers with zeros."""

    def describe(self) -> Described:
        """Says that nothing is there; see `Trainer`."""
        return Described(records=0, units=0, unit="row", input_shape=[1], classes=1, devices=[])

    def initial(self, wanted: Wanted) -> Initial:
        """Returns a model without a weight; see `Trainer`."""
        return Initial("0" * 64, np.empty(0, np.float32))

    def people(self) -> frozenset[bytes]:
        """Returns nobody; see `Trainer`."""
        return frozenset()

    def device(self, request: TrainRequest) -> str:
        """Returns the one that every policy allows; see `Trainer`."""
        return "cpu"

    def conformance(self, request: TrainRequest) -> Conformance:
        """Compares nothing; see `Trainer`."""
        return Conformance(OURS, None, SINGLE)

    def train(self, request: TrainRequest, received: Vector) -> Trained:
        """Returns an update of zeros; see `Trainer`."""
        return Trained(np.zeros(request.answered(len(received)), np.float32), 0.0, 1)

    def train_privately(self, request: TrainRequest, received: Vector, plan: PrivacyPlan) -> Vector:
        """Returns an update of zeros; see `Trainer`."""
        return np.zeros(request.answered(len(received)), np.float32)

    def noised_sum(self, request: TrainRequest, received: Vector, plan: PrivacyPlan) -> Integers:
        """Returns a sum of zeros; see `Trainer`."""
        counted = request.privacy is not None and request.privacy.count_within
        return np.zeros(request.answered(len(received)) + counted, np.int64)


def stand_ins(folder: Path, names: Iterable[str], like: SiteFile) -> list[Site]:
    """Makes sites with keys of their own, and opens them.

    Args:
        folder: where their folders are made.
        names: of the sites.
        like: whose size and policy they have; they take part in any run.
    """
    made = []
    for name in names:
        place = folder / name
        place.mkdir()
        data = replace(like.data, rows=None)
        file = replace(like, name=name, data=data, launch=None, trainer=None)
        # JSON, as the site file's form has no other writer, is YAML.
        write_atomic(place / SITE_FILE, to_json(file).encode())
        SigningKey.generate().save(place / KEY_FILE)
        site = open_site(str(place))
        site.trainer = NoTrainer()
        made.append(site)
    return made


def roster_with(roster: Roster, own: Site, others: list[Site]) -> Roster:
    """Returns the roster, in which the other sites have the keys that were made up for them."""
    keys = {site.file.name: site.key.public_hex for site in (own, *others)}
    members = {member.name: member for member in roster.members}
    for name, key in keys.items():
        members[name] = Member(name=name, public_key=key)
    return replace(roster, members=[members[name] for name in sorted(members)])
