"""How fast a run goes, and how long it will still take, from what was seen of it so far."""

import time
from collections import deque
from collections.abc import Callable, Sequence

from lepton_common.settings import Settings

_LOOKS_BACK = 10  # rounds
_TRAINING = ("train", "mask")


def records_of(settings: Settings, size: int) -> float:
    """Returns how many records a site trains on in a round, by its public size class.

    True counts are private at real sites, so nothing finer is shown in a simulation either. With
    privacy it is the number expected of Poisson sampling.

    Args:
        settings: the whole configuration.
        size: the site's public size class.
    """
    train, privacy = settings.train, settings.privacy
    if train.local_steps is None:
        return float(size * (train.local_epochs or 0))
    if privacy.mode in ("record", "distributed"):
        return train.local_steps * privacy.sample_rate * size
    return float(train.local_steps * min(train.batch_size, size))


class Pace:
    """Takes note of rounds and answers as they come, and divides by the time they took.

    Attributes:
        step: what the sites are asked for at the moment, or "".
        came: how many of them have answered.
        asked: how many were asked.
    """

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings, self._clock = settings, clock
        self._marks: deque[tuple[float, float, float]] = deque(maxlen=_LOOKS_BACK)
        self._rounds, self._total = 0, 0
        self._records = self._each = 0.0
        self._trained = 0
        self.step, self.came, self.asked = "", 0, 0

    def start(self, first_round: int, rounds: int) -> None:
        """Starts the clock."""
        self._rounds, self._total = first_round - 1, rounds
        self._mark()

    def cohort(self, sizes: Sequence[int]) -> None:
        """Takes note of a round's cohort, by public size classes."""
        self._each = sum(records_of(self._settings, size) for size in sizes) / max(1, len(sizes))
        self.step, self.came, self.asked = "", 0, len(sizes)

    def answer(self, step: str, came: int, asked: int) -> None:
        """Takes note of an answer; called for each of them, so it does next to nothing."""
        self.step, self.came, self.asked = step, came, asked
        if step in _TRAINING:
            self._trained = came

    def finish(self, round_: int, answered: int) -> None:
        """Takes note of a finished round and of how many sites contributed."""
        self._rounds = round_
        self._records += self._each * answered
        self.step, self._trained = "", 0
        self._mark()

    @property
    def done(self) -> float:
        """Rounds done, the one at hand by the share of the sites that have trained."""
        return self._rounds + (self._trained / self.asked if self._trained and self.asked else 0.0)

    @property
    def records_per_s(self) -> float | None:
        """Records trained on in a second, over the last rounds; None while that is unknown."""
        if not self._marks:
            return None
        began, _, records = self._marks[0]
        trained = self._records + self._each * self._trained - records
        elapsed = self._clock() - began
        return trained / elapsed if trained and elapsed > 0 else None

    @property
    def left_s(self) -> float | None:
        """Seconds still to go, at the pace of the last rounds; None while that is unknown."""
        if not self._marks:
            return None
        began, rounds, _ = self._marks[0]
        gone, elapsed = self.done - rounds, self._clock() - began
        return elapsed / gone * max(0.0, self._total - self.done) if gone > 0 else None

    def _mark(self) -> None:
        self._marks.append((self._clock(), self._rounds, self._records))
