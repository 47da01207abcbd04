"""What one site's logs prove, and what those of all sites come to."""

from dataclasses import dataclass, field, replace

from lepton_client.hosted.host import TOGETHER
from lepton_common.chain import ChainRecord
from lepton_common.errors import AuditError, PlanError
from lepton_common.privacy.accounting import epsilon
from lepton_common.privacy.events import Event, RoundedSkellam, read_event
from lepton_common.privacy.plan import SHARE_VARIANCE, SharedNoise


@dataclass
class SiteEvidence:
    """What one site's log proves.

    Attributes:
        name: the site's name.
        records: records in its log.
        bytes_left: bytes of everything that left, by protection; ``secagg+dp`` is both.
        releases: number of replies with content.
        refusals: error name -> how often.
        units: what was protected as one.
        engines: what computed private gradients, and how far it was from Opacus.
        deltas: the deltas charged at.
        events: every mechanism charged, released or not.
        shared: who shared the noise of the newest charge, where any did.
    """

    name: str
    records: int = 0
    bytes_left: dict[str, int] = field(default_factory=dict)
    releases: int = 0
    refusals: dict[str, int] = field(default_factory=dict)
    units: set[str] = field(default_factory=set)
    engines: dict[str, float | None] = field(default_factory=dict)
    deltas: set[float] = field(default_factory=set)
    events: list[Event] = field(default_factory=list)
    shared: SharedNoise | None = None

    @property
    def total_bytes(self) -> int:
        """All bytes that left."""
        return sum(self.bytes_left.values())

    @property
    def delta(self) -> float | None:
        """The smallest delta charged at; None without DP."""
        return min(self.deltas, default=None)

    @property
    def epsilon(self) -> float | None:
        """Spent at `delta`, recomputed from the charged events; None without DP."""
        return None if self.delta is None else epsilon(tuple(self.events), self.delta)

    def epsilon_with(self, shares: int) -> float | None:
        """What is spent if so many sites' shares of noise are all that protects each sum."""
        if self.delta is None:
            return None
        events = (
            replace(event, variance=shares * SHARE_VARIANCE)
            if isinstance(event, RoundedSkellam)
            else event
            for event in self.events
        )
        return epsilon(tuple(events), self.delta)

    @property
    def without_dp(self) -> bool:
        """Whether anything left that was computed from records without differential privacy."""
        return any(self.bytes_left.get(kind, 0) > 0 for kind in ("unprotected", "secagg"))

    @property
    def readable(self) -> bool:
        """Whether the server could read anything of this site's alone, computed from records."""
        return any(self.bytes_left.get(kind, 0) > 0 for kind in ("unprotected", "dp"))


@dataclass
class Totals:
    """What all sites came to, however many: it does not grow with their number.

    Attributes:
        sites: how many there were.
        records: records in their logs.
        bytes_left: bytes of everything that left, by protection.
        units: what was protected as one.
        events: the different mechanisms charged.
        spent: the largest epsilon at each delta charged at.
        by_opacus: sites whose private gradients Opacus computed.
        together: sites that were trained at once, whose rounding nobody has tried.
        difference: how far those of the others were from Opacus' at most; None: none were.
        worst: the site that spent most of those that shared noise.
        without_dp: whether anything computed from records left a site without DP.
        readable: whether the server could read anything of one site's alone.
    """

    sites: int = 0
    records: int = 0
    bytes_left: dict[str, int] = field(default_factory=dict)
    units: set[str] = field(default_factory=set)
    events: set[Event] = field(default_factory=set)
    spent: dict[float, float] = field(default_factory=dict)
    by_opacus: int = 0
    together: int = 0
    difference: float | None = None
    worst: SiteEvidence | None = None
    without_dp: bool = False
    readable: bool = False

    def add(self, site: SiteEvidence) -> None:
        """Takes one more site in."""
        self.sites += 1
        self.records += site.records
        for kind, size in site.bytes_left.items():
            self.bytes_left[kind] = self.bytes_left.get(kind, 0) + size
        self.units |= site.units
        self.events.update(site.events)
        spent = site.epsilon or 0.0
        if site.delta is not None:
            self.spent[site.delta] = max(self.spent.get(site.delta, 0.0), spent)
        self.by_opacus += "opacus" in site.engines
        self.together += TOGETHER in site.engines
        differences = [self.difference, *site.engines.values()]
        self.difference = max((d for d in differences if d is not None), default=None)
        if site.shared and (self.worst is None or spent > (self.worst.epsilon or 0.0)):
            self.worst = site
        self.without_dp |= site.without_dp
        self.readable |= site.readable


def _shared(site: str, charge: ChainRecord) -> SharedNoise | None:
    values = charge.body.get("shared")
    try:
        return None if values is None else SharedNoise(**values)
    except (TypeError, PlanError) as error:
        raise AuditError(
            f"{site}: charge {charge.sequence} does not say who shared noise."
        ) from error


def site_evidence(site: str, records: list[ChainRecord], ledger: list[ChainRecord]) -> SiteEvidence:
    """Returns what a site's records and its ledger's entries prove, already verified each.

    Raises:
        AuditError: something was released without the charge for it.
    """
    found = SiteEvidence(site, records=len(records))
    charges: dict[str, Event] = {}
    for record in ledger:
        if record.kind == "charge":
            charges[record.hash] = read_event(record.body["event"])
            found.events.append(charges[record.hash])
            found.deltas.add(float(record.body["delta"]))
            found.units.add(str(record.body["unit"]))
            found.shared = _shared(site, record) or found.shared
    for record in records:
        if record.kind == "engine":
            found.engines[str(record.body["engine"])] = record.body["difference"]
        elif record.kind == "refusal":
            error = str(record.body["error"])
            found.refusals[error] = found.refusals.get(error, 0) + 1
        elif record.kind == "release":
            found.releases += 1
            charge = record.body["charge"]
            if charge is not None and charge not in charges:
                raise AuditError(f"{site}: record {record.sequence} was released without a charge.")
            covering = charges.pop(charge, None)
            for item in record.body["items"]:
                proof = item["provenance"]
                event = None if isinstance(proof, str) else proof.get("dp")
                protection = proof if isinstance(proof, str) else "+".join(sorted(proof)[::-1])
                if event is not None and read_event(event) != covering:
                    raise AuditError(
                        f"{site}: record {record.sequence} released '{item['name']}' under another "
                        "event than the one charged."
                    )
                left = found.bytes_left.get(protection, 0)
                found.bytes_left[protection] = left + int(item["bytes"])
    return found
