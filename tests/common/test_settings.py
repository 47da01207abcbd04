"""Tests of the settings: every fault at once, every contradiction by name."""

import itertools
import json
import math
from dataclasses import FrozenInstanceError

import pytest

from lepton_common.errors import SettingsError
from lepton_common.messages import HelloRequest
from lepton_common.settings import LINEAR, ROBUST
from lepton_common.settings_rules import parse_settings
from lepton_common.strict import to_json

_SA1 = {"secagg.mode": "sa1"}
_DRAWN = {"data.partition": "drawn", "data.records_per_site": 20}
_KRUM = {"strategy.name": "krum", "strategy.num_malicious_nodes": 4}
_BULYAN = {"strategy.name": "bulyan", "strategy.num_malicious_nodes": 2}
_SHARED = {**_SA1, "privacy.mode": "distributed", "federation.weights": "public_size"}
_PROCESSES, _RAY = {"engine.name": "processes"}, {"engine.name": "ray"}
_SITE = {**_SA1, "privacy.mode": "site"}
_TREES = {"task": "adult", "model": "boosted_trees.2x3b32"}


def test_valid_settings_pass(make_settings):
    settings = make_settings()
    assert settings.cohort == 10
    assert not settings.private
    assert make_settings({"federation.cohort": 3}).cohort == 3
    assert make_settings(private=True).private
    assert make_settings(_PROCESSES).engine.name == "processes"
    for address in (None, "auto", "head.example.com:6379", "10.0.0.1:6379"):
        assert make_settings({**_RAY, "engine.address": address}).engine.address == address


