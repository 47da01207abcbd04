"""Gradient-boosted decision trees of a fixed shape, as tensors: they predict, travel and are kept.

Each tree is complete: node i of its D levels has the children 2i + 1 and 2i + 2, and a record goes
right where its bin is beyond the node's threshold. A node that was not split has the last bin as
its threshold, so that all go left. A tree that is not grown yet adds 0.
"""

import math

import torch
from torch import nn

from lepton_common.errors import SettingsError
from lepton_common.models.tree_form import SALT, TreeForm, fault_in, form_of, too_large

_ROWS, _VALUES = 4096, 1 << 22  # at a time; a record has one for each feature, and for each tree


class BoostedTrees(nn.Module):
    """An additive model of trees (Friedman 2001), as XGBoost grows them (Chen and Guestrin 2016).

    Attributes:
        form: number and shape of the trees.
        features: which feature each node looks at, float32, shape [T, 2^D - 1].
        thresholds: last bin that goes left there, shape [T, 2^D - 1].
        leaves: what each leaf adds to the output, learning rate included, shape [T, 2^D].
        base: what every record's output begins with, shape [1].
        importance: gain of all splits by each feature, shape [F].
        levels: how many levels have been grown, shape [1]: the next round grows the one after.
        salt: random numbers that predict nothing, shape [4]: sites take no second sum on the same
            model, and runs of different seeds begin with different ones.
    """

    def __init__(self, form: TreeForm, features: int) -> None:
        super().__init__()
        self.form = form
        self.features = nn.Parameter(torch.zeros(form.trees, form.inner))
        self.thresholds = nn.Parameter(torch.full((form.trees, form.inner), form.bins - 1.0))
        self.leaves = nn.Parameter(torch.zeros(form.trees, form.leaves))
        self.base = nn.Parameter(torch.zeros(1))
        self.importance = nn.Parameter(torch.zeros(features))
        self.levels = nn.Parameter(torch.zeros(1))
        self.salt = nn.Parameter(torch.rand(SALT))

    def forward(self, records: torch.Tensor) -> torch.Tensor:
        """Returns the output for each record, float32, shape [n, 1]."""
        parts = [
            self.margins(self.binned(part), self.form.trees)
            for part in torch.split(records, self.rows_at_once)
        ]
        return torch.cat(parts).float().unsqueeze(1)

    @property
    def rows_at_once(self) -> int:
        """How many records to take at a time, so that memory never tells how many there are."""
        return max(1, min(_ROWS, _VALUES // max(self.form.trees, len(self.importance))))

    def binned(self, records: torch.Tensor) -> torch.Tensor:
        """Returns the bin of each feature, int64, shape [n, F]; beyond [-1, 1] that of the end."""
        values = torch.nan_to_num(_fine(records.detach().flatten(1))).clamp(-1.0, 1.0)
        bins = ((values + 1.0) * (self.form.bins / 2)).long()
        return bins.clamp(max=self.form.bins - 1)

    def grown(self) -> tuple[int, int]:
        """Returns which tree and which of its levels is grown next, each from 0."""
        levels = torch.nan_to_num(self.levels.detach()).clamp(0, self.form.levels - 1)
        return divmod(int(levels), self.form.depth)

    def nodes(self, binned: torch.Tensor, trees: slice, levels: int) -> torch.Tensor:
        """Returns where records come to behind some levels of some trees, int64, shape [n, t].

        Positions are counted from 0 in each level. Whatever the weights are, a record's depend on
        its own bins alone.
        """
        most = len(self.importance) - 1
        features = torch.nan_to_num(self.features.detach()[trees]).clamp(0, most).long()
        thresholds = self.thresholds.detach()[trees]
        tree = torch.arange(len(features), device=binned.device)
        at = torch.zeros(len(binned), len(features), dtype=torch.int64, device=binned.device)
        for level in range(levels):
            heap = 2**level - 1 + at
            right = binned.gather(1, features[tree, heap]) > thresholds[tree, heap]
            at = 2 * at + right
        return at

    def margins(self, binned: torch.Tensor, trees: int) -> torch.Tensor:
        """Returns the output of the first so many trees for each record, float64, shape [n]."""
        at = self.nodes(binned, slice(0, trees), self.form.depth)
        of_trees = _fine(self.leaves.detach()[:trees]).T.gather(0, at)
        total = _fine(self.base.detach()).expand(len(binned)).clone()
        # One after the other: a sum along a row may be split up by how many rows there are.
        for tree in range(trees):
            total += of_trees[:, tree]
        return total


def _fine(values: torch.Tensor) -> torch.Tensor:
    """Returns values in float64; as they are on Apple's GPUs, which have none."""
    return values if values.device.type == "mps" else values.double()


def boosted_trees(name: str, input_shape: tuple[int, ...], outputs: int) -> BoostedTrees:
    """Returns the trees of a name, of which none is grown.

    Args:
        name: beginning with ``boosted_trees.``.
        input_shape: shape of one record, whose values are its features.
        outputs: what the task asks for: 1.

    Raises:
        SettingsError: the name is none, or the trees are not for such a task or such records.
    """
    form, features = form_of(name), math.prod(input_shape)
    if form is None or fault_in(name):
        raise SettingsError(fault_in(name) or name)
    if outputs != 1:
        raise SettingsError(
            f"Boosted trees give one number for a record, and this task asks for {outputs}; choose "
            "a task of two classes or a number, or model=mlp or model=logistic."
        )
    if too_large(form, features):
        raise SettingsError(
            f"{form.answer(features):,} sums a round are too many for a site: lower trees.depth or "
            "trees.bins."
        )
    return BoostedTrees(form, features)
