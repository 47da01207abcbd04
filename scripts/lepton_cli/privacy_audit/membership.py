"""Membership inference against a final model, by the loss of each record (Yeom et al. 2018).

The model learns made-up records with random labels, which it can only know by heart: nothing but
privacy keeps their loss from telling them from records that it has never seen.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy import stats

from lepton_cli.privacy_audit.canaries import CPU, Values, plain_recipe, resident
from lepton_client.training.conformance import conform
from lepton_client.training.private import heights, train_private
from lepton_common.arrays import read_parameters
from lepton_common.datasets.records import Records
from lepton_common.models.catalog import initial_model
from lepton_common.privacy.plan import PrivacyPlan
from lepton_common.tasks.catalog import Task

TASK = Task("audit", "made up", "cross_entropy", "a random number")
FALSE_POSITIVES = (0.01, 0.001)
_MEMBERS, _OTHERS = 1000, 4000
_FEATURES, _CLASSES = 400, 10
_STEP = 5.0  # how far all gradients together move the model in all steps, if they agree
_QUIET = 1e-6


@dataclass(frozen=True)
class Attack:
    """How well losses tell members from others.

    Attributes:
        auc: chance that a member's loss is below another record's; 0.5 is a blind guess.
        true_positives: share of members found, at each of `FALSE_POSITIVES`.
    """

    auc: float
    true_positives: tuple[float, ...]


@dataclass(frozen=True)
class Membership:
    """The attack on a model of the plan, what it could be at most, and what it does unhindered.

    Attributes:
        members: records that the model was trained on.
        others: as many others.
        steps: of training.
        private: on the model that the plan trained.
        most: what the claimed epsilon and delta permit any attack.
        exposed: on a model trained next to no noise, to show that the attack works.
    """

    members: int
    others: int
    steps: int
    private: Attack
    most: Attack
    exposed: Attack


def attack_membership(
    plan: PrivacyPlan,
    steps: int,
    epsilon: float,
    device: torch.device = CPU,
    advance: Callable[[], None] = lambda: None,
) -> Membership:
    """Trains two models on made-up records and attacks both.

    Args:
        plan: the real one; shared noise is added by the site itself here.
        steps: of training.
        epsilon: claimed for them at the plan's delta.
        device: where the site trains.
        advance: called after each model.
    """
    generator = torch.Generator().manual_seed(1)  # public: of made-up records, not of noise
    features = torch.randn(_MEMBERS + _OTHERS, _FEATURES, generator=generator)
    labels = torch.randint(0, _CLASSES, (_MEMBERS + _OTHERS,), generator=generator)
    attacks = []
    for noise_multiplier in (plan.noise_multiplier, _QUIET):
        quiet = replace(plan, noise_multiplier=noise_multiplier, shared=None,
                        steps_per_round=steps, max_steps=steps,
                        denominator=plan.sample_rate * _MEMBERS)  # fmt: skip
        losses = _losses(quiet, Records(features, labels), device)
        attacks.append(attack(losses[:_MEMBERS], losses[_MEMBERS:]))
        advance()
    private, exposed = attacks
    most = strongest(epsilon, plan.delta)
    return Membership(_MEMBERS, _OTHERS, steps, private, most, exposed)


def _losses(plan: PrivacyPlan, records: Records, device: torch.device) -> Values:
    """Returns each record's loss under a model that was trained on the first of them."""
    model = resident(initial_model("logistic", (_FEATURES,), _CLASSES, seed=1), device)
    start = read_parameters(model.module).cpu().numpy()
    members = records.take(np.arange(_MEMBERS))
    # A mean of clipped gradients of unrelated records is shorter than one by the root of their
    # number.
    rate = _STEP * math.sqrt(_MEMBERS) / (plan.steps_per_round * plan.clipping_norm)
    recipe = plain_recipe(rate)
    engine = conform(model, TASK, (_FEATURES,), _CLASSES, heights(recipe, model))
    train_private(model, TASK, members, start, recipe, plan, engine)
    with torch.no_grad():
        logits = model.module(records.features.to(device, model.dtype)).cpu()
        each = TASK.losses(logits.double(), records.labels)
        losses: Values = each.numpy()
    return losses


def attack(members: Values, others: Values) -> Attack:
    """Returns how well a threshold tells values of members, which tend to be lower, from others'.

    Args:
        members: losses, shape [m].
        others: losses, shape [n].
    """
    wins = stats.mannwhitneyu(others, members).statistic / (len(members) * len(others))
    ordered = np.sort(others)
    found = []
    for rate in FALSE_POSITIVES:
        threshold = ordered[math.floor(rate * len(others))]  # so many others lie below
        found.append(float((members < threshold).mean()))
    return Attack(float(wins), tuple(found))


def strongest(epsilon: float, delta: float) -> Attack:
    """Returns the most that any attack can do under a promise (Kairouz, Oh and Viswanath 2015)."""

    def true_positives(false_positives: Values) -> Values:
        near = np.exp(min(epsilon, 700.0)) * false_positives + delta
        far = 1 - math.exp(-epsilon) * (1 - delta - false_positives)
        most: Values = np.minimum(np.minimum(near, far), 1.0)
        return most

    corner = (1 - delta) / (1 + math.exp(min(epsilon, 700.0)))
    corners = np.array([0.0, corner, 1 - delta, 1.0])
    area = np.trapezoid(true_positives(corners), corners)
    rates = true_positives(np.array(FALSE_POSITIVES))
    return Attack(float(area), tuple(float(rate) for rate in rates))
