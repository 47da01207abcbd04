"""Tests of requests and replies: what was written is read, and nothing else is."""

from dataclasses import fields, replace

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st

from lepton_common.arrays import digest_of, pack
from lepton_common.errors import MalformedMessage, ModelMismatch
from lepton_common.messages import (
    HelloRequest,
    PrivacyRequest,
    Receipt,
    Recipe,
    SiteFacts,
    TrainRequest,
    hello_content,
    read_facts,
    read_hello,
    read_model,
    read_train,
    read_update,
    train_content,
)
from lepton_common.strict import to_json

_MODEL = np.array([1.0, -2.5, np.pi], np.float32)
_RECIPE = Recipe(
    optimizer="sgd",
    learning_rate=0.1,
    momentum=0.0,
    weight_decay=0.0,
    batch_size=8,
    local_epochs=None,
    local_steps=2,
    augmentations=1,
    precision="float32",
    device="cpu",
    proximal_mu=0.0,
    update_scale=1.0,
    seed=7,
)
_REQUEST = TrainRequest(
    run="run-1",
    round=3,
    task="digits",
    model="logistic",
    prepare="public_ranges",
    cohort=4,
    layout="0" * 64,
    model_digest=digest_of(pack(_MODEL).data),
    recipe=_RECIPE,
    privacy=PrivacyRequest(
        mode="record",
        count_within=False,
        delta=1e-5,
        sample_rate=1.0,
        noise_multiplier=2.0,
        clipping_norm=1.0,
        steps_per_round=2,
        max_steps=10,
    ),
    masked=None,
    ledger_heads={},
)
_RECEIPT = Receipt(
    run="run-1",
    round=3,
    plan="a" * 64,
    steps=6,
    epsilon=1.5,
    audit_head="b" * 64,
    ledger_head="c" * 64,
)
_FACTS = SiteFacts(
    name="site-1", public_key="c" * 64, public_size=64, unit="patient", audit_head="d" * 64
)


def _text(value):
    return ConfigRecord({"json": value if isinstance(value, str) else to_json(value)})


def _reply(**changes):
    records = {
        "update": ArrayRecord({"vector": pack(_MODEL)}),
        "metrics": MetricRecord({"loss": 0.25}),
        "receipt": _text(_RECEIPT),
        **changes,
    }
    return RecordDict({name: record for name, record in records.items() if record is not None})


def test_a_hello_is_read_as_it_was_written():
    assert read_hello(hello_content(HelloRequest(run="run-1"))) == HelloRequest(run="run-1")


def test_a_sites_facts_are_read_as_they_were_written():
    assert read_facts(RecordDict({"site": _text(_FACTS)})) == _FACTS


def test_a_training_request_is_read_as_it_was_written():
    content = train_content(_REQUEST, _MODEL)
    request = read_train(content)
    assert request == _REQUEST
    model = read_model(content, request)
    np.testing.assert_array_equal(model, _MODEL)
    assert not model.flags.writeable
    plain = replace(_REQUEST, privacy=None)
    assert read_train(train_content(plain, _MODEL)) == plain


def test_a_reply_is_read_as_it_was_written():
    update, metrics, receipt = read_update(_reply(), 3)
    np.testing.assert_array_equal(update, _MODEL)
    assert metrics == {"loss": 0.25}
    assert receipt == _RECEIPT
    assert read_update(_reply(metrics=MetricRecord()), 3)[1] == {}


def test_another_model_than_the_one_named_is_a_mismatch():
    content = train_content(_REQUEST, _MODEL + 1)
    with pytest.raises(ModelMismatch):
        read_model(content, read_train(content))
    content = train_content(replace(_REQUEST, model_digest="0" * 64), _MODEL)
    with pytest.raises(ModelMismatch):
        read_model(content, read_train(content))


def test_an_array_whose_shape_is_not_its_length_is_no_model():
    content = train_content(_REQUEST, _MODEL)
    content["model"]["vector"].shape = (2,)
    with pytest.raises(MalformedMessage, match="3 elements"):
        read_model(content, _REQUEST)


