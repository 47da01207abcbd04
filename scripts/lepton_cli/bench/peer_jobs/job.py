"""The job that a peer runs, by the numbers and the data that the benchmark gives it."""

import json
import os
from pathlib import Path

import numpy as np
import torch
from torch import nn

FACTS = json.loads(os.environ["LEPTON_BENCH_JOB"])
CLIENTS, RECORDS, COHORT = FACTS["clients"], FACTS["records"], FACTS["cohort"]
BATCH, RATE, SHAPE = FACTS["batch"], FACTS["rate"], tuple(FACTS["shape"])
STEPS = COHORT * -(-RECORDS // BATCH)  # of a round
MOST_ROUNDS = 10_000  # the benchmark ends a side long before


def layers() -> list[nn.Module]:
    """Returns the layers of the job's network."""
    if FACTS["name"] == "mnist_shapes":  # 9,550 parameters
        return [nn.Flatten(), nn.Linear(784, 12), nn.ReLU(), nn.Linear(12, 10)]
    return [  # 1,626,442 parameters
        nn.Conv2d(3, 32, 3),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64 * 14 * 14, 128),
        nn.ReLU(),
        nn.Linear(128, 10),
    ]


def data() -> tuple[torch.Tensor, torch.Tensor]:
    """Returns features and labels, shapes [clients, records, *shape] and [clients, records].

    Mapped, not read: all processes of a side share the pages.
    """
    folder = Path(FACTS["data"])
    features = np.load(folder / "features.npy", mmap_mode="c", allow_pickle=False)
    labels = np.load(folder / "labels.npy", mmap_mode="c", allow_pickle=False)
    count = CLIENTS * RECORDS
    return (
        torch.from_numpy(features[:count]).view(CLIENTS, RECORDS, *SHAPE),
        torch.from_numpy(labels[:count]).view(CLIENTS, RECORDS),
    )


def train(model: nn.Module, client: int, seed: int) -> int:
    """Trains a model on one client's records for an epoch and returns the steps taken."""
    if not _DATA:
        _DATA.extend(data())
    features, labels = _DATA[0][client], _DATA[1][client]
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    order = torch.randperm(RECORDS, generator=torch.Generator().manual_seed(seed))
    steps = 0
    for rows in order.split(BATCH):
        optimizer.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(model(features[rows]), labels[rows]).backward()
        optimizer.step()
        steps += 1
    return steps


_DATA: list[torch.Tensor] = []
