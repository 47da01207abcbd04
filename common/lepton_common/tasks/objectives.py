"""What a model is trained for: how outputs and labels make a loss, and by which figure it counts.

A record's loss depends on that record alone wherever `Objective.apart` says so: differential
privacy bounds what one record changes, and cannot bound what records say of one another.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    import torch

Shape = tuple[int, ...]

_ONE_IN_TWENTY = -math.log(19.0)  # where hazards start, so that weights need not bring them there


class Objective(ABC):
    """One kind of learning problem.

    Attributes:
        headline: the figure that tables, curves and the choice of the best round go by.
        apart: whether a record's loss depends on that record alone.
        mixable: whether a label may be partly that of another record.
    """

    headline: ClassVar[str]
    apart: ClassVar[bool] = True
    mixable: ClassVar[bool] = False

    @abstractmethod
    def outputs(self, classes: int, input_shape: Shape) -> int:
        """Returns how many numbers the model gives for a record, or for each of its positions."""

    @abstractmethod
    def losses(self, outputs: "torch.Tensor", labels: "torch.Tensor") -> "torch.Tensor":
        """Returns the loss of each record, shape [n]."""

    def mixed_losses(
        self,
        outputs: "torch.Tensor",
        labels: "torch.Tensor",
        others: "torch.Tensor",
        shares: "torch.Tensor",
    ) -> "torch.Tensor":
        """Returns the loss of records whose labels are partly others', shape [n]; if `mixable`.

        Of a likelihood, which is linear in the label, that is a share of each one's.

        Args:
            outputs: of the model.
            labels: of the records.
            others: those that they are mixed with.
            shares: of the records' own labels, from 0 to 1, shape [n].
        """
        return shares * self.losses(outputs, labels) + (1 - shares) * self.losses(outputs, others)

    @abstractmethod
    def made_up_labels(
        self, count: int, classes: int, input_shape: Shape, generator: "torch.Generator"
    ) -> "torch.Tensor":
        """Returns labels of the right form for records that are none, shape [count, ...]."""


class CrossEntropy(Objective):
    """One of several classes; a logit for each. Labels: int64, shape [n]."""

    headline = "accuracy"
    mixable = True

    def outputs(self, classes: int, input_shape: Shape) -> int:
        """Returns the number of classes."""
        return classes

    def losses(self, outputs: "torch.Tensor", labels: "torch.Tensor") -> "torch.Tensor":
        """Returns the negative log-likelihood of each record's class."""
        from torch.nn import functional

        return functional.cross_entropy(outputs, labels, reduction="none")

    def made_up_labels(
        self, count: int, classes: int, input_shape: Shape, generator: "torch.Generator"
    ) -> "torch.Tensor":
        """Returns classes, each as likely."""
        import torch

        return torch.randint(0, classes, (count,), generator=generator)


class Binary(CrossEntropy):
    """One of two classes; a single logit, of class 1. Labels: int64, shape [n]."""

    def outputs(self, classes: int, input_shape: Shape) -> int:
        """Returns 1."""
        return 1

    def losses(self, outputs: "torch.Tensor", labels: "torch.Tensor") -> "torch.Tensor":
        """Returns the negative log-likelihood of each record's class."""
        from torch.nn import functional

        return functional.binary_cross_entropy_with_logits(
            outputs.squeeze(1), labels.to(outputs.dtype), reduction="none"
        )


class Regression(Objective):
    """A number. Labels: float32, shape [n], scaled by a public range to [-1, 1]."""

    headline = "rmse"
    mixable = True

    def outputs(self, classes: int, input_shape: Shape) -> int:
        """Returns 1."""
        return 1

    def losses(self, outputs: "torch.Tensor", labels: "torch.Tensor") -> "torch.Tensor":
        """Returns half the squared error of each record, in scaled units."""
        return (outputs.squeeze(1) - labels.to(outputs.dtype)).square() / 2

    def mixed_losses(
        self,
        outputs: "torch.Tensor",
        labels: "torch.Tensor",
        others: "torch.Tensor",
        shares: "torch.Tensor",
    ) -> "torch.Tensor":
        """Returns half the squared distance from the mixed number."""
        return self.losses(outputs, shares * labels + (1 - shares) * others)

    def made_up_labels(
        self, count: int, classes: int, input_shape: Shape, generator: "torch.Generator"
    ) -> "torch.Tensor":
        """Returns numbers from -1 to 1."""
        import torch

        return 2 * torch.rand(count, generator=generator) - 1


class NextToken(Objective):
    """The token after each position. Labels: int64, shape [n, T]; -1 where there is none."""

    headline = "accuracy"

    def outputs(self, classes: int, input_shape: Shape) -> int:
        """Returns the size of the vocabulary."""
        return classes

    def losses(self, outputs: "torch.Tensor", labels: "torch.Tensor") -> "torch.Tensor":
        """Returns the mean negative log-likelihood over each record's positions."""
        from torch.nn import functional

        each = functional.cross_entropy(
            outputs.transpose(1, 2), labels, ignore_index=-1, reduction="none"
        )
        return each.sum(1) / (labels >= 0).sum(1).clamp(min=1)

    def made_up_labels(
        self, count: int, classes: int, input_shape: Shape, generator: "torch.Generator"
    ) -> "torch.Tensor":
        """Returns tokens, each as likely."""
        import torch

        return torch.randint(0, classes, (count, input_shape[0]), generator=generator)