_EXTRAS = {
    "config": ConfigRecord({"x": 1}),
    "metric": MetricRecord({"x": 1}),
    "array": ArrayRecord(),
}


@pytest.mark.parametrize("extra", sorted(_EXTRAS))
def test_an_extra_record_is_refused_everywhere(extra):
    for read, content in (
        (read_hello, hello_content(HelloRequest(run="run-1"))),
        (read_facts, RecordDict({"site": _text(_FACTS)})),
        (read_train, train_content(_REQUEST, _MODEL)),
        (lambda reply: read_update(reply, 3), _reply()),
    ):
        read(content)
        content["extra"] = _EXTRAS[extra]
        with pytest.raises(MalformedMessage, match="Expected the records"):
            read(content)


@pytest.mark.parametrize("missing", ["update", "metrics", "receipt"])
def test_a_missing_record_is_refused(missing):
    with pytest.raises(MalformedMessage, match="Expected the records"):
        read_update(_reply(**{missing: None}), 3)


@pytest.mark.parametrize(
    "metrics",
    [
        MetricRecord({"loss": 0.1, "accuracy": 0.9}),
        MetricRecord({"accuracy": 0.9}),
        MetricRecord({"num-examples": 17}),
        MetricRecord({"loss": 1}),
        MetricRecord({"loss": [0.1, 0.2]}),
        ConfigRecord({"loss": 0.1}),
        ConfigRecord({"ages": "63,37,41"}),
        ArrayRecord({"vector": pack(_MODEL)}),
    ],
    ids=["more", "other", "count", "whole", "list", "config", "text", "array"],
)
def test_a_metric_other_than_one_loss_is_refused(metrics):
    with pytest.raises(MalformedMessage):
        read_update(_reply(metrics=metrics), 3)


@pytest.mark.parametrize(
    "update",
    [
        ArrayRecord(),
        ArrayRecord({"vektor": pack(_MODEL)}),
        ArrayRecord({"vector": pack(_MODEL), "more": pack(_MODEL)}),
        ArrayRecord({"vector": pack(_MODEL[:2])}),
        ArrayRecord({"vector": Array(_MODEL)}),
        ArrayRecord({"vector": Array(_MODEL.astype(np.float64))}),
        MetricRecord({"vector": 1.0}),
        ConfigRecord({"vector": b"0" * 12}),
    ],
    ids=["none", "name", "two", "short", "pickled", "double", "metric", "config"],
)
def test_an_update_of_another_form_is_refused(update):
    with pytest.raises(MalformedMessage):
        read_update(_reply(update=update), 3)


@pytest.mark.parametrize(
    "receipt",
    [
        ConfigRecord(),
        ConfigRecord({"json": 1}),
        ConfigRecord({"json": to_json(_RECEIPT).encode()}),
        ConfigRecord({"json": [to_json(_RECEIPT)]}),
        ConfigRecord({"json": to_json(_RECEIPT), "more": "x"}),
        ConfigRecord({"text": to_json(_RECEIPT)}),
        MetricRecord({"json": 1}),
        _text(""),
        _text("[]"),
        _text(to_json(_RECEIPT)[:-1]),
        _text(to_json(_RECEIPT).replace("1.5", "NaN")),
        _text(to_json(_RECEIPT).replace("1.5", "-1.5")),
        _text(to_json(_RECEIPT).replace('"steps":6', '"steps":6.0')),
        _text(to_json(_RECEIPT).replace('"steps":6', '"steps":true')),
        _text(to_json(_RECEIPT).replace('"steps":6', '"steps":6,"records":17')),
        _text(to_json(_RECEIPT).replace('"steps":6,', "")),
        _text(_FACTS),
        _text("[" * 100_000),
    ],
)
def test_a_receipt_of_another_form_is_refused(receipt):
    with pytest.raises(MalformedMessage, match="receipt"):
        read_update(_reply(receipt=receipt), 3)


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        ("recipe", "device", "cuda:1234"),
        ("recipe", "device", "../cpu"),
        ("recipe", "optimizer", "lbfgs"),
        ("recipe", "local_steps", 0),
        ("recipe", "seed", -1),
        ("request", "task", "a b"),
        ("request", "run", "../../etc"),
        ("request", "round", 0),
        ("request", "cohort", 0),
        ("request", "layout", "A" * 64),
        ("request", "prepare", "anything"),
        ("privacy", "delta", 0.0),
        ("privacy", "sample_rate", 0.0),
        ("privacy", "sample_rate", 1.5),
        ("privacy", "noise_multiplier", 0.0),
        ("privacy", "clipping_norm", float("inf")),
        ("privacy", "max_steps", 0),
    ],
)
def test_a_request_out_of_bounds_cannot_even_be_made(kind, field, value):
    part = {"recipe": _RECIPE, "request": _REQUEST, "privacy": _REQUEST.privacy}[kind]
    assert field in {each.name for each in fields(part)}
    with pytest.raises(ValueError, match=field):
        replace(part, **{field: value})


