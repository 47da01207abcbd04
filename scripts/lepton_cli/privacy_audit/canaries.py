"""A made-up site whose records are canaries, trained by the code that trains at real sites.

Each canary has a weight that no other record touches, and a gradient a few hundred times the
clipping norm; clipped, it is the unit vector of that weight. So what a step releases at a weight
is the noise, plus 1 (in clipping norms) if that canary is in the data and was sampled: the worst
records that differential privacy speaks of (Nasr et al. 2023). The learning rate is so small that
no canary is ever learned.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from lepton_client.training.conformance import conform
from lepton_client.training.private import heights, noised, noisy_sum, train_private
from lepton_client.training.resident import ResidentModel
from lepton_common.arrays import Layout
from lepton_common.datasets.records import Records, Rows
from lepton_common.messages import Recipe
from lepton_common.privacy.noise import SecretRandom
from lepton_common.privacy.plan import PrivacyPlan
from lepton_common.tasks.catalog import Task

Values = NDArray[np.float64]
Coins = NDArray[np.bool_]

CPU = torch.device("cpu")
TASK = Task("audit", "made up", "binary", "1 for every canary")
# Logits over weights, in clipping norms: while logits stay within 1, gradients are 270 to 730 long.
_TIMES_TOO_LONG = 1000.0


class CanaryModel(nn.Module):
    """A weight for each canary, looked up and scaled: the logit of the canary's record."""

    def __init__(self, canaries: int, scale: float) -> None:
        super().__init__()
        self.weights = nn.Embedding(canaries, 1)
        nn.init.zeros_(self.weights.weight)
        self._scale = scale

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Returns logits, shape [rows, 1], of records that each hold a canary's number."""
        numbers = features[:, 0].round().long() % self.weights.num_embeddings
        logits: torch.Tensor = self.weights(numbers) * self._scale
        return logits


class CanarySite:
    """Some canaries, asked for one release after another.

    Attributes:
        plan: what is trained under.
    """

    def __init__(
        self,
        plan: PrivacyPlan,
        canaries: int,
        present: Rows,
        releases: int,
        device: torch.device = CPU,
    ) -> None:
        """Prepares training.

        Args:
            plan: with ``steps_per_round`` steps behind a release.
            canaries: number of weights, up to 2**24.
            present: which canaries are in the site's data, int64.
            releases: how many will be asked for.
            device: where the site trains.
        """
        self.plan = plan
        scale = _TIMES_TOO_LONG * plan.clipping_norm
        module = CanaryModel(canaries, scale)
        self._model = resident(module, device)
        self._records = Records(
            torch.from_numpy(present.astype(np.float32)).unsqueeze(1),
            torch.ones(len(present), dtype=torch.int64),
        )
        # Six standard deviations of all noise together move no logit beyond 1.
        steps = releases * plan.steps_per_round
        furthest = scale * plan.clipping_norm * (steps + 6 * plan.noise_multiplier * steps**0.5)
        self._recipe = plain_recipe(plan.denominator / furthest)
        used = heights(self._recipe, self._model)
        self._engine = conform(self._model, TASK, (1,), 2, used)
        self._weights = np.zeros(canaries, dtype=np.float32)

    def release(self) -> Values:
        """Trains for one round; returns what its release shows of each canary, shape [canaries].

        In clipping norms: each time that a canary was part of a step counts 1.
        """
        if self.plan.shared is None:
            update = train_private(self._model, TASK, self._records, self._weights,
                                   self._recipe, self.plan, self._engine)  # fmt: skip
            scale = self._recipe.learning_rate * self.plan.clipping_norm / self.plan.denominator
            shown = update.astype(np.float64) / scale
        else:
            total = self._shared_sum()
            shown = -total / self.plan.clipping_norm
            step = -self._recipe.learning_rate / self.plan.denominator
            update = (step * total).astype(np.float32)
        self._weights = self._weights + update
        return shown

    def _shared_sum(self) -> Values:
        """Returns one noisy sum over sites of which only those whose noise is certain add any."""
        plan, shared = self.plan, self.plan.shared
        assert shared is not None
        total = noisy_sum(self._model, TASK, self._records, self._weights,
                          self._recipe, plan, self._engine)  # fmt: skip
        for _ in range(shared.certain - 1):
            total = total + noised(np.zeros(len(total)), plan, SecretRandom())
        values: Values = np.asarray(total, dtype=np.float64) * plan.grid
        return values


def resident(module: nn.Module, device: torch.device = CPU) -> ResidentModel:
    """Returns a model as a site keeps it, on a device."""
    return ResidentModel(module.to(device), Layout.of(module), device)


def plain_recipe(learning_rate: float, batch_size: int = 4096) -> Recipe:
    """Returns plain gradient descent, after which a release shows the noisy sums as they were."""
    return Recipe(
        optimizer="sgd",
        learning_rate=learning_rate,
        momentum=0.0,
        weight_decay=0.0,
        batch_size=batch_size,
        local_epochs=None,
        local_steps=1,
        augmentations=1,
        precision="float32",
        device="cpu",
        proximal_mu=0.0,
        update_scale=1.0,
        seed=0,
    )


def draw_present(canaries: int) -> Rows:
    """Returns which of the canaries are in the data, by a fair secret coin for each."""
    return SecretRandom().poisson_sample(canaries, 0.5)
