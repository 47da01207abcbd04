"""How a run tells whoever watches what happens, and how it is asked to stop."""

from contextvars import ContextVar
from dataclasses import dataclass, field


@dataclass(frozen=True)
class RoundReport:
    """One finished round.

    Attributes:
        round: from 1.
        rounds: of how many.
        metrics: figures of the new model on the server's test set.
        failed: site name -> error name of those that did not contribute.
        epsilon: site name -> spent so far, at the run's delta; empty without DP.
        seconds: wall time of the round.
    """

    round: int
    rounds: int
    metrics: dict[str, float]
    failed: dict[str, str]
    epsilon: dict[str, float]
    seconds: float


@dataclass
class Observer:
    """Watches a run; the default sees nothing.

    Attributes:
        stop_requested: set it, and the run stops after the round at hand.
    """

    stop_requested: bool = field(default=False)

    def on_start(self, first_round: int, rounds: int, sites: int) -> None:
        """Called once, before the first round, with the number of sites to choose from."""

    def on_waiting(self, sites: int) -> None:
        """Called now and then while a number of sites' operators have not decided."""

    def on_round(self, report: RoundReport) -> None:
        """Called after each finished round, which is on disk by then."""


OBSERVER: ContextVar[Observer] = ContextVar("lepton_observer")
"""The observer of the run in this context; a ServerApp's signature has no room for one."""
