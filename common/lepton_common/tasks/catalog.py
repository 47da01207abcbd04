"""The catalog of tasks: name -> data set, loss and metrics."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from lepton_common.names import look_up

if TYPE_CHECKING:
    import torch
    from torch import nn

_BATCH = 1000


@dataclass(frozen=True)
class Task:
    """A supervised task.

    Attributes:
        name: name in the catalog.
        dataset: name of its data set.
        loss: ``cross_entropy`` over one logit a class, or ``binary`` over a single logit.
        label: what the label says, for reports and model cards.
        shift: by how many pixels an image may be moved and keep its label; 0: not at all.
        mirror: whether an image keeps its label when left and right change places.
    """

    name: str
    dataset: str
    loss: Literal["cross_entropy", "binary"]
    label: str
    shift: int = 0
    mirror: bool = False

    def outputs(self, classes: int) -> int:
        """Returns how many logits the model needs."""
        return 1 if self.loss == "binary" else classes

    def losses(self, logits: "torch.Tensor", labels: "torch.Tensor") -> "torch.Tensor":
        """Returns the loss of each record, shape [n]; never depends on other records."""
        from torch.nn import functional

        if self.loss == "binary":
            return functional.binary_cross_entropy_with_logits(
                logits.squeeze(1), labels.to(logits.dtype), reduction="none"
            )
        return functional.cross_entropy(logits, labels, reduction="none")

    def predictions(self, logits: "torch.Tensor") -> "torch.Tensor":
        """Returns the predicted label of each record, int64, shape [n]."""
        if self.loss == "binary":
            return (logits.squeeze(1) > 0).long()
        return logits.argmax(dim=1)

    def evaluate(
        self, model: "nn.Module", features: "torch.Tensor", labels: "torch.Tensor"
    ) -> dict[str, float]:
        """Returns ``accuracy`` (in 0..1) and mean ``loss`` of a model on some records."""
        import torch

        model.eval()
        correct, loss = 0, 0.0
        for start in range(0, len(labels), _BATCH):
            wanted = labels[start : start + _BATCH]
            with torch.no_grad():
                logits = model(features[start : start + _BATCH])
            correct += int((self.predictions(logits) == wanted).sum())
            loss += float(self.losses(logits, wanted).double().sum())
        return {"accuracy": correct / len(labels), "loss": loss / len(labels)}


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task("digits", "digits", "cross_entropy", "handwritten digit, 0 to 9", shift=1),
        Task("breast_cancer", "breast_cancer", "cross_entropy", "0 malignant, 1 benign"),
        Task("mnist", "mnist", "cross_entropy", "handwritten digit, 0 to 9", shift=2),
        Task(
            "fashion_mnist",
            "fashion_mnist",
            "cross_entropy",
            "kind of clothing, 0 to 9",
            shift=2,
            mirror=True,
        ),
        Task("cifar10", "cifar10", "cross_entropy", "kind of object, 0 to 9", shift=4, mirror=True),
        Task("heart_disease", "heart_disease", "binary", "heart disease present"),
    )
}


def find_task(name: str) -> Task:
    """Returns the task of that name.

    Raises:
        UnknownName: no such task.
    """
    return look_up(TASKS, name, "task")
