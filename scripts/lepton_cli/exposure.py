"""What shared noise is worth: epsilon by how many sites collude, and with nothing shared."""

from dataclasses import dataclass

from lepton_cli.run import Run
from lepton_cli.site_evidence import SiteEvidence
from lepton_common.privacy.plan import SharedNoise

_MOST_ROWS = 12


@dataclass(frozen=True)
class Exposure:
    """What the records of the worst site have spent, depending on others.

    Attributes:
        shared: who shared the noise.
        rows: (sites that collude with the server, epsilon if all sites answered, epsilon if as
            few answered as a sum may have), for 0 to n - 2 colluding sites. More than are
            tolerated can lift the masks, so that a site's own noise is all there is.
        broken: epsilon if secure aggregation hid nothing: by the site's own noise alone.
        delta: of all of them.
    """

    shared: SharedNoise
    rows: list[tuple[int, float, float]]
    broken: float
    delta: float


def exposure(run: Run) -> Exposure | None:
    """Returns what the charges of a run's worst site come to; None where no noise was shared."""
    worst = run.evidence.totals.worst
    if worst is None or worst.shared is None or worst.delta is None:
        return None
    noise, broken = worst.shared, _epsilon(worst, 1)
    rows = [
        (count, _epsilon(worst, noise.sites - count), _epsilon(worst, noise.survivors - count))
        if count <= noise.colluders
        else (count, broken, broken)
        for count in _counts(noise)
    ]
    return Exposure(noise, rows, broken, worst.delta)


def _epsilon(site: SiteEvidence, shares: int) -> float:
    return site.epsilon_with(shares) or 0.0


def _counts(noise: SharedNoise) -> list[int]:
    """Returns numbers of colluding sites: all, or a few that matter."""
    n, f = noise.sites, noise.colluders
    if n - 1 <= _MOST_ROWS:
        return list(range(n - 1))
    return sorted({0, 1, f // 2, f, f + 1, n // 2, 3 * n // 4, n - 2})
