"""Mistakes that honest people make with differential privacy, each held against a whole site.

The list is that of the notes on differential privacy: mistakes found in published systems, none
of which needs an adversary.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from toy_federation import Federation, masked_sum
from toy_site import (
    MODEL,
    PERMISSIVE,
    PRIVACY,
    RECIPE,
    VECTOR,
    ask,
    context,
    request,
    train_message,
)

from lepton_client import consent
from lepton_client.app import app
from lepton_client.door import Outbound
from lepton_client.training import private
from lepton_common.errors import ConsentRefused, DoorRefused
from lepton_common.messages import read_update
from lepton_common.privacy.accounting import epsilon
from lepton_common.privacy.provenance import PROTOCOL, UNPROTECTED
from lepton_common.tasks.catalog import find_task


def _answer(site, **changes):
    reply = app(train_message(**changes), context(site.folder))
    return read_update(reply.content, len(VECTOR))


def _sampled(site, monkeypatch, asked):
    """Returns which rows each private step of a round used."""
    used = []
    summed = private.clipped_sum

    def watch(engine, task, records, units, *how):
        used.append(sorted(int(row) for rows in units for row in rows))
        return summed(engine, task, records, units, *how)

    monkeypatch.setattr(private, "clipped_sum", watch)
    _answer(site, privacy=asked, recipe=replace(RECIPE, batch_size=64))
    return used


def test_batches_are_poisson_samples_not_a_shuffled_epoch(make_site, monkeypatch):
    steps, rate, rows = 160, 0.25, 40
    asked = replace(PRIVACY, sample_rate=rate, steps_per_round=steps, max_steps=steps,
                    noise_multiplier=50.0)  # fmt: skip
    used = _sampled(make_site(), monkeypatch, asked)
    assert len(used) == steps
    sizes = np.array([len(step) for step in used])
    # Binomial: 6 standard errors of mean and variance. Shuffled batches are all of one size.
    variance = rows * rate * (1 - rate)
    assert sizes.mean() == pytest.approx(rows * rate, abs=6 * (variance / steps) ** 0.5)
    assert sizes.var() == pytest.approx(variance, rel=6 * (2 / steps) ** 0.5)
    # In an epoch of four batches each row comes once; here it comes any number of times.
    epochs = [
        np.bincount(np.concatenate(used[i : i + 4]).astype(int), minlength=rows)
        for i in range(0, steps, 4)
    ]
    times = np.bincount(np.concatenate(epochs), minlength=5) / (rows * len(epochs))
    expected = [0.316, 0.422, 0.211, 0.047, 0.004]
    assert times == pytest.approx(expected, abs=0.06)


def test_the_private_number_of_records_is_in_nothing_that_leaves(make_site):
    receipts = {}
    for rows in (10, 40):
        site = make_site(name=f"site-{rows}", rows=rows)
        _, metrics, receipt = _answer(site, privacy=PRIVACY)
        assert metrics == {}
        receipts[rows] = (receipt.plan, receipt.steps, receipt.epsilon)
        logged = [item for r in site.audit.records for item in r.body.get("items", ())]
        assert not [item for item in logged if item["name"] not in ("update", "receipt")]
    assert receipts[10] == receipts[40]


def test_a_weight_by_private_records_is_refused_with_privacy(make_site):
    federation = Federation(make_site, 4)
    weights = {folder.name: 16 for folder in federation.folders}
    for cap, refused in ((None, False), (16, True)):
        asked = federation.request(privacy=PRIVACY, masked=masked_sum(weights, weight_cap=cap))
        spec = federation.spec(asked)
        if refused:
            with pytest.raises(ConsentRefused, match="no weight may depend"):
                consent.check(asked, federation.open(1).file, spec)
        else:
            consent.check(asked, federation.open(1).file, spec)


def test_a_sum_is_divided_by_a_public_number(make_site, monkeypatch):
    monkeypatch.setattr(
        "lepton_common.privacy.noise.SecretRandom.add_gaussian",
        lambda self, values, deviation: values,
    )
    asked = replace(PRIVACY, sample_rate=1.0, steps_per_round=1)
    lengths = {}
    for rows in (39, 40):
        site = make_site(name=f"site-{rows}", rows=rows)
        lengths[rows] = _answer(site, privacy=asked)[0]
    # One record more adds its own clipped gradient over the public size, and changes nothing else.
    moved = float(np.linalg.norm(lengths[40] - lengths[39]))
    largest = RECIPE.learning_rate * asked.clipping_norm / 16
    assert 0 < moved <= largest * (1 + 1e-5)


def test_a_metric_of_private_records_does_not_pass_the_door(make_site):
    site = make_site(replace(PERMISSIVE, allow_without_dp=False))
    with pytest.raises(DoorRefused, match="without DP"):
        site.door.release(train_message(), [Outbound("loss", 0.5, UNPROTECTED)], {})
    with pytest.raises(DoorRefused, match="not on the door's list"):
        site.door.release(train_message(), [Outbound("records", 40.0, PROTOCOL)], {})


@pytest.mark.parametrize("kind", ["evaluate", "query", "train.evaluate"])
def test_no_message_asks_a_site_how_good_a_model_is(make_site, kind):
    """Early stopping and picking a round by sites' results are releases that nobody charges for."""
    site = make_site()
    with pytest.raises(ValueError, match=r"No .* function registered"):
        app(ask(train_message().content, kind), context(site.folder))


def test_no_seed_reaches_noise_or_samples(make_site):
    updates = []
    for name in ("first", "second"):
        torch.manual_seed(7)
        np.random.seed(7)  # noqa: NPY002
        recipe = replace(RECIPE, seed=7)
        updates.append(_answer(make_site(name=name), privacy=PRIVACY, recipe=recipe)[0])
    assert not np.array_equal(*updates)
    difference = updates[0] - updates[1]
    assert difference.std() > 0.1 * RECIPE.learning_rate * PRIVACY.noise_multiplier / 8


def test_epsilon_is_that_of_all_rounds_not_of_the_last(make_site):
    site = make_site()
    shown = [_answer(site, privacy=PRIVACY, round=round_)[2].epsilon for round_ in (1, 2, 3)]
    plan = PRIVACY.plan("row", 16)
    assert shown == [epsilon((plan.event(rounds),), 1e-5) for rounds in (1, 2, 3)]
    assert shown[2] > 1.3 * shown[0]


def test_statistics_of_private_records_prepare_no_private_training(make_site):
    site = make_site().file
    site = replace(site, data=replace(site.data, prepare="site_statistics"))
    with pytest.raises(ConsentRefused, match="statistics"):
        consent.check(request(privacy=PRIVACY, prepare="site_statistics"), site)


def test_a_records_gradient_does_not_depend_on_the_others_through_the_loss():
    """As a loss weighted by classes and averaged over the batch does (2.67 times the norm)."""
    task = find_task("toy")
    features, labels = torch.randn(6, 4), torch.tensor([0, 0, 0, 0, 1, 2])
    alone = [task.losses(MODEL(f[None]), y[None]) for f, y in zip(features, labels, strict=True)]
    assert torch.allclose(task.losses(MODEL(features), labels), torch.cat(alone))
