"""Gradient inversion: what one released gradient shows of the record behind it. Illustrative only.

In a layer with weights and biases, the gradient of one record is an outer product: some vector
times the record itself, and that vector once more for the biases (Phong et al. 2017). Without
noise the record is read off by division; with noise the nearest such product is taken.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch

from lepton_cli.privacy_audit.canaries import CPU, Values, plain_recipe, resident
from lepton_client.training.conformance import conform
from lepton_client.training.private import Engine, clipped_sum, heights
from lepton_common.datasets.records import Records
from lepton_common.models.catalog import initial_model
from lepton_common.privacy.noise import SecretRandom
from lepton_common.privacy.plan import PrivacyPlan
from lepton_common.tasks.catalog import Task

TASK = Task("audit", "made up", "cross_entropy", "nothing")
_SIDE, _CLASSES = 16, 10
_TRIALS = 25


@dataclass(frozen=True)
class Likeness:
    """How near a reconstruction comes to the record.

    Attributes:
        cosine: cosine similarity about the mean grey, in [-1, 1]; near 0 for an unrelated picture.
        psnr_db: peak signal-to-noise ratio in decibels, of values in [0, 1].
    """

    cosine: float
    psnr_db: float


@dataclass(frozen=True)
class Inversion:
    """Reconstructions of one made-up picture from one step's release.

    Attributes:
        without_noise: from its clipped gradient as it is.
        with_noise: from that with the plan's noise; the median over draws.
        trials: number of draws.
    """

    without_noise: Likeness
    with_noise: Likeness
    trials: int


def invert_gradient(plan: PrivacyPlan, device: torch.device = CPU) -> Inversion:
    """Reconstructs a picture from what one step with this record alone would release."""
    picture = _picture()
    model = resident(initial_model("mlp", (1, _SIDE, _SIDE), _CLASSES, seed=1), device)
    records = Records(
        torch.from_numpy(picture).float().view(1, 1, _SIDE, _SIDE),
        torch.zeros(1, dtype=torch.int64),
    )
    used = heights(plain_recipe(1.0, batch_size=1), model)
    with conform(model, TASK, (1, _SIDE, _SIDE), _CLASSES, used).open(model) as hooks:
        total = clipped_sum(Engine(model, hooks), TASK, records, [np.array([0])], 1, plan)
    clipped = total.double().cpu().numpy()
    hidden = model.layout.shapes[0][0]
    clean = likeness(_reconstruct(clipped, hidden), picture)
    deviation = plan.noise_multiplier * plan.clipping_norm
    noisy = [
        likeness(_reconstruct(SecretRandom().add_gaussian(clipped, deviation), hidden), picture)
        for _ in range(_TRIALS)
    ]
    return Inversion(
        without_noise=clean,
        with_noise=Likeness(
            float(np.median([one.cosine for one in noisy])),
            float(np.median([one.psnr_db for one in noisy])),
        ),
        trials=_TRIALS,
    )


def likeness(reconstruction: Values, picture: Values) -> Likeness:
    """Compares two pictures, values in [0, 1], of the same shape."""
    error = float(np.square(reconstruction - picture).mean())
    first, second = (values - values.mean() for values in (reconstruction, picture))
    lengths = float(np.linalg.norm(first) * np.linalg.norm(second))
    cosine = float((first * second).sum()) / lengths if lengths else 0.0
    return Likeness(cosine, -10 * math.log10(max(error, 1e-12)))


def _reconstruct(gradient: Values, hidden: int) -> Values:
    """Returns the picture in a gradient of the first layer, shape [side * side], in [0, 1]."""
    size = _SIDE * _SIDE
    weights = gradient[: hidden * size].reshape(hidden, size)
    biases = gradient[hidden * size : hidden * size + hidden]
    # The record, followed by 1, is the direction in which the rows of both lie.
    rows = torch.from_numpy(np.column_stack([weights, biases]))
    direction = torch.linalg.svd(rows, full_matrices=False).Vh[0].numpy()
    ratio = direction[-1] if abs(direction[-1]) > 1e-12 else 1e-12
    found: Values = np.clip(direction[:-1] / ratio, 0.0, 1.0)
    return found


def _picture() -> Values:
    """Returns a ring with a bar through it, smooth, values in [0, 1], shape [side * side]."""
    place = np.linspace(-1.0, 1.0, _SIDE)
    across, down = np.meshgrid(place, place)
    ring = np.exp(-(((np.hypot(across, down) - 0.65) / 0.15) ** 2))
    bar = np.exp(-((across / 0.12) ** 2)) * (np.abs(down) < 0.9)
    drawn: Values = np.clip(ring + bar, 0.0, 1.0).ravel()
    return drawn
