"""How a run tells whoever watches what happens, and how it is asked to stop."""

from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class RoundReport:
    """One finished round.

    Attributes:
        round: from 1.
        rounds: of how many.
        metrics: figures of the new model on the server's test set.
        failed: site name -> error name of those that did not contribute.
        epsilon: site name -> spent so far, at the run's delta; empty without DP. Of more than a
            hundred sites, of the ten that have spent most.
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

    def on_baseline(self, came: int, of: int) -> None:
        """Called as each of the models to compare with is trained, which precede the run."""

    def on_start(self, first_round: int, rounds: int, sites: int) -> None:
        """Called once, before the first round, with the number of sites to choose from."""

    def on_waiting(self, sites: int) -> None:
        """Called now and then while a number of sites' operators have not decided."""

    def on_cohort(self, round_: int, sizes: Sequence[int]) -> None:
        """Called before a round asks its cohort, with the sites' public size classes."""

    def on_answer(self, step: str, came: int, asked: int) -> None:
        """Called for each answer that came; must take no longer than a microsecond or two.

        Args:
            step: ``introduce``, ``train``, or the name of a stage of secure aggregation, of which
                ``mask`` is the one that trains.
            came: answers to this step so far, failures among them.
            asked: sites that were asked.
        """

    def on_round(self, report: RoundReport) -> None:
        """Called after each finished round, which is on disk by then."""

    def on_end(self, status: str, documents: Sequence[Path]) -> None:
        """Called once, however the run ended.

        Args:
            status: ``finished``, ``stopped``, ``failed`` or ``interrupted``; all but the first
                may go on later.
            documents: what was written about the run and may be shown to anyone.
        """


class Observers(Observer):
    """Several observers of one run, told in order; any of them may stop it."""

    def __init__(self, observers: Sequence[Observer]) -> None:
        self._observers = tuple(observers)

    @property
    def stop_requested(self) -> bool:  # type: ignore[override]
        """Whether one of them has asked for it."""
        return any(observer.stop_requested for observer in self._observers)

    def on_baseline(self, came: int, of: int) -> None:
        """Tells all."""
        for observer in self._observers:
            observer.on_baseline(came, of)

    def on_start(self, first_round: int, rounds: int, sites: int) -> None:
        """Tells all."""
        for observer in self._observers:
            observer.on_start(first_round, rounds, sites)

    def on_waiting(self, sites: int) -> None:
        """Tells all."""
        for observer in self._observers:
            observer.on_waiting(sites)

    def on_cohort(self, round_: int, sizes: Sequence[int]) -> None:
        """Tells all."""
        for observer in self._observers:
            observer.on_cohort(round_, sizes)

    def on_answer(self, step: str, came: int, asked: int) -> None:
        """Tells all."""
        for observer in self._observers:
            observer.on_answer(step, came, asked)

    def on_round(self, report: RoundReport) -> None:
        """Tells all."""
        for observer in self._observers:
            observer.on_round(report)

    def on_end(self, status: str, documents: Sequence[Path]) -> None:
        """Tells all."""
        for observer in self._observers:
            observer.on_end(status, documents)


OBSERVER: ContextVar[Observer] = ContextVar("lepton_observer")
"""The observer of the run in this context; a ServerApp's signature has no room for one."""