@pytest.mark.parametrize(
    ("changes", "private", "said"),
    [
        ({"task": "digit"}, False, "Unknown task 'digit'; did you mean 'digits'?"),
        ({"model": "cnn_smal"}, False, "Unknown model 'cnn_smal'; did you mean 'cnn_small'?"),
        ({"strategy.name": "fedavgg"}, False, "Unknown strategy 'fedavgg'; did you mean 'fedavg"),
        ({"train.local_steps": 3}, False, "Set exactly one of train.local_epochs and"),
        ({"train.local_epochs": None}, False, "Set exactly one of train.local_epochs and"),
        ({"train.device": "gpu"}, False, "train.device='gpu': choose"),
        ({"train.device": "cuda:x"}, False, "train.device='cuda:x': choose"),
        ({"train.device": ""}, False, "train.device='': choose"),
        ({"train.device": "0"}, False, "train.device='0': choose"),
        ({"train.device": "cuda:²"}, False, "train.device='cuda:²': choose"),
        ({"train.device": "cuda:1234"}, False, "train.device='cuda:1234'"),
        ({"federation.cohort": 11}, False, "federation.cohort=11 exceeds sites=10."),
        ({"data.partition": "drawn"}, False, "data.partition=drawn needs data.records_per_site"),
        ({"data.records_per_site": 9}, False, "data.records_per_site is for data.partition=drawn"),
        (
            {**_DRAWN, "data.min_records": 21},
            False,
            "records_per_site=20 is below data.min_records",
        ),
        (
            {**_DRAWN, **_SA1, "secagg.colluders": None, "sites": 4097, "federation.cohort": 50},
            False,
            "secagg=sa1 needs a roster of all sites at each site, which lists 4,096 at most",
        ),
        ({"sites": 4097, "baselines": True}, False, "baselines=true trains a model at each site"),
        ({"engine.address": "auto"}, False, "engine.address=auto is a Ray cluster's, but"),
        ({**_RAY, "engine.address": "head"}, False, "engine.address=head: write host:port, or"),
        ({**_RAY, "engine.address": "ray://a:1"}, False, "engine.address=ray://a:1: write host"),
        ({**_PROCESSES, "engine.serialise": True}, False, "engine.serialise=true is for engine=in"),
        ({**_RAY, "engine.serialise": True}, False, "engine.serialise=true is for engine=inproc"),
        ({**_PROCESSES, "train.device": "cuda:1"}, False, "train.device=cuda:1 names one of sev"),
        ({"engine.name": "threads"}, False, "engine.name"),
        ({"privacy.epsilon": 1.0}, False, "privacy.epsilon is set but privacy=none"),
        ({"privacy.epsilon": None}, True, "privacy=record needs privacy.epsilon"),
        ({"privacy.delta": None}, True, "An epsilon without a delta means nothing"),
        (
            {"train.local_steps": None, "train.local_epochs": 1},
            True,
            "privacy=record counts steps",
        ),
        ({"data.prepare": "site_statistics"}, True, "data.prepare=site_statistics uses private"),
        ({"train.precision": "bfloat16"}, True, "train.precision=bfloat16 is not offered"),
        (_KRUM, False, "strategy=krum as set needs a cohort of at least 11, not 10."),
        ({**_TREES, "rounds": 7}, False, "has room for 6 rounds, one a level, not 7"),
        ({**_TREES, "trees.bins": 16}, False, "is of another form than trees.depth=3 and trees.b"),
        ({**_TREES, "task": "digits"}, False, "No trees are grown for task=digits"),
        ({**_TREES, "task": "tcga_brca"}, False, "No trees are grown for task=tcga_brca"),
        ({**_TREES, "strategy.name": "fedadam"}, False, "not averaged: drop strategy=fedadam"),
        ({**_TREES, "strategy.average_decay": 0.5}, False, "grown from sums, not averaged"),
        ({**_TREES, **_SA1, "secagg.rotate": True}, False, "sums over people, who count alike"),
        (
            {**_TREES, **_SA1, "federation.weights": "masked_size"},
            False,
            "sums over people, who count alike",
        ),
        ({**_TREES, **_SITE}, True, "model=boosted_trees protects people, not sites"),
        ({**_TREES, "train.local_steps": 2}, True, "is one private sum a round"),
        ({**_TREES, "data.prepare": "scattering"}, False, "looks at records as they are"),
        ({"model": "boosted_trees"}, False, "model=boosted_trees is built from trees.depth"),
        ({**_KRUM, "strategy.name": "multikrum"}, False, "needs a cohort of at least 11, not 10."),
        (_BULYAN, False, "strategy=bulyan as set needs a cohort of at least 11, not 10."),
        (
            {"strategy.name": "fedmedian", "federation.weights": "public_size"},
            False,
            "strategy=fedmedian treats all sites alike",
        ),
        ({"strategy.beta": 0.5}, False, "strategy.beta=0.5 trims everything"),
        (
            {"secagg.compression": "top_k", "secagg.mode": "sa1"},
            False,
            "secagg.compression=top_k would tell",
        ),
        ({**_SA1, "secagg.rounding": "stochastic"}, False, "secagg.rounding=stochastic is for"),
        ({"secagg.rotate": True}, False, "secagg=none leaves updates as they are"),
        ({"secagg.groups": 2}, False, "secagg=none leaves updates as they are"),
        ({**_SA1, "policy.colluders": 5}, False, "secagg.colluders=3 is less than policy"),
        ({**_SA1, "policy.min_cohort": 8}, False, "policy.min_cohort=8 is more than the 7 sites"),
        (
            {"federation.weights": "masked_size"},
            False,
            "federation.weights=masked_size needs secure aggregation",
        ),
        (
            {"federation.weights": "masked_size", "secagg.mode": "sa1"},
            True,
            "federation.weights=masked_size depends on private records",
        ),
        (
            {**_SHARED, "secagg.mode": "none"},
            True,
            "privacy=distributed shares noise inside secure aggregation",
        ),
        ({**_SHARED, "secagg.width": 24}, True, "privacy=distributed sums whole numbers"),
        ({**_SHARED, "secagg.rotate": True}, True, "privacy=distributed sums whole numbers"),
        ({**_SHARED, "train.local_steps": 2}, True, "one private step a round"),
        ({**_SHARED, "train.momentum": 0.9}, True, "privacy=distributed steps at the server"),
        ({**_SHARED, "train.optimizer": "adam"}, True, "privacy=distributed steps at the server"),
        ({**_SHARED, "train.weight_decay": 0.1}, True, "privacy=distributed steps at the server"),
        ({**_SHARED, "federation.weights": "equal"}, True, "divides by the sites' public sizes"),
        ({**_SITE, "federation.weights": "public_size"}, True, "protects all sites alike"),
        ({**_SITE, "privacy.sample_rate": 0.5}, True, "set privacy.sample_rate=1"),
        ({"privacy.clip_quantile": 0.5}, True, "privacy.clip_quantile is for privacy=site"),
        ({**_SITE, "privacy.epsilon": None}, True, "privacy=site needs privacy.epsilon"),
        ({"strategy.average_decay": 1.0}, False, "strategy.average_decay must be below 1."),
        ({"train.augmentations": 4}, False, "train.augmentations averages"),
        ({"train.augmentations": 4, "task": "breast_cancer"}, True, "train.augmentations averages"),
        ({**_SITE, "train.augmentations": 4}, True, "train.augmentations averages"),
        ({"train.mixup": 0.2}, True, "train.mixup makes one record of two people's"),
        ({**_SHARED, "train.mixup": 0.2}, True, "train.mixup makes one record of two people's"),
        ({"train.mixup": 0.2, "task": "sms_spam", "model": "transformer"}, False, "no meaning"),
        ({"train.mixup": 0.2, "task": "tcga_brca_hazard"}, False, "no meaning"),
        ({"strategy.beta_1": 1.0}, False, "strategy.beta_1 and strategy.beta_2 must be below 1."),
        ({"strategy.beta_2": 1.0}, False, "strategy.beta_1 and strategy.beta_2 must be below 1."),
    ],
)
def test_each_contradiction_is_named_alone(setting_values, changes, private, said):
    with pytest.raises(SettingsError) as refused:
        parse_settings(setting_values(changes, private=private))
    assert len(refused.value.faults) == 1
    assert said in refused.value.faults[0]