def test_a_refusal_does_not_repeat_what_came():
    bad = _text(to_json(_FACTS).replace("site-1", "name of a patient"))
    with pytest.raises(MalformedMessage) as refused:
        read_facts(RecordDict({"site": bad}))
    assert "patient" not in str(refused.value)


_SCALAR = st.integers(-5, 5) | st.floats() | st.booleans() | st.text(max_size=9) | st.binary()
_CONFIG = st.dictionaries(
    st.sampled_from(["json", "x"]),
    _SCALAR | st.sampled_from([to_json(_RECEIPT), to_json(_FACTS), to_json(_REQUEST), "{}"]),
    max_size=2,
).map(ConfigRecord)
_METRIC = st.dictionaries(
    st.sampled_from(["loss", "x"]), st.integers(-5, 5) | st.floats(), max_size=2
).map(MetricRecord)
_ARRAY = st.builds(
    Array,
    dtype=st.sampled_from(["float32", "float64", ""]),
    shape=st.sampled_from([(3,), (), (1, 3), (0,)]),
    stype=st.sampled_from(["lepton.vector.f32le", "numpy.ndarray"]),
    data=st.sampled_from([b"", bytes(12), bytes(13)]),
)
_ARRAYS = st.dictionaries(st.sampled_from(["vector", "x"]), _ARRAY, max_size=2).map(ArrayRecord)
_JUNK = st.dictionaries(
    st.sampled_from(["request", "model", "update", "metrics", "receipt", "site", "x"]),
    _CONFIG | _METRIC | _ARRAYS,
    max_size=4,
).map(RecordDict)


@pytest.mark.parametrize("length", [(None, None), (1, 1)])
def test_training_of_no_length_or_of_two_is_no_recipe(length):
    with pytest.raises(ValueError, match="Exactly one"):
        replace(_RECIPE, local_epochs=length[0], local_steps=length[1])


@settings(max_examples=300)
@given(_JUNK)
def test_junk_is_malformed_or_exactly_a_message_and_nothing_else_happens(content):
    for read, names in (
        (read_hello, {"request"}),
        (read_facts, {"site"}),
        (read_train, {"request", "model"}),
        (lambda junk: read_update(junk, 3), {"update", "metrics", "receipt"}),
        (lambda junk: read_model(junk, _REQUEST), None),
    ):
        try:
            read(content)
        except (MalformedMessage, ModelMismatch):
            continue
        assert set(content) == names


@settings(max_examples=200)
@given(st.data())
def test_a_json_text_with_anything_cut_out_or_put_in_is_malformed(data):
    text = to_json(_REQUEST)
    start = data.draw(st.integers(0, len(text)))
    stop = data.draw(st.integers(start, len(text)))
    put = data.draw(st.text(max_size=3))
    content = train_content(_REQUEST, _MODEL)
    content["request"] = _text(text[:start] + put + text[stop:])
    try:
        read_train(content)
    except MalformedMessage:
        return
    again = read_train(content)
    assert isinstance(again, TrainRequest)
