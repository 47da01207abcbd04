"""The run record that every Flower grid carries."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flwr.supercore.run import Run


def empty_run(run_id: int) -> "Run":
    """Returns a run record with nothing but its number."""
    from flwr.supercore.run import Run

    return Run.create_empty(run_id)
