"""What the reference job asks of a machine: its floating point operations and its bytes."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from lepton_cli.bench.simulation.bare import BareLoop
from lepton_cli.bench.simulation.jobs import Job
from lepton_common.models.catalog import initial_model


def flops_of_client(job: Job) -> int:
    """Returns the floating point operations of one client's round, multiplications and sums."""
    with FlopCounterMode(display=False) as counter:
        _one_client(job)
    return int(counter.get_total_flops())


def bytes_of_client(job: Job) -> int:
    """Returns the bytes that one client's operators read and write, as if no cache kept any."""
    counter = _ByteCounter()
    with counter:
        _one_client(job)
    return counter.total


class _ByteCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the sizes of what each operator reads and writes; views cost nothing."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        result = func(*args, **(kwargs or {}))
        read, written = _storages((args, kwargs or {})), _storages(result)
        # What shares its memory with an input, and is not written in place, is a view.
        schema = func._schema  # type: ignore[attr-defined]
        if schema.is_mutable or not written.keys() <= read.keys():
            self.total += sum(read.values()) + sum(written.values())
        return result


def _storages(values: Any) -> dict[int, int]:  # noqa: ANN401
    """Returns the bytes of each tensor, by where its memory begins."""
    return {
        leaf.untyped_storage().data_ptr(): leaf.nbytes
        for leaf in tree_leaves(values)
        if isinstance(leaf, torch.Tensor)
    }


def _one_client(job: Job) -> None:
    rng = torch.Generator().manual_seed(0)
    features = torch.randn(1, job.records, *job.shape, generator=rng)
    labels = torch.randint(0, 10, (1, job.records), generator=rng)
    BareLoop(job, initial_model(job.model, job.shape, 10, seed=1), features, labels).round([0], [1])
