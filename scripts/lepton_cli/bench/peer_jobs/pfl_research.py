"""A job on pfl-research, which takes its turn after each round."""

import os
import time

import job
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
from turns import Turns

steps = 0


class Net(nn.Sequential):
    """The job's network, with what pfl asks of a model."""

    def __init__(self) -> None:
        super().__init__(*job.layers())

    def loss(self, inputs: torch.Tensor, targets: torch.Tensor, **_: object) -> torch.Tensor:
        """Returns the mean loss of a batch; pfl takes a step after each."""
        global steps
        steps += 1
        return nn.functional.cross_entropy(self(inputs), targets)

    def metrics(self, inputs: torch.Tensor, targets: torch.Tensor, **_: object) -> dict:
        """Returns no metric: the job measures time."""
        return {}


class TakingTurns(TrainingProcessCallback):
    """Waits between rounds, once it is known how many threads are fastest."""

    def __init__(self) -> None:
        self.turns = Turns()
        self.began, self.tried = time.perf_counter(), []
        self.counts = [os.cpu_count(), 1, os.cpu_count()]  # the first round warms up

    def after_central_iteration(self, aggregate_metrics, model, *, central_iteration):  # noqa: ANN001, ANN201
        """Waits; adds no metric."""
        global steps
        taken, steps = steps, 0
        if len(self.tried) < len(self.counts):
            self.tried.append(time.perf_counter() - self.began)
            if len(self.tried) < len(self.counts):
                torch.set_num_threads(self.counts[len(self.tried)])
            else:
                torch.set_num_threads(1 if self.tried[1] < self.tried[2] else os.cpu_count())
            self.began = time.perf_counter()
            return False, Metrics()
        return not self.turns.next(steps=taken), Metrics()


def client(user: int) -> PyTorchTensorDataset:
    """Returns one client's data."""
    return PyTorchTensorDataset([features[user], labels[user]])


features, labels = job.data()
net = Net()
model = PyTorchModel(
    model=net,
    local_optimizer_create=torch.optim.SGD,
    central_optimizer=torch.optim.SGD(net.parameters(), lr=1.0),
)
data = FederatedDataset(client, get_user_sampler("minimize_reuse", list(range(job.CLIENTS))))
FederatedAveraging().run(
    NNAlgorithmParams(
        central_num_iterations=job.MOST_ROUNDS,
        evaluation_frequency=job.MOST_ROUNDS + 1,
        train_cohort_size=job.COHORT,
        val_cohort_size=0,
    ),
    SimulatedBackend(training_data=data, val_data=data),
    model,
    NNTrainHyperParams(
        local_num_epochs=1, local_learning_rate=job.RATE, local_batch_size=job.BATCH
    ),
    callbacks=[TakingTurns()],
)
