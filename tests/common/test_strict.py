"""Tests of strict parsing: nothing but exactly the record passes."""

import datetime
from dataclasses import FrozenInstanceError

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lepton_common.strict import (
    Count,
    Digest,
    Fraction,
    Name,
    Natural,
    Positive,
    field_names,
    parse,
    parse_json,
    record,
    to_json,
)


@record
class Inner:
    rate: Positive
    share: Fraction | None


@record
class Outer:
    name: Name
    count: Count
    spare: Natural
    flag: bool
    digest: Digest
    inner: Inner


_GOOD = {
    "name": "site-1",
    "count": 3,
    "spare": 0,
    "flag": True,
    "digest": "0f" * 32,
    "inner": {"rate": 0.5, "share": None},
}


def test_a_record_is_parsed_from_plain_values_and_written_back():
    parsed, faults = parse(Outer, _GOOD)
    assert faults == []
    assert (parsed.name, parsed.count, parsed.inner) == ("site-1", 3, Inner(rate=0.5, share=None))
    assert parse_json(Outer, to_json(parsed)) == parsed
    assert parse(Outer, {**_GOOD, "inner": {"rate": 1, "share": 1}})[0].inner.rate == 1.0


def test_a_record_is_frozen_and_built_by_keyword_only():
    parsed, _ = parse(Outer, _GOOD)
    with pytest.raises(FrozenInstanceError):
        parsed.count = 4
    with pytest.raises(FrozenInstanceError):
        parsed.inner.rate = 4.0
    with pytest.raises(ValueError, match="rate"):
        Inner(0.5, None)
    with pytest.raises(ValueError, match="rate"):
        Inner(rate=-1.0, share=None)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("name", value) for value in ("", "a b", "../up", "-x", ".x", "a\n", "x" * 65, 5, None)],
        *[("count", value) for value in (0, -1, 1.0, 1.5, "1", True, None, [], 1e300)],
        *[("spare", value) for value in (-1, False, "0", 0.0)],
        *[("flag", value) for value in (0, 1, "true", None)],
        *[("digest", value) for value in ("0f" * 31, "0F" * 32, "0g" * 32, "0f" * 32 + "\n", 0)],
        ("inner", None),
        ("inner", []),
        ("inner", "x"),
    ],
)
def test_a_wrong_value_is_refused_by_name(name, value):
    parsed, faults = parse(Outer, {**_GOOD, name: value})
    assert parsed is None
    assert len(faults) == 1
    assert faults[0].startswith(f"{name}=")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), 0.0, -1, "1", True])
def test_a_number_that_is_not_a_finite_positive_one_is_refused(value):
    parsed, faults = parse(Outer, {**_GOOD, "inner": {"rate": value, "share": None}})
    assert parsed is None
    assert len(faults) == 1
    assert faults[0].startswith("inner.rate=")


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "1e999", "true", '"0.5"'])
def test_json_text_with_such_a_number_is_refused_too(text):
    with pytest.raises(ValueError, match="not a valid Inner: rate"):
        parse_json(Inner, f'{{"rate": {text}, "share": null}}')


def test_all_faults_are_reported_at_once_with_the_nearest_names():
    values = {**_GOOD, "count": 0, "inner": {"raet": 0.5, "share": 2.0}, "nmae": "x"}
    del values["flag"]
    parsed, faults = parse(Outer, values)
    assert parsed is None
    assert sorted(faults) == sorted(
        [
            "count=0: should be greater than or equal to 1.",
            "The setting 'flag' is missing.",
            "The setting 'inner.rate' is missing.",
            "Unknown setting 'inner.raet'; did you mean 'inner.rate'?",
            "inner.share=2.0: should be less than or equal to 1.",
            "Unknown setting 'nmae'; did you mean 'name'?",
        ]
    )


def test_field_names_are_dotted_and_include_the_groups():
    assert field_names(Outer) == [
        "name", "count", "spare", "flag", "digest", "inner", "inner.rate", "inner.share",
    ]  # fmt: skip


@pytest.mark.parametrize("values", [None, [], "x", 5, [_GOOD]])
def test_what_is_no_mapping_is_refused(values):
    parsed, faults = parse(Outer, values)
    assert parsed is None
    assert len(faults) == 1


@pytest.mark.parametrize("value", [datetime.date(2024, 1, 1), {1, 2}, b"bytes"])
def test_a_value_that_yaml_knows_and_json_does_not_is_a_fault_like_any_other(value):
    # An unquoted 2024-01-01 in a YAML file is a date.
    parsed, faults = parse(Outer, {**_GOOD, "name": value})
    assert parsed is None
    assert faults


def test_a_bad_json_text_is_refused_without_its_content():
    for text in ("", "{", "[]", "null", '{"rate": 1}', '{"secret": 1}', "\ud800"):
        with pytest.raises(ValueError, match="not a valid Inner") as refused:
            parse_json(Inner, text)
        assert "Invalid" not in str(refused.value)
    with pytest.raises(ValueError, match="not a valid Inner: rate") as refused:
        parse_json(Inner, '{"rate": -12345.678, "share": null}')
    assert "12345" not in str(refused.value)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from([*_GOOD, "rate", "share", "x"]), inner, max_size=6)
    ),
    max_leaves=5,
)


@settings(max_examples=30)
@given(_JSON)
def test_any_plain_value_is_either_a_record_or_has_faults(values):
    parsed, faults = parse(Outer, values)
    assert (parsed is None) == bool(faults)


@given(_JSON, st.sampled_from(sorted(_GOOD)))
def test_what_passes_is_what_came(value, name):
    parsed, _ = parse(Outer, {**_GOOD, name: value})
    if parsed is not None and name != "inner":
        assert type(getattr(parsed, name)) is type(value)
        assert getattr(parsed, name) == value
