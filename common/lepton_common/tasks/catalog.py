"""The catalog of tasks: name -> data set, what is learned from it, and which figure counts."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from lepton_common.errors import UnknownName
from lepton_common.extensions import TASKS as PACKAGED
from lepton_common.extensions import extensions
from lepton_common.names import unknown
from lepton_common.tasks.augmentation import (
    AsTheyAre,
    Augmentation,
    OfImages,
    OfSeries,
    OfSounds,
    OfTexts,
)
from lepton_common.tasks.headlines import HEADLINES, Headline
from lepton_common.tasks.objectives import OBJECTIVES, Hazard, Objective, Shape

if TYPE_CHECKING:
    import torch
    from torch import nn

Domain = Literal["general", "finance", "health", "retail", "manufacturing", "security"]
Form = Literal["image", "table", "text", "series", "audio"]

_BATCH = 1000


@dataclass(frozen=True)
class Task:
    """What a federation learns.

    Attributes:
        name: name in the catalog.
        dataset: name of its data set.
        learns: name of an objective, or ``hazard``, whose intervals are ``until``.
        label: what the label says, for reports and model cards.
        form: what a record is.
        domain: who has such data.
        augmentation: how a record may vary and keep its label.
        until: ends of the intervals of ``hazard``.
        scale: lowest and highest value that a ``regression`` is scaled by, and their unit.
        last: greatest time of interest of ``cox``, in the label's unit.
        counts: name of the figure that it is judged by; None: the objective's own.
    """

    name: str
    dataset: str
    learns: str
    label: str
    form: Form = "table"
    domain: Domain = "general"
    augmentation: Augmentation = field(default_factory=AsTheyAre)
    until: tuple[float, ...] = ()
    scale: tuple[float, float, str] = (-1.0, 1.0, "")
    last: float = 1.0
    counts: str | None = None

    @property
    def objective(self) -> Objective:
        """What a model is trained for."""
        return Hazard(self.until) if self.until else OBJECTIVES[self.learns]

    @property
    def horizon(self) -> float:
        """Greatest time of interest of a survival task, in the label's unit, and public."""
        return self.until[-1] if self.until else self.last

    @property
    def headline(self) -> Headline:
        """The figure by which models are compared."""
        return HEADLINES[self.counts or self.objective.headline]

    def outputs(self, classes: int, input_shape: Shape) -> int:
        """Returns how many numbers the model gives for a record."""
        return self.objective.outputs(classes, input_shape)

    @property
    def mixes(self) -> bool:
        """Whether a mixture of two records means anything: tokens and survival times have none."""
        return self.form != "text" and self.objective.mixable

    def losses(self, outputs: "torch.Tensor", labels: "torch.Tensor") -> "torch.Tensor":
        """Returns the loss of each record, shape [n]; on the others it depends in `Cox` alone."""
        return self.objective.losses(outputs, labels)

    def evaluate(
        self,
        model: "nn.Module",
        features: "torch.Tensor",
        labels: "torch.Tensor",
        *,
        every: bool = False,
    ) -> dict[str, float]:
        """Returns a model's figures on some records: the headline, others, and the mean ``loss``.

        A figure that these records do not define, such as a ranking where all labels are the
        same, is left out. With ``every``, all figures there are, which takes longer.
        """
        import torch

        from lepton_common.tasks.figures import figures_of

        model.eval()
        found = figures_of(self, every=every)
        for start in range(0, len(labels), _BATCH):
            with torch.no_grad():
                outputs = model(features[start : start + _BATCH])
            found.add(outputs, labels[start : start + _BATCH])
        return found.result()


