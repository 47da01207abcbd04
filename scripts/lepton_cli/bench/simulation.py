"""Engine overhead: a federated round of ours against a bare PyTorch loop doing the same work.

The reference job is pfl-research's Table 1: CIFAR-10 shapes, 1,000 clients of 50 images, cohort
50, one local epoch, batch 10, SGD 0.1, a CNN of 1,626,442 parameters. Ours runs the real thing:
the ServerApp and ClientApp of a deployment, with consent, door, signed audit log and checkpoint
in every round. The bare loop reuses one model. Both use the same data and as many threads in
all, and take turns round by round.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from torch.nn import functional

from lepton_cli.bench import Row, peers
from lepton_cli.compose import compose_settings
from lepton_cli.simulation import create, run_apps
from lepton_common.arrays import read_parameters, write_parameters
from lepton_common.datasets.catalog import DATASETS
from lepton_common.datasets.records import Dataset, Records
from lepton_common.models.catalog import initial_model
from lepton_common.settings import Settings
from lepton_common.tasks.catalog import TASKS, Task
from lepton_server.progress import Observer, RoundReport

CLIENTS, IMAGES, COHORT, BATCH, RATE = 1000, 50, 50, 10, 0.1
_NAME = "cifar_shapes"
_QUICK_S, _LEAST_PAIRS, _ROUNDS = 14.0, 1, 16


class BareLoop:
    """The reference: a loop over clients with one model, and nothing else."""

    def __init__(self, records: Records) -> None:
        self._features = records.features.view(CLIENTS, IMAGES, 3, 32, 32)
        self._labels = records.labels.view(CLIENTS, IMAGES)
        self._model = initial_model("cnn_reference", (3, 32, 32), 10, seed=1)
        self._weights = read_parameters(self._model)
        self._round = 0

    def round_s(self, cohort: int = COHORT) -> float:
        """Runs one round and returns its wall time in seconds."""
        began = time.perf_counter()
        generator = torch.Generator().manual_seed(self._round)
        total = torch.zeros_like(self._weights)
        for client in torch.randperm(CLIENTS, generator=generator)[:cohort].tolist():
            write_parameters(self._model, self._weights)
            optimizer = torch.optim.SGD(self._model.parameters(), lr=RATE)
            for rows in torch.split(torch.randperm(IMAGES, generator=generator), BATCH):
                optimizer.zero_grad(set_to_none=True)
                logits = self._model(self._features[client][rows])
                loss = functional.cross_entropy(logits, self._labels[client][rows])
                torch.autograd.backward(loss)
                optimizer.step()
            total += read_parameters(self._model)
        self._weights = total / cohort
        self._round += 1
        return time.perf_counter() - began


@dataclass
class TakingTurns(Observer):
    """After each of our rounds runs one of the bare loop's, and takes both times.

    Attributes:
        bare: the reference.
        budget_s: stop once this much time is spent, in seconds.
        ours_s: wall times of our rounds; checkpoint, log and metrics included.
        bare_s: wall times of the reference's rounds, one after each of ours.
    """

    bare: BareLoop | None = None
    budget_s: float = float("inf")
    ours_s: list[float] = field(default_factory=list)
    bare_s: list[float] = field(default_factory=list)
    _began: float = 0.0
    _since: float = 0.0

    def on_start(self, first_round: int, rounds: int, sites: int) -> None:
        """Starts the clock."""
        self._began = self._since = time.perf_counter()

    def on_round(self, report: RoundReport) -> None:
        """Takes our time, then the bare loop's; the first round is warm-up for both."""
        ours_s = time.perf_counter() - self._since
        assert self.bare is not None
        if report.round == 1:
            self.bare.round_s(cohort=5)
        else:
            self.ours_s.append(ours_s)
            self.bare_s.append(self.bare.round_s())
        spent_s = time.perf_counter() - self._began
        self.stop_requested = len(self.ours_s) >= _LEAST_PAIRS and spent_s > self.budget_s
        self._since = time.perf_counter()


def rows(quick: bool, with_peers: bool) -> Iterator[Row]:
    """Yields ``reference_fp32_vs_bare`` and what it is made of, then the peers if asked."""
    dataset = _register()
    threads = os.cpu_count() or 1
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        watch = TakingTurns(
            bare=BareLoop(dataset.train), budget_s=_QUICK_S if quick else float("inf")
        )
        settings = _settings(folder, threads)
        run_apps(settings, create(settings), watch)
    ratios = [bare / ours for ours, bare in zip(watch.ours_s, watch.bare_s, strict=True)]
    ours_s = statistics.median(watch.ours_s)
    yield Row("reference_fp32_vs_bare", ours_s, "s/round", statistics.median(ratios))
    yield Row("reference_fp32_bare", statistics.median(watch.bare_s), "s/round")
    yield Row("pairs", len(ratios), "rounds")
    yield Row("threads", threads, "threads")
    if with_peers:
        for peer, seconds in peers.measure():
            yield Row(f"reference_fp32_vs_{peer}", seconds, "s/round", seconds / ours_s)


def _settings(folder: str, threads: int) -> Settings:
    composed = compose_settings(
        [
            "task=cifar10",
            "privacy=none",
            "secagg=none",  # the reference sums in the clear
            "model=cnn_reference",
            f"sites={CLIENTS}",
            f"rounds={_ROUNDS}",
            f"federation.cohort={COHORT}",
            f"train.batch_size={BATCH}",
            f"train.learning_rate={RATE}",
            f"engine.workers={threads}",
            f"runs={folder}",
        ]
    )
    return replace(composed, task=_NAME)


def _register() -> Dataset:
    """Adds a data set of noise in CIFAR-10's shape to the catalogs of this process."""
    rng = torch.Generator().manual_seed(0)

    def noise(count: int) -> Records:
        features = torch.randn(count, 3, 32, 32, generator=rng)
        return Records(features, torch.randint(0, 10, (count,), generator=rng))

    dataset = Dataset(_NAME, noise(CLIENTS * IMAGES), noise(100), (3, 32, 32), 10)
    DATASETS[_NAME] = lambda root, prepare: dataset
    TASKS[_NAME] = Task(_NAME, _NAME, "cross_entropy", "noise")
    return dataset