@pytest.mark.parametrize(
    ("changes", "private"),
    [
        ({"train.device": "cuda:12"}, False),
        ({"train.device": "auto"}, False),
        ({"federation.cohort": 10}, False),
        ({**_DRAWN, "sites": 10**6, "federation.cohort": 50}, True),
        ({**_DRAWN, "data.min_records": 20}, False),
        ({**_SA1, "sites": 4096}, False),
        ({**_KRUM, "sites": 11}, False),
        ({**_BULYAN, "sites": 11}, False),
        ({"data.prepare": "site_statistics"}, False),
        ({"data.prepare": "scattering"}, True),
        ({"train.precision": "bfloat16"}, False),
        ({"strategy.beta": 0.49}, False),
        ({"federation.weights": "public_size"}, False),
        ({"privacy.sample_rate": 0.1}, True),
        ({**_SHARED, "privacy.sample_rate": 0.1}, True),
        ({"train.augmentations": 4, "strategy.average_decay": 0.99}, True),
        ({"train.mixup": 0.2}, False),
        ({**_SITE, "train.mixup": 0.2}, True),
        ({**_SITE, "privacy.clip_quantile": 0.5}, True),
        ({**_SITE, "train.precision": "bfloat16", "train.optimizer": "adam"}, True),
        ({"federation.weights": "masked_size", "secagg.mode": "sa1"}, False),
        ({**_SA1, "secagg.rounding": "stochastic", "secagg.width": 16}, False),
        ({**_SA1, "policy.colluders": 3, "policy.min_cohort": 7}, False),
        ({**_SA1, "policy.min_cohort": 10, "federation.quorum": 1.0}, False),
    ],
)
def test_what_stands_next_to_a_contradiction_is_allowed(make_settings, changes, private):
    assert make_settings(changes, private=private).seed == 1


def test_all_faults_are_reported_at_once(setting_values):
    changes = {"task": "digit", "train.device": "gpu", "strategy.beta": 0.7, "sites": 1,
               "federation.cohort": 2, "train.local_steps": 1}  # fmt: skip
    with pytest.raises(SettingsError) as refused:
        parse_settings(setting_values(changes))
    assert len(refused.value.faults) == 5
    assert refused.value.exit_code == 2
    assert str(refused.value).count("\n") == 4


