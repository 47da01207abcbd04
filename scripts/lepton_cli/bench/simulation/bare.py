"""The reference: a loop over clients with one model, and nothing else."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

from lepton_cli.bench.simulation.jobs import Job
from lepton_common.arrays import read_parameters, write_parameters


class BareLoop:
    """Plain federated averaging as a page of PyTorch, on all of a machine's cores.

    Attributes:
        weights: of the model after the rounds so far, float32, shape [d].
    """

    def __init__(
        self, job: Job, model: nn.Module, features: torch.Tensor, labels: torch.Tensor
    ) -> None:
        """Keeps the data.

        Args:
            job: the numbers.
            model: with its first weights.
            features: shape [clients, records, *shape].
            labels: shape [clients, records].
        """
        self._job, self._model, self._features, self._labels = job, model, features, labels
        self.weights = read_parameters(model)

    def round(self, clients: Sequence[int], seeds: Sequence[int]) -> None:
        """Runs one round.

        Args:
            clients: the cohort.
            seeds: of the order of each one's records.
        """
        total = torch.zeros_like(self.weights)
        for client, seed in zip(clients, seeds, strict=True):
            write_parameters(self._model, self.weights)
            optimizer = torch.optim.SGD(self._model.parameters(), lr=self._job.rate)
            order = torch.randperm(self._job.records, generator=torch.Generator().manual_seed(seed))
            for rows in torch.split(order, self._job.batch):
                optimizer.zero_grad(set_to_none=True)
                logits = self._model(self._features[client][rows])
                loss = functional.cross_entropy(logits, self._labels[client][rows])
                torch.autograd.backward(loss)
                optimizer.step()
            total += read_parameters(self._model)
        self.weights = total / len(clients)


def drawn(job: Job, round_: int, share: float = 1.0) -> tuple[list[int], list[int]]:
    """Returns the cohort of a round, or a share of one, and the seeds of its members' orders."""
    generator = torch.Generator().manual_seed(round_)
    count = max(1, round(share * job.cohort))
    clients = torch.randperm(job.clients, generator=generator)[:count]
    seeds = torch.randint(0, 1 << 50, (count,), generator=generator)
    return clients.tolist(), seeds.tolist()
