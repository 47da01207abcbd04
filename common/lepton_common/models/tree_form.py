"""What the name of a model of boosted trees says, and how long a site's answers to it are.

Such a model is called ``boosted_trees.TREESxDEPTHbBINS`` in a run, so that whoever signs, approves
or compares the name speaks of the same tensors. No PyTorch here: who passes models on asks too.
"""

import re
from dataclasses import dataclass

FAMILY = "boosted_trees"
PREFIX = f"{FAMILY}."
MOST_TREES, MOST_DEPTH, MOST_BINS = 9999, 8, 256
SALT = 4  # random numbers in a model, so that another seed begins with another one
_MOST_CELLS = 1 << 24  # of a site's answer: what it holds in memory, twice
_NAME = re.compile(r"boosted_trees\.([1-9]\d{0,3})x([1-9])b([1-9]\d{0,2})", re.ASCII)


@dataclass(frozen=True)
class TreeForm:
    """How many trees a model has, and of which form.

    Attributes:
        trees: how many, T.
        depth: levels of splits in each, D.
        bins: equal parts of [-1, 1] that a feature's values are told apart by, B.
    """

    trees: int
    depth: int
    bins: int

    @property
    def name(self) -> str:
        """What a run calls it."""
        return f"{PREFIX}{self.trees}x{self.depth}b{self.bins}"

    @property
    def inner(self) -> int:
        """Number of a tree's nodes that may split, 2^D - 1, level by level."""
        return int(2**self.depth) - 1

    @property
    def leaves(self) -> int:
        """Number of a tree's leaves, 2^D."""
        return int(2**self.depth)

    @property
    def open(self) -> int:
        """Number of nodes of the deepest level that splits, 2^(D - 1)."""
        return int(2 ** (self.depth - 1))

    @property
    def levels(self) -> int:
        """How many rounds there is room for: one grows one level."""
        return self.trees * self.depth

    def weights(self, features: int) -> int:
        """Returns the number of a model's values, for records of so many features."""
        of_trees = self.trees * (2 * self.inner + self.leaves)
        return of_trees + features + 2 + SALT  # an importance each, the base, and the levels grown

    def features(self, weights: int) -> int:
        """Returns for how many features a model of so many values is."""
        return weights - self.weights(0)

    def answer(self, features: int) -> int:
        """Returns the number of values in a site's answer, whatever level is grown.

        Two for each cell, of which there are F times B in each node of the deepest level: a
        shallower one leaves some empty, so that one privacy plan holds for all rounds of a run.
        """
        return 2 * self.open * features * self.bins


def form_of(model: str) -> TreeForm | None:
    """Returns the form that a model's name says; None where it is none of boosted trees."""
    found = _NAME.fullmatch(model)
    return TreeForm(*map(int, found.groups())) if found else None


def fault_in(name: str) -> str | None:
    """Returns what is wrong with a name that begins with ``boosted_trees.``; None if it is one."""
    form = form_of(name)
    if form is None:
        return f"'{name[:80]}' is no boosted_trees.TREESxDEPTHbBINS; say model=boosted_trees."
    if form.depth > MOST_DEPTH or not 2 <= form.bins <= MOST_BINS:
        return f"'{name}' should have a depth of 1 to {MOST_DEPTH} and 2 to {MOST_BINS} bins."
    return None


def too_large(form: TreeForm, features: int) -> bool:
    """Says whether an answer for so many features is more than a site should hold."""
    return form.answer(features) > _MOST_CELLS


def answer_size(model: str, weights: int) -> int:
    """Returns how many values a site answers with, of a model of so many weights.

    As many as it has weights, but for trees, whose sites answer with a histogram.
    """
    form = form_of(model)
    return weights if form is None else form.answer(form.features(weights))


def least_weights(model: str) -> int:
    """Returns the fewest weights that a model may have, whatever the records: of trees a form's."""
    form = form_of(model)
    return 1 if form is None else form.weights(1)


def any_form(model: str) -> str:
    """Returns a model's name without its numbers where it is of boosted trees: its family."""
    return FAMILY if form_of(model) else model
