"""What Flower's strategies return, seen from beside: an app's main function often drops it."""

import functools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from flwr.app import MetricRecord
from flwr.serverapp.strategy import Result, Strategy

Rounds = dict[int, dict[str, Any]]
KINDS = ("train_metrics_clientapp", "evaluate_metrics_clientapp", "evaluate_metrics_serverapp")


@contextmanager
def watched_results() -> Iterator[list[dict[str, Rounds]]]:
    """Gives a list that grows by the metrics of each `Result` while the context is open.

    The app and its strategies stay as they are; `Strategy.start`, which every strategy inherits,
    tells what it returned. A strategy with a `start` of its own tells nothing, and models are not
    kept.

    Yields:
        for each call of ``start``: kind of metrics (`KINDS`) -> round -> name -> value.
    """
    found: list[dict[str, Rounds]] = []
    original = Strategy.start

    @functools.wraps(original)
    def start(self: Strategy, *args: Any, **settings: Any) -> Result:  # noqa: ANN401
        result = original(self, *args, **settings)
        found.append({kind: _plain(getattr(result, kind)) for kind in KINDS})
        return result

    Strategy.start = start  # type: ignore[method-assign]
    try:
        yield found
    finally:
        Strategy.start = original  # type: ignore[method-assign]


def _plain(rounds: Mapping[int, MetricRecord]) -> Rounds:
    return {number: dict(metrics) for number, metrics in rounds.items()}
