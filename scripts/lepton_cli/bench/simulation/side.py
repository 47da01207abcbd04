"""A side of ours, ``python -m lepton_cli.bench.simulation.side SPEC``: runs rounds by turns."""

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from importlib import resources
from pathlib import Path

from lepton_cli.bench.peer_jobs.turns import Turns
from lepton_cli.bench.simulation.jobs import JOBS, Job
from lepton_cli.bench.simulation.sides import Side

_MOST_ROUNDS = 10_000  # the benchmark ends a side long before
_SQUARE, _PRODUCTS = 2048, 3
_MB = 1e6


@dataclass(frozen=True)
class Spec:
    """What a side of ours runs.

    Attributes:
        kind: ``federation``: a simulation, whole; ``bare``: the loop; ``kernel``: the training of
            many clients at once, alone; ``peak``: products of matrices.
        job: name of its job.
        data: folder with the job's data.
        overrides: settings of the federation beside the job's own.
    """

    kind: str
    job: str
    data: str
    overrides: list[str] = field(default_factory=list)


def own_side(name: str, kind: str, job: Job, data: Path, *overrides: str) -> Side:
    """Returns a side of ours; see `Spec`."""
    spec = Spec(kind, job.name, str(data), list(overrides))
    module = "lepton_cli.bench.simulation.side"
    parts = str(resources.files("lepton_cli.bench").joinpath("own_parts"))
    inherited = os.environ.get("PYTHONPATH")
    return Side(
        name=name,
        command=(sys.executable, "-m", module, json.dumps(asdict(spec))),
        # Its children, and theirs, find the job in the catalogs too.
        environment={"PYTHONPATH": os.pathsep.join(filter(None, (parts, inherited)))},
    )


def main(spec: Spec) -> None:
    """Runs rounds until the benchmark says stop."""
    turns, job = Turns(), JOBS[spec.job]
    run = {"federation": _federation, "bare": _bare, "kernel": _kernel, "peak": _peak}[spec.kind]
    from lepton_common.errors import LeptonError

    try:
        run(spec, job, turns)
    except (LeptonError, ImportError) as error:
        # An engine that is not here, or needs what is not installed: the others go on.
        turns.skipped(f"{type(error).__name__}: {error}")


class _Stopped(Exception):
    """The benchmark has seen enough."""


def _federation(spec: Spec, job: Job, turns: Turns) -> None:
    from lepton_cli.compose import compose_settings
    from lepton_cli.simulation import start
    from lepton_server.progress import Observer, RoundReport

    imports_mb = _memory_mb("VmRSS")

    class TakingTurns(Observer):
        def on_round(self, report: RoundReport) -> None:
            if report.failed:
                raise RuntimeError(f"Sites failed in the benchmark: {report.failed}")
            if not turns.next():
                raise _Stopped

    words = [*job.overrides(Path(spec.data)), f"rounds={_MOST_ROUNDS}", "runs=runs"]
    settings = compose_settings(merged(words, spec.overrides))
    try:
        start(replace(settings, task=job.name), TakingTurns())
    except _Stopped:
        turns.ended(peak_mb=_memory_mb("VmHWM"), imports_mb=imports_mb)


def merged(words: list[str], more: list[str]) -> list[str]:
    """Returns settings in which each name stands once, as it was said last."""
    return list({word.partition("=")[0]: word for word in [*words, *more]}.values())


def _bare(spec: Spec, job: Job, turns: Turns) -> None:
    from lepton_cli.bench.simulation.bare import BareLoop
    from lepton_common.datasets.catalog import load_dataset
    from lepton_common.models.catalog import initial_model

    records = load_dataset(job.name, spec.data, "public_ranges").train
    loop = BareLoop(
        job,
        initial_model(job.model, job.shape, 10, seed=1),
        records.features.view(job.clients, job.records, *job.shape),
        records.labels.view(job.clients, job.records),
    )
    _loop(job, turns, loop.round)


def _kernel(spec: Spec, job: Job, turns: Turns) -> None:
    from lepton_cli.bench.simulation.kernel import Kernel

    _loop(job, turns, Kernel(job, Path(spec.data)).round)


def _loop(job: Job, turns: Turns, round_of: Callable[[list[int], list[int]], None]) -> None:
    """Runs rounds with as many threads as are fastest, which is found out first."""
    import torch

    from lepton_cli.bench.simulation.bare import drawn

    def tried_s(threads: int) -> float:
        torch.set_num_threads(threads)
        round_of(*drawn(job, 0, share=0.1))
        began = time.perf_counter()
        round_of(*drawn(job, 0, share=0.1))
        return time.perf_counter() - began

    threads = min((1, os.cpu_count() or 1), key=tried_s)
    torch.set_num_threads(threads)
    round_, going = 0, True
    while going:
        round_ += 1
        round_of(*drawn(job, round_))
        going = turns.next(steps=job.steps)
    turns.ended(threads=threads)


def _peak(spec: Spec, job: Job, turns: Turns) -> None:
    import torch

    torch.set_num_threads(os.cpu_count() or 1)
    first, second = torch.randn(_SQUARE, _SQUARE), torch.randn(_SQUARE, _SQUARE)
    best = 0.0
    while True:
        for _ in range(_PRODUCTS):
            began = time.perf_counter()
            torch.mm(first, second)
            best = max(best, 2e-9 * _SQUARE**3 / (time.perf_counter() - began))
        if not turns.next():
            return turns.ended(gflops=best)


def _memory_mb(name: str) -> float:
    """Returns a size of this process from the system: ``VmRSS`` now, ``VmHWM`` at its largest."""
    lines = Path("/proc/self/status").read_text().splitlines()
    kilobytes = next(line.split()[1] for line in lines if line.startswith(f"{name}:"))
    return int(kilobytes) * 1024 / _MB


if __name__ == "__main__":
    main(Spec(**json.loads(sys.argv[1])))