def test_wrong_forms_are_reported_at_once_too(setting_values):
    values = setting_values({"rounds": 0, "seed": True, "train.learning_rate": float("nan")})
    values["privcy"] = {}
    values["train"]["momentun"] = 0.9
    del values["train"]["momentum"]
    with pytest.raises(SettingsError) as refused:
        parse_settings(values)
    assert len(refused.value.faults) == 6
    text = str(refused.value)
    assert "Unknown setting 'privcy'; did you mean 'privacy'?" in text
    assert "Unknown setting 'train.momentun'; did you mean 'train.momentum'?" in text
    assert "The setting 'train.momentum' is missing." in text
    assert "seed=True" in text


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("train.learning_rate", float("nan")),
        ("train.learning_rate", float("inf")),
        ("train.learning_rate", 0.0),
        ("train.batch_size", True),
        ("train.batch_size", 1.0),
        ("train.batch_size", "64"),
        ("sites", 0),
        ("baselines", 1),
        ("privacy.sample_rate", 0.0),
        ("privacy.sample_rate", 1.01),
        ("privacy.delta", 1.0),
        ("federation.quorum", 0.0),
        ("federation.round_timeout_s", float("inf")),
        ("data.partition", "IID"),
        ("data.sizes", "cubic"),
        ("data.classes_per_site", 0),
        ("engine.workers", -1),
        ("policy.max_epsilon", float("inf")),
        ("policy.tasks", ["../x"]),
    ],
)
def test_a_value_out_of_bounds_is_refused_by_its_full_name(setting_values, name, value):
    with pytest.raises(SettingsError) as refused:
        parse_settings(setting_values({name: value}))
    assert len(refused.value.faults) == 1
    assert refused.value.faults[0].startswith(name)


def test_settings_cannot_be_changed(make_settings):
    settings = make_settings()
    with pytest.raises(FrozenInstanceError):
        settings.rounds = 7
    with pytest.raises(FrozenInstanceError):
        settings.privacy.mode = "none"


def test_settings_survive_the_way_through_json(make_settings, setting_values):
    settings = make_settings(private=True)
    assert parse_settings(json.loads(to_json(settings))) == settings
    assert json.loads(to_json(settings)) == setting_values(private=True)


@pytest.mark.parametrize("name", LINEAR + ROBUST)
def test_every_strategy_can_be_chosen(make_settings, name):
    assert make_settings({"strategy.name": name}).strategy.name == name


def test_a_constant_schedule_is_constant(make_settings):
    train = make_settings().train
    assert {train.learning_rate_at(round_, 20) for round_ in range(1, 21)} == {0.1}


def test_a_linear_schedule_falls_to_a_tenth(make_settings):
    train = make_settings({"train.schedule": "linear"}).train
    rates = [train.learning_rate_at(round_, 10) for round_ in range(1, 11)]
    assert rates == pytest.approx([0.1 - 0.01 * step for step in range(10)])


def test_a_rate_rises_first_where_that_is_asked_for(make_settings):
    train = make_settings({"train.warmup_rounds": 3}).train
    rates = [train.learning_rate_at(round_, 10) for round_ in range(1, 11)]
    assert rates == pytest.approx([0.025, 0.05, 0.075, *[0.1] * 7])


def test_a_cosine_schedule_falls_to_a_tenth(make_settings):
    train = make_settings({"train.schedule": "cosine"}).train
    rates = [train.learning_rate_at(round_, 21) for round_ in range(1, 22)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[10] == pytest.approx(0.055)
    assert rates[20] == pytest.approx(0.01)
    assert all(later < earlier for earlier, later in itertools.pairwise(rates))
    quarter = 0.1 * (0.55 + 0.45 * math.cos(math.pi / 4))
    assert rates[5] == pytest.approx(quarter)
    assert train.learning_rate_at(1, 1) == pytest.approx(0.1)


def test_a_run_by_any_name_that_is_made_can_be_asked_of_a_site():
    assert HelloRequest(run="20261121-001500-digits-record-2").run.endswith("-2")
