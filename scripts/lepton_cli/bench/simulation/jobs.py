"""The two jobs that all sides run, and their data: noise of the right shape, in files."""

import math
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from lepton_common.datasets.records import Dataset
    from lepton_common.tasks.catalog import Task

_TEST_RECORDS, _CLASSES = 100, 10


@dataclass(frozen=True)
class Job:
    """A federated job: one local epoch of SGD a client and round, plain averaging.

    Attributes:
        name: of its data set and task.
        like: the task whose settings it begins with.
        shape: of one record.
        clients: the population.
        records: of one client.
        cohort: clients of a round.
        batch: records of a step.
        rate: learning rate of the clients; the server's is 1.
        model: what the catalog calls the model.
        network: the same as words of a command line.
    """

    name: str
    like: str
    shape: tuple[int, ...]
    clients: int
    records: int
    cohort: int
    batch: int
    rate: float
    model: str
    network: tuple[str, ...]

    @property
    def steps_of_client(self) -> int:
        """Steps of one client in a round."""
        return math.ceil(self.records / self.batch)

    @property
    def steps(self) -> int:
        """Steps of all clients of a round."""
        return self.cohort * self.steps_of_client

    def facts(self, data: Path) -> dict[str, object]:
        """Returns what a peer must know of it."""
        return {"name": self.name, "shape": self.shape, "clients": self.clients,
                "records": self.records, "cohort": self.cohort, "batch": self.batch,
                "rate": self.rate, "data": str(data)}  # fmt: skip

    def overrides(self, data: Path) -> list[str]:
        """Returns the settings of a plain run, without protections."""
        return [
            f"task={self.like}",
            "privacy=none",
            "secagg=none",
            *self.network,
            f"data.root={data}",
            f"sites={self.clients}",
            f"federation.cohort={self.cohort}",
            "federation.weights=equal",
            "train.optimizer=sgd",
            f"train.learning_rate={self.rate}",
            "train.schedule=constant",
            "train.momentum=0",
            f"train.batch_size={self.batch}",
            "train.local_epochs=1",
        ]

    def private(self) -> list[str]:
        """Returns what makes the run one with record DP, of as many steps of as many records."""
        return [
            "privacy=record",
            "privacy.epsilon=100",
            f"privacy.sample_rate={self.batch / self.records}",
            "privacy.clipping_norm=1",
            "train.local_epochs=null",
            f"train.local_steps={self.steps_of_client}",
            # What may be in memory at once; a step takes what it draws, `batch` in the mean.
            f"train.batch_size={self.records}",
        ]

    def secure(self) -> list[str]:
        """Returns what makes it one with secure aggregation in a ring of 16 bits."""
        colluders = (self.cohort - 1) // 3
        return ["secagg=sa1", "secagg.width=16", "secagg.clip=1", f"secagg.colluders={colluders}"]


REFERENCE = Job(
    name="cifar_shapes",
    like="cifar10",
    shape=(3, 32, 32),
    clients=1000,
    records=50,
    cohort=50,
    batch=10,
    rate=0.1,
    model="cnn_reference",
    network=("model=cnn_reference",),
)
SMALL = Job(
    name="mnist_shapes",
    like="mnist",
    shape=(1, 28, 28),
    clients=2000,
    records=20,
    cohort=500,
    batch=10,
    rate=0.1,
    model="layers.linear12-relu",
    network=("model=layers", "layers=[linear12,relu]"),
)
JOBS = {job.name: job for job in (REFERENCE, SMALL)}


@contextmanager
def data_of(job: Job) -> Iterator[Path]:
    """Gives a folder with a job's data, the same for all sides, which map and share it."""
    rng = np.random.default_rng(0)
    count = job.clients * job.records + _TEST_RECORDS
    with tempfile.TemporaryDirectory(prefix="lepton-bench-") as name:
        folder = Path(name)
        np.save(folder / "features.npy", rng.standard_normal((count, *job.shape), np.float32))
        np.save(folder / "labels.npy", rng.integers(0, _CLASSES, count))
        yield folder


def load(job: Job, folder: Path) -> "Dataset":
    """Returns a job's data: the clients' one after the other, then some to evaluate on."""
    import torch

    from lepton_common.datasets.records import Dataset, Records

    features, labels = (
        torch.from_numpy(np.load(folder / f"{name}.npy", mmap_mode="c", allow_pickle=False))
        for name in ("features", "labels")
    )
    train, test = (
        Records(features[part], labels[part])
        for part in (slice(None, -_TEST_RECORDS), slice(-_TEST_RECORDS, None))
    )
    return Dataset(job.name, train, test, job.shape, _CLASSES)


def datasets() -> "dict[str, Callable[[str | None, str], Dataset]]":
    """Returns the jobs' entries for the catalog of data sets."""

    def read(job: Job, root: str | None, prepare: str) -> "Dataset":
        assert root is not None, "the benchmark has written it"
        return load(job, Path(root))

    return {name: partial(read, job) for name, job in JOBS.items()}


def tasks() -> "dict[str, Task]":
    """Returns the jobs' entries for the catalog of tasks."""
    from lepton_common.tasks.catalog import Task

    return {name: Task(name, name, "cross_entropy", "noise") for name in JOBS}
