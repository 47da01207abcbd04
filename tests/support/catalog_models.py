"""Records and outputs that suit each model of the catalog, and made-up ones of that kind."""

from dataclasses import dataclass

import torch
from torch.nn import functional

from lepton_common.models.fitting import IMAGES, READS, SERIES, SOUNDS, TOKENS, WINDOWS
from lepton_common.tasks.catalog import Task

_SHAPES = {IMAGES: (1, 16, 16), SERIES: (6, 3), WINDOWS: (12, 3), TOKENS: (7,), SOUNDS: (1200,)}
FAMILIES = sorted({*READS, "autoencoder"} - {"cnn", "cnn_small", "cnn_reference"})
# Plain sequences of layers for images and tables, and all models that read images.
SEQUENCES = ["cnn", "cnn_reference", "cnn_small", "logistic", "mlp"]
ANY_OR_IMAGES = [*SEQUENCES, "resnet"]


def shape_of(name):
    """Returns the shape of a record that a model reads."""
    if name == "resnet":
        return (1, 8, 8)
    return _SHAPES[READS[name]] if name in READS else (5,)


def outputs_of(name, classes=3):
    """Returns how many outputs suit a model."""
    if name == "autoencoder":
        return 5
    return 11 if name.startswith("char") else classes


def made_up(name, rows, seed=1):
    """Returns float32 records for a model."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(rows, *shape_of(name), generator=generator)
    if READS.get(name) == TOKENS:
        features = (features.abs() * 4).floor().clamp(max=10)
    return features


@dataclass(frozen=True)
class AnyTask(Task):
    """A loss for whatever a model gives, from labels that are classes."""

    def losses(self, logits, labels):
        if logits.dim() == 3:
            wanted = labels[:, None].expand(-1, logits.shape[1])
            return functional.cross_entropy(logits.transpose(1, 2), wanted, reduction="none").mean(
                1
            )
        if self.name == "autoencoder":
            return (logits - labels[:, None]).square().mean(1)
        return super().losses(logits, labels)


def task_for(name):
    """Returns a task that a model can be trained for."""
    return AnyTask(name, "toy", "cross_entropy", "nothing")
