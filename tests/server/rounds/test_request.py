"""Tests of what a round asks of each site."""

import hashlib

import numpy as np
import pytest

from lepton_common.arrays import Layout, digest_of, pack
from lepton_common.asking import privacy_request, recipe
from lepton_common.messages import read_model, read_train, train_content
from lepton_common.privacy.accounting import GaussianEvent, epsilon
from lepton_server.rounds.checkpoint import Checkpoint
from lepton_server.rounds.request import train_request

_LAYOUT = Layout(("weight",), ((4,),))


def test_without_privacy_no_plan_is_asked_for(make_settings):
    assert privacy_request(make_settings(), 4) is None


@pytest.mark.parametrize(("rounds", "spare", "steps"), [(5, 0, 1), (5, 2, 1), (7, 3, 4)])
def test_the_noise_covers_all_rounds_and_the_spare_ones(make_settings, rounds, spare, steps):
    settings = make_settings(
        {"rounds": rounds, "privacy.spare_rounds": spare, "train.local_steps": steps,
         "privacy.clipping_norm": 0.7},
        private=True,
    )  # fmt: skip
    asked = privacy_request(settings, 4)
    assert (asked.steps_per_round, asked.max_steps) == (steps, (rounds + spare) * steps)
    assert (asked.delta, asked.sample_rate, asked.clipping_norm) == (1e-5, 1.0, 0.7)
    spent = epsilon((GaussianEvent(1.0, asked.noise_multiplier, asked.max_steps),), asked.delta)
    assert 0.98 * 3.0 <= spent <= 3.0


def test_a_recipe_is_what_the_settings_say(make_settings):
    settings = make_settings(
        {"train.optimizer": "adam", "train.learning_rate": 0.2, "train.momentum": 0.9,
         "train.weight_decay": 0.01, "train.batch_size": 17, "train.local_epochs": 3,
         "train.precision": "bfloat16", "train.schedule": "cosine"},
    )  # fmt: skip
    made = recipe(settings, 5)
    assert (made.optimizer, made.momentum, made.weight_decay) == ("adam", 0.9, 0.01)
    assert (made.batch_size, made.local_epochs, made.local_steps) == (17, 3, None)
    assert (made.precision, made.device, made.proximal_mu) == ("bfloat16", "cpu", 0.0)
    assert made.learning_rate == pytest.approx(0.02)
    assert recipe(settings, 1).learning_rate == pytest.approx(0.2)


def test_only_fedprox_sends_its_term(make_settings):
    changes = {"strategy.proximal_mu": 0.3}
    assert recipe(make_settings(changes), 1).proximal_mu == 0.0
    changes["strategy.name"] = "fedprox"
    assert recipe(make_settings(changes), 1).proximal_mu == 0.3


def test_the_seed_differs_by_round_and_by_run_and_repeats_itself(make_settings):
    seeds = [recipe(make_settings({"seed": seed}), r).seed for seed in (1, 2) for r in range(1, 51)]
    assert len(set(seeds)) == 100
    assert seeds == [
        recipe(make_settings({"seed": seed}), r).seed for seed in (1, 2) for r in range(1, 51)
    ]
    assert seeds[0] == int.from_bytes(hashlib.sha256(b"1/1").digest()[:7])


@pytest.mark.parametrize("device", ["auto", "cpu", "mps", "cuda", "cuda:0", "cuda:99"])
def test_every_device_that_settings_allow_can_be_asked_of_a_site(make_settings, device):
    assert recipe(make_settings({"train.device": device}), 1).device == device


def test_a_request_names_the_round_after_the_state_and_the_model_it_carries(make_settings):
    settings = make_settings()
    state = Checkpoint(round=2, model=np.arange(4, dtype=np.float32))
    heads = {"a": "1" * 64}  # nothing is said of those who are not in this round
    weights = dict.fromkeys("abcd", 1)
    request = train_request(settings, "run-1", _LAYOUT.digest, state, None, weights, heads)
    assert request.ledger_heads == heads
    assert (request.run, request.round, request.cohort) == ("run-1", 3, 4)
    assert (request.task, request.model, request.prepare) == ("digits", "logistic", "public_ranges")
    assert request.layout == _LAYOUT.digest
    assert request.model_digest == digest_of(pack(state.model).data)
    assert request.recipe == recipe(settings, 3)
    content = train_content(request, state.model)
    np.testing.assert_array_equal(read_model(content, read_train(content)), state.model)
