"""What Flower's strategies return, seen from beside: an app's main function often drops it."""

import functools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

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


def _plain(rounds: Mapping[int, Mapping[str, Any]]) -> Rounds:
    return {
        number: {name: _value(value) for name, value in metrics.items()}
        for number, metrics in rounds.items()
    }


def _value(value: object) -> object:
    """Returns a metric as JSON has it; an app's own strategy may say `numpy.float32`."""
    if isinstance(value, list | tuple):
        return [_value(each) for each in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, RuntimeError):
        return str(value)
