"""The figures that models are compared by: how they are called, and which way is better."""

from collections.abc import Sequence
from dataclasses import dataclass

from lepton_common.evaluation.direction import lower_is_better


@dataclass(frozen=True)
class Headline:
    """One figure.

    Attributes:
        name: in metrics.
        title: in tables and pictures.
        top: the most that it can be; None: unbounded.
    """

    name: str
    title: str
    top: float | None = 1.0

    @property
    def higher(self) -> bool:
        """Whether more is better."""
        return not lower_is_better(self.name)

    def best(self, values: Sequence[float]) -> int:
        """Returns the place of the best value, the first of equals."""
        return values.index(max(values) if self.higher else min(values))


HEADLINES: dict[str, Headline] = {
    headline.name: headline
    for headline in (
        Headline("accuracy", "accuracy"),
        Headline("balanced_accuracy", "balanced accuracy"),
        Headline("f1_macro", "F1, mean over classes"),
        Headline("roc_auc", "area under the ROC curve"),
        Headline("pr_auc", "area under the precision-recall curve"),
        Headline("c_index", "concordance index"),
        Headline("perplexity", "perplexity", top=None),
        Headline("rmse", "root mean squared error", top=None),
        Headline("mae", "mean absolute error", top=None),
    )
}