_CLASSES, _TWO, _NUMBER = "cross_entropy", "binary", "regression"
_HALF_YEARS = (
    182.0,
    365.0,
    547.0,
    730.0,
    1095.0,
    1461.0,
    1826.0,
    2191.0,
    2556.0,
    2922.0,
    3287.0,
    3652.0,
    4748.0,
    10957.0,
)

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task("digits", "digits", _CLASSES, "handwritten digit, 0 to 9", "image",
             augmentation=OfImages(1)),
        Task("mnist", "mnist", _CLASSES, "handwritten digit, 0 to 9", "image",
             augmentation=OfImages(2)),
        Task("fashion_mnist", "fashion_mnist", _CLASSES, "kind of clothing, 0 to 9", "image",
             "retail", augmentation=OfImages(2, mirror=True)),
        Task("cifar10", "cifar10", _CLASSES, "kind of object, 0 to 9", "image",
             augmentation=OfImages(4, mirror=True)),
        Task("cifar10_subset", "cifar10_subset", _CLASSES, "kind of object, 0 to 9", "image",
             augmentation=OfImages(4, mirror=True)),
        Task("omniglot", "omniglot", _CLASSES, "alphabet of a drawn character", "image",
             augmentation=OfImages(2)),
        Task("pneumoniamnist", "pneumoniamnist", _TWO, "0 normal, 1 pneumonia", "image", "health",
             augmentation=OfImages(2)),
        Task("breast_cancer", "breast_cancer", _CLASSES, "0 malignant, 1 benign", domain="health"),
        Task("heart_disease", "heart_disease", _TWO, "heart disease present", domain="health"),
        Task("tcga_brca", "tcga_brca", "cox", "days until death", domain="health",
             last=_HALF_YEARS[-1]),
        Task("tcga_brca_hazard", "tcga_brca", "hazard", "days until death", domain="health",
             until=_HALF_YEARS),
        Task("adult", "adult", _TWO, "earns more than 50,000 dollars a year"),
        Task("german_credit", "german_credit", _TWO, "loan is bad", domain="finance"),
        Task("credit_default", "credit_default", _TWO, "defaults next month", domain="finance"),
        Task("exchange_rate", "exchange_rate", _NUMBER, "next day's rate", "series", "finance"),
        Task("demand", "demand", _NUMBER, "next day's sales", "series", "retail",
             scale=(0.0, 200.0, "pieces")),
        Task("ai4i", "ai4i", _TWO, "machine failure", domain="manufacturing", counts="pr_auc"),
        Task("wine_quality", "wine_quality", _NUMBER, "taster's mark", domain="manufacturing",
             scale=(0.0, 10.0, "marks")),
        Task("cmapss", "cmapss", _NUMBER, "cycles until an engine fails", "series",
             "manufacturing", scale=(0.0, 125.0, "cycles")),
        Task("machine_anomaly", "machine_anomaly", "reconstruction", "engine is worn", "series",
             "manufacturing"),
        Task("tones", "tones", _CLASSES, "kind of sound, 0 to 4", "audio", "manufacturing",
             augmentation=OfSounds(times=0.1, bands=0.05)),
        Task("uci_har", "uci_har", _CLASSES, "what a person does, 0 to 5", "series", "security",
             augmentation=OfSeries(jitter=0.02, warp=0.05)),
        Task("sms_spam", "sms_spam", _TWO, "message is spam", "text", "security",
             augmentation=OfTexts(dropout=0.1)),
        Task("shakespeare", "shakespeare", "next_token", "next character", "text"),
    )
}  # fmt: skip


def find_task(name: str) -> Task:
    """Returns the task of that name, of ours or of an installed package.

    Raises:
        UnknownName: no such task.
        SettingsError: its package is not in order.
    """
    from lepton_common.tasks.packaged import packaged_task

    if name in TASKS:
        return TASKS[name]
    if name in extensions(PACKAGED):
        return packaged_task(name).task
    raise UnknownName(unknown("task", name, task_names()))


def dataset_of(name: str) -> str:
    """Returns the data set of a task of `task_names`, without importing its package.

    Keys and records are in processes apart, and foreign code runs beside the records alone.
    """
    return TASKS[name].dataset if name in TASKS else name


def task_names() -> list[str]:
    """Returns the names of all tasks that are installed; ours go before a package's."""
    return sorted({*TASKS, *extensions(PACKAGED)})
