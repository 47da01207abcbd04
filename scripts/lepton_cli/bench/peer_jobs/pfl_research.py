"""The reference job on pfl-research; prints seconds per round after the first."""

import json
import sys
import time

import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.pytorch import PyTorchTensorDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam.base import NNTrainHyperParams
from pfl.metrics import Metrics
from pfl.model.pytorch import PyTorchModel
from torch import nn

CLIENTS, IMAGES, COHORT, BATCH, RATE = 1000, 50, 50, 10, 0.1
ROUNDS = int(sys.argv[1])


class Net(nn.Sequential):
    """The reference network, 1,626,442 parameters, with what pfl asks of a model."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 32, 3),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(64 * 14 * 14, 128),
            nn.ReLU(),
            nn.Linear(128, 10),
        )

    def loss(self, inputs: torch.Tensor, targets: torch.Tensor, **_: object) -> torch.Tensor:
        """Returns the mean loss of a batch."""
        return nn.functional.cross_entropy(self(inputs), targets)

    def metrics(self, inputs: torch.Tensor, targets: torch.Tensor, **_: object) -> dict:
        """Returns no metric: the job measures time."""
        return {}


class Stamps(TrainingProcessCallback):
    """Notes when each round ends."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def after_central_iteration(self, aggregate_metrics, model, *, central_iteration):  # noqa: ANN001, ANN201
        """Notes the time; never stops, and adds no metric."""
        self.ends.append(time.perf_counter())
        return False, Metrics()


def client(user: int) -> PyTorchTensorDataset:
    """Returns one client's data."""
    rows = slice(user * IMAGES, (user + 1) * IMAGES)
    return PyTorchTensorDataset([features[rows], labels[rows]])


generator = torch.Generator().manual_seed(0)
features = torch.randn(CLIENTS * IMAGES, 3, 32, 32, generator=generator)
labels = torch.randint(0, 10, (CLIENTS * IMAGES,), generator=generator)
net = Net()
model = PyTorchModel(
    model=net,
    local_optimizer_create=torch.optim.SGD,
    central_optimizer=torch.optim.SGD(net.parameters(), lr=1.0),
)
data = FederatedDataset(client, get_user_sampler("minimize_reuse", list(range(CLIENTS))))
stamps = Stamps()
FederatedAveraging().run(
    NNAlgorithmParams(
        central_num_iterations=ROUNDS,
        evaluation_frequency=ROUNDS + 1,
        train_cohort_size=COHORT,
        val_cohort_size=0,
    ),
    SimulatedBackend(training_data=data, val_data=data),
    model,
    NNTrainHyperParams(local_num_epochs=1, local_learning_rate=RATE, local_batch_size=BATCH),
    callbacks=[stamps],
)
seconds = (stamps.ends[-1] - stamps.ends[0]) / (len(stamps.ends) - 1)
print(json.dumps({"seconds_per_round": seconds}), flush=True)
