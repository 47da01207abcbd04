"""A task in a package of its own: whether a kidney fails, from four measurements."""

import numpy as np
import torch

from lepton_common.datasets.records import Dataset, Records
from lepton_common.tasks.catalog import Task
from lepton_common.tasks.packaged import PackagedTask

_WEIGHTS = np.array([1.5, -1.0, 0.5, 0.0])

task = PackagedTask(
    Task("kidney", "kidney", "binary", "kidney failure within a year", domain="health"),
    settings=("model=logistic", "rounds=6", "train.learning_rate=1.0"),
)


def load(root: str | None, prepare: str) -> Dataset:
    """Measurements as a hospital would read them; here they are made up."""
    rng = np.random.default_rng(1)
    measured = rng.uniform(-1, 1, (600, len(_WEIGHTS)))
    fails = (measured @ _WEIGHTS + rng.normal(0, 0.3, 600) > 0).astype(np.int64)
    records = Records(
        torch.from_numpy(measured.astype(np.float32)),
        torch.from_numpy(fails),
        units=np.arange(600, dtype=np.int64),
    )
    rows = np.arange(600)
    return Dataset(
        "kidney", records.take(rows[:480]), records.take(rows[480:]), (4,), 2, unit="patient"
    )
