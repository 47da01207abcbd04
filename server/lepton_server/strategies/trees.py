"""Grows boosted trees, one level a round, from the sites' summed derivatives and nothing else.

A round is one level of one tree, as a query for statistics is one sum: sites that are there in one
round only are of use, a crash loses one level, and with privacy a level is one step of the plan. A
split says what its children's outputs should be, so the last level needs no round of leaves, and
after each round the model predicts as well as it is known to.
"""

from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from lepton_common.arrays import Layout, Vector
from lepton_common.asking import privacy_request, shared_noise
from lepton_common.errors import ModelMismatch, SettingsError
from lepton_common.messages import SiteFacts
from lepton_common.models.tree_form import form_of
from lepton_common.privacy.plan import PrivacyPlan
from lepton_common.settings import Settings
from lepton_common.tasks.catalog import find_task
from lepton_common.tasks.derivatives import derivatives_of
from lepton_server.rounds.gathered import Mean
from lepton_server.rounds.room import check_room
from lepton_server.strategies.splits import Splits, Sums, best_splits, best_value, levelled


class TreeGrowth:
    """Steps a model of boosted trees; it has no state but the model.

    Attributes:
        needs_each: never: the mean of the sites' sums says all.
    """

    needs_each = False

    def __init__(self, settings: Settings, layout: Layout) -> None:
        """Takes what decides how trees are grown.

        Raises:
            SettingsError: no trees are grown for the task.
            PlanError: no noise reaches the epsilon that was asked for.
        """
        form = form_of(settings.model)
        derivatives = derivatives_of(find_task(settings.task).objective)
        if form is None or derivatives is None:
            raise SettingsError(f"No trees are grown for task={settings.task}.")
        self._form, self._derivatives, self._rules = form, derivatives, settings.trees
        self._layout, self._features = layout, form.features(layout.size)
        self._plan: PrivacyPlan | None = None
        self._unit, self._weight, self._noise = (
            1.0,
            1.0,
            0.0,
        )  # without privacy sums come as they are
        asked = privacy_request(settings, layout.size)
        if asked is not None:
            plan = self._plan = asked.plan("", 1, shared_noise(settings, layout.size))
            person = plan.clipping_norm / (derivatives.norm * self._features**0.5)
            self._unit, self._weight = 1.0 / person, derivatives.weight
            self._noise = plan.own_noise * self._unit / plan.sample_rate

    def step(self, round_: int, model: Vector, mean: Mean) -> Vector:
        """Returns the model with one more level, float32, shape [d].

        Args:
            round_: counted from 1.
            model: float32, shape [d], which says how many levels it has.
            mean: of the sites' sums.

        Raises:
            ModelMismatch: the model has another number of levels than rounds have been.
        """
        parts = {name: part.copy() for name, part in self._layout.split(model).items()}
        if int(parts["levels"][0]) != round_ - 1 or round_ > self._form.levels:
            raise ModelMismatch(f"Round {round_} grows the level {round_} of a model, not another.")
        first, second = self._sums(mean)
        tree, level = divmod(round_ - 1, self._form.depth)
        first, second = first[: 2**level], second[: 2**level]
        noise = self._noise * mean.count**0.5 / self._weight
        if noise:
            first, second = levelled(first), levelled(second)
        if round_ == 1:
            # Not asked for: at the output 0 the sums say how often each label is in each cell.
            root = float(first.sum(2).mean()), float(second.sum(2).mean())
            parts["base"][0] = base = self._derivatives.base(*root)
            first, second = self._derivatives.moved(first, second, base)
        splits = best_splits(first, second, self._rules, noise)
        if level == 0:
            whole = first.sum(2).mean(1), second.sum(2).mean(1)
            if splits.gain[0] > 0 or whole[1][0] > noise:
                parts["leaves"][tree] = best_value(*whole, self._rules)[0]
        self._write(parts, splits, tree, level)
        parts["levels"][0] = round_
        return self._layout.join([parts[name] for name in self._layout.names])

    def check_room(self, cohort: Iterable[SiteFacts]) -> None:
        """Checks that a cohort's sums with shared noise fit into whole numbers.

        Raises:
            PlanError: they may not.
        """
        if self._plan is not None and self._plan.shared is not None:
            check_room(self._plan, cohort, 1 / (self._unit * self._plan.clipping_norm))

    def snapshot(self) -> dict[str, NDArray[np.generic]]:
        """Returns nothing: all is in the model."""
        return {}

    def restore(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Takes over what `snapshot` returned."""

    def _sums(self, mean: Mean) -> tuple[Sums, Sums]:
        """Returns the sums over people of g and of h, shape [nodes, F, B] each."""
        total = mean.value().astype(np.float64) * (mean.count * self._unit)
        cells = total.reshape(2, self._form.open, self._features, self._form.bins)
        return cells[0], cells[1] / self._weight

    def _write(self, parts: Mapping[str, Vector], splits: Splits, tree: int, level: int) -> None:
        """Puts the splits of a level, and the outputs that follow, into a model's tensors."""
        below = self._form.leaves // 2 ** (level + 1)  # leaves under each child
        for node in np.flatnonzero(splits.gain > 0):
            heap, leaf = 2**level - 1 + node, 2 * node * below
            parts["features"][tree, heap] = splits.feature[node]
            parts["thresholds"][tree, heap] = splits.threshold[node]
            parts["leaves"][tree, leaf : leaf + below] = splits.values[node, 0]
            parts["leaves"][tree, leaf + below : leaf + 2 * below] = splits.values[node, 1]
            parts["importance"][splits.feature[node]] += splits.gain[node]
