"""What a round brought together, and the check that each site's receipt fits what was asked."""

from dataclasses import dataclass, field
from typing import Protocol

from lepton_common.arrays import Vector
from lepton_common.errors import MalformedMessage
from lepton_common.messages import Receipt, SiteFacts, TrainRequest
from lepton_common.secagg.spec import RoundSpec
from lepton_common.summing import shared_noise


class Mean(Protocol):
    """A weighted mean of updates."""

    @property
    def count(self) -> int:
        """Number of updates in it."""

    def value(self) -> Vector:
        """Returns the mean, float32, shape [d]."""

    def each(self) -> list[Vector]:
        """Returns the single updates, where there are any to see."""


@dataclass(frozen=True)
class Means:
    """Means and nothing behind them: of a whole cohort, or one for each of its groups.

    Attributes:
        groups: mean of each group, float32, shape [d].
        count: number of updates in them.
    """

    groups: list[Vector]
    count: int

    def value(self) -> Vector:
        """Returns the mean of a cohort in one group."""
        (mean,) = self.groups
        return mean

    def each(self) -> list[Vector]:
        """Returns the groups' means; the single updates are not at hand."""
        return self.groups


@dataclass
class Gathered:
    """What the sites of one cohort said, by site name.

    Attributes:
        mean: of their updates.
        epsilon: spent so far, by their own account.
        heads: newest hashes of their audit logs.
        ledgers: newest hashes of their privacy ledgers.
        failed: error names of those that gave nothing usable.
        specs: hashes of the secure sums' rounds, one a group.
        metrics: means of the sites' own metrics.
    """

    mean: Mean
    epsilon: dict[str, float] = field(default_factory=dict)
    heads: dict[str, str] = field(default_factory=dict)
    ledgers: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    specs: list[str] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)

    def note(self, site: str, receipt: Receipt) -> None:
        """Takes over what a receipt says."""
        self.epsilon[site] = receipt.epsilon
        self.heads[site] = receipt.audit_head
        self.ledgers[site] = receipt.ledger_head

    def sort(self) -> None:
        """Puts all in order of the sites' names, whoever answered first."""
        for part in (self.epsilon, self.heads, self.ledgers, self.failed):
            ordered = sorted(part.items())
            part.clear()
            part.update(ordered)  # type: ignore[arg-type]


def check_receipt(
    receipt: Receipt, request: TrainRequest, site: SiteFacts, spec: RoundSpec | None = None
) -> None:
    """Holds a receipt against what was asked, and its epsilon against what that must cost.

    Raises:
        MalformedMessage: it is for another round, run or plan, or claims to have spent less.
    """
    asked = request.privacy
    plan = None
    if asked is not None:
        shared = None if asked.mode == "record" or spec is None else shared_noise(spec)
        plan = asked.plan(site.unit, site.public_size, shared)
    fits = (receipt.run, receipt.round) == (request.run, request.round)
    if plan is None:
        fits = fits and receipt.plan is None
    else:
        least = plan.epsilon(1)
        fits = fits and receipt.plan == plan.digest and receipt.epsilon >= 0.999 * least
    if not fits:
        raise MalformedMessage("A receipt does not fit the round, run or plan it answers.")
