"""The ClientApp answers every message, and lets no exception's text out."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, RecordDict
from toy_site import (
    PERMISSIVE,
    PRIVACY,
    VECTOR,
    ask,
    context,
    request,
    synthetic,
    train_message,
)

from lepton_client.app import app
from lepton_common.flower.wire import to_wire
from lepton_common.hosting import (
    ENROL,
    TRAIN_MANY,
    EnrolRequest,
    enrol_content,
    train_many_content,
)
from lepton_common.messages import (
    HELLO,
    HelloRequest,
    hello_content,
    model_record,
    read_facts,
    read_update,
    train_content,
)


def test_a_hello_is_answered_with_public_facts_only(make_site):
    site = make_site()
    reply = app(ask(hello_content(HelloRequest(run="run-1")), HELLO), context(site.folder))
    facts = read_facts(reply.content)
    assert (facts.name, facts.public_size, facts.unit) == ("site-1", 16, "row")
    assert facts.public_key == site.key.public_hex
    assert facts.audit_head == make_site().audit.head


def test_a_plain_round_returns_update_loss_and_receipt(make_site):
    site = make_site()
    reply = app(train_message(), context(site.folder))
    update, metrics, receipt = read_update(reply.content, len(VECTOR))
    assert np.abs(update).max() > 0
    assert set(metrics) == {"loss"}
    assert (receipt.plan, receipt.steps, receipt.epsilon) == (None, 0, 0.0)
    assert receipt.audit_head == make_site().audit.head


def test_a_private_round_returns_no_metric(make_site):
    site = make_site()
    reply = app(train_message(privacy=PRIVACY), context(site.folder))
    _, metrics, receipt = read_update(reply.content, len(VECTOR))
    assert metrics == {}
    assert receipt.steps == PRIVACY.steps_per_round
    assert receipt.epsilon > 0


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (RecordDict({"request": ConfigRecord({"json": "{}"})}), "MalformedMessage"),
        (RecordDict(), "MalformedMessage"),
        (train_content(request(layout="0" * 64), VECTOR), "ModelMismatch"),
        (train_content(request(), VECTOR + 1), "ModelMismatch"),
        (train_content(request(), VECTOR[:-1]), "ModelMismatch"),
        (train_content(request(recipe=replace(request().recipe, device="cuda:9")), VECTOR),
         "SettingsError"),
        (train_content(request(recipe=replace(request().recipe, learning_rate=3e38)), VECTOR),
         "UpdateInvalid"),
    ],
)  # fmt: skip
def test_every_failure_is_answered_by_name(make_site, content, error):
    site = make_site()
    reply = app(ask(content), context(site.folder))
    assert reply.error.reason == error
    assert (site.folder / "errors.log").exists()


def test_bad_data_is_answered_by_name_and_its_values_stay(make_site, toy_catalog):
    site = make_site()
    features = synthetic().features.clone()
    features[3, 2] = float("nan")
    features[4, 1] = 123456.75
    toy_catalog["train"] = replace(synthetic(), features=features)
    reply = app(train_message(), context(site.folder))
    assert reply.error.reason == "DataInvalid"
    assert b"123456" not in to_wire(reply)
    assert b"finite" not in to_wire(reply)


def test_a_site_without_records_says_so(make_site):
    site = make_site(rows=0)
    assert app(train_message(), context(site.folder)).error.reason == "EmptySite"


def test_a_site_file_with_faults_is_answered_by_name(make_site):
    site = make_site()
    (site.folder / "site.yaml").write_text("name: site-1\nextra: 1\n")
    assert app(train_message(), context(site.folder)).error.reason == "SettingsError"


def test_rows_that_do_not_fit_the_data_are_refused(make_site):
    site = make_site()
    np.save(site.folder / "rows.npy", np.array([10**6]))
    assert app(train_message(), context(site.folder)).error.reason == "DataMissing"


def test_the_audit_log_of_another_key_is_refused(make_site):
    site, other = make_site(), make_site(name="site-2")
    (site.folder / "audit.jsonl").write_bytes((other.folder / "audit.jsonl").read_bytes())
    assert app(train_message(), context(site.folder)).error.reason == "AuditError"


def test_training_leaves_the_global_generators_alone(make_site):
    site = make_site(PERMISSIVE)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    app(train_message(privacy=PRIVACY), context(site.folder))
    assert torch.equal(torch.rand(3), expected)


def test_private_work_that_fails_has_one_name(make_site, toy_catalog):
    for broken in (None, replace(synthetic(), features=synthetic().features * float("nan"))):
        site = make_site()
        toy_catalog["train"] = broken
        reply = app(train_message(privacy=PRIVACY), context(site.folder))
        assert reply.error.reason == "PrivateWorkFailed"
    assert make_site().ledger.steps("run-1") == 0  # no record reached a model


def test_private_work_that_fails_in_training_stays_charged(make_site, monkeypatch):
    def failing(*_):
        raise RuntimeError("patient 17")

    monkeypatch.setattr("lepton_client.trainer.train_private", failing)
    site = make_site()
    reply = app(train_message(privacy=PRIVACY), context(site.folder))
    assert reply.error.reason == "PrivateWorkFailed"
    assert make_site().ledger.steps("run-1") == PRIVACY.steps_per_round


def test_first_messages_that_come_together_open_a_site_once(make_site):
    from concurrent.futures import ThreadPoolExecutor

    site = make_site()
    with ThreadPoolExecutor(4) as pool:
        replies = list(
            pool.map(lambda _: app(train_message(privacy=PRIVACY), context(site.folder)), range(4))
        )
    refused = [reply.error.reason for reply in replies if reply.has_error()]
    assert refused == ["BudgetSpent"]  # the plan covers three rounds of two steps
    assert make_site().ledger.steps("run-1") == 6


def test_a_row_listed_twice_is_refused(make_site):
    site = make_site()
    np.save(site.folder / "rows.npy", np.array([0, 0, 1]))
    assert app(train_message(), context(site.folder)).error.reason == "DataMissing"


@pytest.mark.parametrize("private", [False, True])
def test_a_site_of_its_own_speaks_for_no_others(make_site, private):
    site = make_site()
    asked = request(privacy=PRIVACY) if private else request()
    for content, kind in (
        (train_many_content(asked, model_record(VECTOR), [0, 1]), TRAIN_MANY),
        (enrol_content(EnrolRequest(run="run-1", places=[0])), ENROL),
    ):
        reply = app(ask(content, kind), context(site.folder))
        assert reply.error.reason == "MalformedMessage"
    records = make_site().audit.records
    assert [record.kind for record in records] == ["open", "refusal", "refusal"]
