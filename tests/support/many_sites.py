"""Models, made-up records and sites of them, for tests that train many sites at once."""

import numpy as np
import torch

from lepton_client.training.resident import ResidentModel
from lepton_common.arrays import Layout, Vector, read_parameters
from lepton_common.datasets.records import Records, Rows
from lepton_common.models.catalog import initial_model
from lepton_common.privacy.plan import PrivacyPlan
from lepton_common.tasks.catalog import Task

CPU = torch.device("cpu")
TASK = Task("toy", "toy", "cross_entropy", "nothing")
PLAN = PrivacyPlan("row", 1e-5, 0.5, 1.0, 0.7, 1, 100, 8.0)
FLAT = "layers.linear9-sigmoid-linear7-relu"
IMAGES = "layers.conv4k3s2p1-norm2-mean2-tanh-linear6"


def model_of(
    name: str, shape: tuple[int, ...], outputs: int, seed: int = 0
) -> tuple[ResidentModel, Vector]:
    """Returns a model and its weights, float32, shape [d]."""
    module = initial_model(name, shape, outputs, seed)
    return ResidentModel(module, Layout.of(module), CPU), read_parameters(module).numpy()


def records_of(shape: tuple[int, ...], classes: int, count: int, seed: int = 0) -> Records:
    """Returns made-up records."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.rand(count, *shape, generator=generator)
    return Records(features, torch.randint(0, classes, (count,), generator=generator))


def split(count: int, sizes: list[int], seed: int = 0) -> list[Rows]:
    """Returns the rows of sites of some sizes, at random."""
    order = np.random.default_rng(seed).permutation(count)[: sum(sizes)]
    return np.split(order, np.cumsum(sizes)[:-1])
