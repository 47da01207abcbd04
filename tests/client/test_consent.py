"""The site's policy refuses by name, before any record is read."""

from dataclasses import replace

import pytest
import torch
from toy_site import (
    PERMISSIVE,
    PRIVACY,
    RECIPE,
    VECTOR,
    context,
    request,
    train_message,
)

from lepton_client import consent
from lepton_client.app import app
from lepton_client.training.views import Views
from lepton_common.datasets.preparation import PER_RECORD
from lepton_common.errors import ConsentRefused, RecordsMixed
from lepton_common.privacy.noise import SecretRandom
from lepton_common.tasks.catalog import find_task

STRICT = replace(
    PERMISSIVE,
    allow_without_dp=False,
    allow_without_secagg=True,
    colluders=0,
    max_delta=1e-5,
    min_noise_multiplier=0.5,
    min_own_noise_multiplier=0.25,
    max_clipping_norm=2.0,
    min_cohort=3,
    tasks=["toy"],
)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"privacy": None}, "differential privacy only"),
        ({"task": "digits"}, "does not serve"),
        ({"task": "no-such-task"}, "does not serve"),
        ({"model": "resnet50"}, "No model"),
        ({"prepare": "site_statistics"}, "prepared by"),
        ({"cohort": 2}, "floor of 3"),
        ({"privacy": replace(PRIVACY, delta=1e-4)}, "delta"),
        ({"privacy": replace(PRIVACY, noise_multiplier=0.4)}, "noise multiplier"),
        ({"privacy": replace(PRIVACY, clipping_norm=3.0)}, "clipping norm"),
        ({"privacy": replace(PRIVACY, clipping_norm=9e-4)}, "below this site's floor of 0.001"),
        ({"recipe": replace(RECIPE, batch_size=2000)}, "batch of 2000"),
    ],
)
def test_a_request_outside_the_policy_is_refused(make_site, changes, reason):
    asked = request(**{"privacy": PRIVACY, **changes})
    with pytest.raises(ConsentRefused, match=reason):
        consent.check(asked, make_site(STRICT).file)


@pytest.mark.parametrize("mode", ["record", "distributed"])
def test_mixed_records_are_refused_with_privacy_by_record(make_site, mode):
    mixed = replace(RECIPE, mixup=0.2)
    asked = request(privacy=replace(PRIVACY, mode=mode), recipe=mixed)
    with pytest.raises(RecordsMixed, match="nobody's part"):
        consent.check(asked, make_site(STRICT).file)
    consent.check_request(
        request(privacy=replace(PRIVACY, mode="site"), recipe=mixed),
        make_site(PERMISSIVE).file,
        masked=False,
    )


def test_the_refusal_leaves_under_its_name_and_is_not_left_to_consent_alone(make_site):
    site = make_site(PERMISSIVE)
    mixed = replace(RECIPE, mixup=0.2)
    reply = app(train_message(privacy=PRIVACY, recipe=mixed), context(site.folder))
    assert reply.error.reason == "RecordsMixed"
    assert not any(r.kind == "charge" for r in site.ledger._file.contents.records)
    with pytest.raises(RecordsMixed, match="no clipping"):
        Views(find_task("digits"), mixed, SecretRandom())


def test_unit_and_denominator_come_from_the_site_and_not_from_the_request(make_site):
    plan = consent.check(request(privacy=PRIVACY), make_site(STRICT).file)
    assert plan.unit == "row"
    assert plan.denominator == PRIVACY.sample_rate * 16  # its public size, not its 20 rows


def test_a_refused_request_reads_no_record_and_charges_nothing(make_site, toy_catalog):
    site = make_site(STRICT)
    toy_catalog["train"] = None  # reading it would fail
    reply = app(train_message(privacy=None), context(site.folder))
    assert reply.error.reason == "ConsentRefused"
    assert [record.kind for record in make_site(STRICT).audit.records] == ["open", "refusal"]


def test_private_statistics_and_a_private_plan_do_not_go_together(make_site):
    site = make_site().file
    statistics = replace(site, data=replace(site.data, prepare="site_statistics"))
    with pytest.raises(ConsentRefused, match="no plan charges for"):
        consent.check(request(prepare="site_statistics", privacy=PRIVACY), statistics)


@pytest.mark.parametrize("prepare", sorted(PER_RECORD))
def test_what_is_prepared_record_by_record_goes_with_a_private_plan(make_site, prepare):
    site = make_site().file
    prepared = replace(site, data=replace(site.data, prepare=prepare))
    assert consent.check(request(prepare=prepare, privacy=PRIVACY), prepared) is not None


@pytest.mark.parametrize("weight", [1e9, float("nan"), float("-inf")])
def test_a_model_that_would_magnify_rounding_is_refused(weight):
    spoiled = VECTOR.copy()
    spoiled[3] = weight
    with pytest.raises(ConsentRefused, match="not finite or beyond 100"):
        consent.check_model(spoiled)
    consent.check_model(VECTOR)


def test_a_policy_names_the_models_that_it_trains(make_site):
    listed = "layers.linear8-tanh"
    site = make_site(replace(PERMISSIVE, models=[listed])).file
    consent.check(request(model=listed), site)
    for model in ("mlp", "layers.linear9-tanh"):
        with pytest.raises(ConsentRefused, match="does not train the model"):
            consent.check(request(model=model), site)
    with pytest.raises(ConsentRefused, match="No model"):
        consent.check(request(model="layers.exec"), site)


@pytest.mark.parametrize("wanted", ["auto", "mps", "cuda:0"])
def test_private_work_is_done_on_devices_that_the_policy_names(make_site, monkeypatch, wanted):
    found = torch.device("mps" if wanted == "auto" else wanted)
    site = make_site(replace(PERMISSIVE, devices=["cpu"]))
    monkeypatch.setattr("lepton_client.trainer.pick_device", lambda asked: found)
    recipe = replace(RECIPE, device=wanted)
    reply = app(train_message(privacy=PRIVACY, recipe=recipe), context(site.folder))
    assert reply.error.reason == "ConsentRefused"
    assert not any(r.kind == "charge" for r in site.ledger._file.contents.records)
    consent.check_device(found.type, replace(PERMISSIVE, devices=["cuda", "mps"]))