class Reconstruction(Objective):
    """The record itself. Labels: float32, shape [n, 1 + d]: 1 for an anomaly, then the record."""

    headline = "roc_auc"

    def outputs(self, classes: int, input_shape: Shape) -> int:
        """Returns the number of a record's values."""
        return math.prod(input_shape)

    def losses(self, outputs: "torch.Tensor", labels: "torch.Tensor") -> "torch.Tensor":
        """Returns the mean squared error of each record."""
        return (outputs.flatten(1) - labels[:, 1:].to(outputs.dtype)).square().mean(1)

    def made_up_labels(
        self, count: int, classes: int, input_shape: Shape, generator: "torch.Generator"
    ) -> "torch.Tensor":
        """Returns records between -1 and 1, none of which is marked."""
        import torch

        width = math.prod(input_shape)
        values = 2 * torch.rand(count, width, generator=generator) - 1
        return torch.cat([torch.zeros(count, 1), values], 1)


@dataclass(frozen=True)
class Hazard(Objective):
    """Time until an event, by the chance in each of some public intervals, if none came before.

    The logistic hazard model (Brown 1975; Gensheimer and Narasimhan 2019): its likelihood is a
    product over people, where Cox' compares each with all who were at risk. A person's chance is
    the same in every interval, for which intervals are chosen that suit it: a chance for each
    takes as many times the weights, which few events do not teach, least of all under noise.
    Labels: float32, shape [n, 2]: time, and 1 for an event, 0 where it is not known to have come
    until then.

    Attributes:
        until: ends of the intervals, ascending, in the unit of time; the last is never left.
    """

    until: tuple[float, ...]
    headline: ClassVar[str] = "c_index"

    def outputs(self, classes: int, input_shape: Shape) -> int:
        """Returns 1: the logit of the chance in an interval, less that of one in twenty."""
        return 1

    def losses(self, outputs: "torch.Tensor", labels: "torch.Tensor") -> "torch.Tensor":
        """Returns the negative log-likelihood of what is known of each record."""
        import torch
        from torch.nn import functional

        ends = torch.tensor(self.until, dtype=labels.dtype, device=labels.device)
        reached = torch.bucketize(labels[:, 0].contiguous(), ends).clamp(max=len(ends) - 1)
        places = torch.arange(len(ends), device=labels.device)
        at_risk = (places <= reached[:, None]).to(outputs.dtype)
        came = (places == reached[:, None]) * labels[:, 1:2]
        logits = (outputs + _ONE_IN_TWENTY).expand(-1, len(ends))
        each = functional.binary_cross_entropy_with_logits(
            logits, came.to(outputs.dtype), reduction="none"
        )
        return (each * at_risk).sum(1)

    def made_up_labels(
        self, count: int, classes: int, input_shape: Shape, generator: "torch.Generator"
    ) -> "torch.Tensor":
        """Returns times up to the last end, half of them of events."""
        import torch

        times = torch.rand(count, generator=generator) * self.until[-1]
        events = torch.randint(0, 2, (count,), generator=generator)
        return torch.stack([times, events.to(times.dtype)], 1)


class Cox(Objective):
    """Time until an event, by the order in which it comes. Labels: as `Hazard`.

    The partial likelihood of Cox (1972) with Breslow's ties, over the records of one batch: each
    record's loss depends on all who were at risk, so that it is refused with privacy by record.
    """

    headline = "c_index"
    apart = False

    def outputs(self, classes: int, input_shape: Shape) -> int:
        """Returns 1: the logarithm of the relative hazard."""
        return 1

    def losses(self, outputs: "torch.Tensor", labels: "torch.Tensor") -> "torch.Tensor":
        """Returns each event's share of the negative partial log-likelihood, 0 without an event."""
        risk = outputs.squeeze(1)
        later = labels[None, :, 0] >= labels[:, None, 0]
        at_risk = risk.expand(len(risk), -1).masked_fill(~later, -math.inf)
        return (at_risk.logsumexp(1) - risk) * labels[:, 1].to(risk.dtype)

    def made_up_labels(
        self, count: int, classes: int, input_shape: Shape, generator: "torch.Generator"
    ) -> "torch.Tensor":
        """Returns times up to 1, half of them of events."""
        return Hazard((1.0,)).made_up_labels(count, classes, input_shape, generator)


OBJECTIVES: dict[str, Objective] = {
    "cross_entropy": CrossEntropy(),
    "binary": Binary(),
    "regression": Regression(),
    "next_token": NextToken(),
    "reconstruction": Reconstruction(),
    "cox": Cox(),
}
"""By name; `Hazard` has intervals of its own in each task."""
