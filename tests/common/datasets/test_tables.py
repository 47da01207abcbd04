"""A schema is one that can be kept, and a table is prepared by it alone."""

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lepton_common.datasets.catalog import load_dataset
from lepton_common.datasets.schema import Column, Schema
from lepton_common.datasets.schemas import HEART_DISEASE, find_schema
from lepton_common.datasets.tables import prepare_table
from lepton_common.errors import EmptySite, SettingsError, TableInvalid, UnknownName

AGE = Column("age", "number", 0, 100)
FLAG = Column("ill", "flag")


def one(column, values, **changes):
    """Returns the features that a column gives, its label being a constant."""
    schema = Schema("one", (column, FLAG), "ill", **changes)
    frame = pl.DataFrame({column.name: values, "ill": [True] * len(values)}, strict=False)
    return prepare_table(frame, schema).features.tolist()


@pytest.mark.parametrize(
    ("missing", "wanted"),
    [("drop", [[-1.0]]), ("low", [[-1.0], [-1.0]]), ("middle", [[-1.0], [0.0]]),
     ("indicator", [[-1.0, 0.0], [0.0, 1.0]])],
)  # fmt: skip
@pytest.mark.parametrize("absent", [None, "?", " nan ", float("nan")])
def test_missing_values_are_dealt_with_by_rule(missing, wanted, absent):
    values = ["0", absent] if isinstance(absent, str) else [0.0, absent]
    assert one(Column("age", "number", 0, 100, missing=missing), values) == wanted


def test_categories_are_one_hot_by_the_list_however_they_are_written():
    column = Column("pain", "category", categories=("1", "2", "3"), missing="indicator")
    assert column.features == ("pain=1", "pain=2", "pain=3", "pain missing")
    wanted = [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1]]
    assert one(column, ["1", " 2.0", "9", None]) == wanted
    assert one(column, [1.0, 2.0, 9.0, None]) == wanted
    dummies = Column("pain", "category", categories=("1", "2", "3"), encoding="dummies")
    assert one(dummies, [1, 2, 3]) == [[-1, -1], [1, -1], [-1, 1]]


def test_yes_and_no_are_one_and_minus_one_or_nought_where_the_schema_says_so():
    values = ["yes", "no", None]
    assert one(Column("smokes", "flag", missing="low"), values) == [[1], [-1], [-1]]
    rare = Column("smokes", "flag", missing="low", encoding="zero_one")
    assert one(rare, values) == [[1], [0], [0]]
    assert one(Column("smokes", "flag", missing="middle", encoding="zero_one"), values)[2] == [0.5]


def test_most_values_of_another_coding_are_a_fault():
    column = Column("sex", "category", categories=("male", "female"))
    with pytest.raises(TableInvalid, match="coded in another way"):
        one(column, ["m", "f", "male"])


def test_a_table_of_one_kind_of_value_only_is_no_number():
    for values in ([True, False], [["a"], ["b"]]):
        with pytest.raises(TableInvalid, match="no number"):
            one(AGE, values)


def test_duplicates_go_where_the_schema_says_so():
    frame = pl.DataFrame({"age": [1, 1, 1], "ill": [0, 0, 0], "who": ["a", "a", "b"]})
    schema = Schema("one", (AGE, FLAG), "ill", unit_id="who", unit="person", duplicates="drop")
    assert len(prepare_table(frame, schema)) == 2
    assert len(prepare_table(frame, Schema("one", (AGE, FLAG), "ill"))) == 3


def test_an_id_is_the_same_as_number_and_as_text():
    schema = Schema("one", (AGE, FLAG), "ill", unit_id="who", unit="person")

    def units(ids):
        frame = pl.DataFrame({"age": [1.0, 2.0], "ill": [0, 1], "who": ids})
        return prepare_table(frame, schema).units

    np.testing.assert_array_equal(units([7, 8]), units(["7", " 8"]))
    np.testing.assert_array_equal(units([7, 8]), units([7.0, 8.0]))
    assert units([7, 8]).dtype == np.int64


def test_labels_by_their_kind():
    frame = pl.DataFrame(
        {"age": [10.0, 60.0], "grade": [3, 5], "years": [1.5, 2.0], "ill": ["no", "yes"]}
    )
    grade = Column("grade", "integer", 3, 8)
    years = Column("years", "number", 0, 10)
    classes = Schema("one", (AGE, grade), "grade")
    assert classes.classes == 6
    assert prepare_table(frame, classes).labels.tolist() == [0, 2]
    number = Schema("one", (grade, AGE), "age", "number")
    torch.testing.assert_close(prepare_table(frame, number).labels, torch.tensor([-0.8, 0.2]))
    survival = Schema("one", (AGE, years, FLAG), "years", "survival", event="ill")
    assert survival.features == ("age",)
    assert prepare_table(frame, survival).labels.tolist() == [[1.5, 0.0], [2.0, 1.0]]
    again = Schema("one", (AGE, FLAG), "ill", "record")
    torch.testing.assert_close(
        prepare_table(frame, again).labels, torch.tensor([[0.0, -0.8], [1.0, 0.2]])
    )


def test_an_event_time_below_its_range_and_a_class_outside_are_refused():
    frame = pl.DataFrame({"age": [10.0, 20.0, 30.0], "grade": [3, 4, 9]})
    with pytest.raises(TableInvalid, match="outside the public range 3 to 8"):
        prepare_table(frame, Schema("one", (AGE, Column("grade", "integer", 3, 8)), "grade"))


def test_nothing_left_is_an_empty_site():
    frame = pl.DataFrame({"age": [None], "ill": [1]}, schema={"age": pl.Float64, "ill": pl.Int64})
    with pytest.raises(EmptySite):
        prepare_table(
            frame, Schema("one", (Column("age", "number", 0, 1, missing="drop"), FLAG), "ill")
        )


@given(st.lists(st.floats() | st.text(max_size=4) | st.none(), min_size=1, max_size=12))
def test_any_column_is_prepared_within_bounds_or_refused(values):
    frame = pl.DataFrame({"age": pl.Series(values, strict=False), "ill": [True] * len(values)})
    schema = Schema("one", (Column("age", "number", 0, 9, missing="middle"), FLAG), "ill")
    try:
        found = prepare_table(frame, schema).features.tolist()
    except TableInvalid as error:
        found = [[0.0] for (name, _), rows in error.counts.items() if name == "age" and rows]
    assert found
    assert all(-1 <= value <= 1 for (value,) in found)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Column("age", "number"),
        lambda: Column("age", "number", 1, 1),
        lambda: Column("age", "flag", 0, 1),
        lambda: Column("age", "category", categories=("a",)),
        lambda: Column("age", "category", categories=("a", "a")),
        lambda: Column("age", "category", categories=("a", "b"), missing="low"),
        lambda: Column("age", "category", categories=("a", "b"), encoding="zero_one"),
        lambda: Column("ill", "flag", encoding="dummies"),
        lambda: Schema("one", (AGE, AGE), "age"),
        lambda: Schema("one", (AGE,), "ill"),
        lambda: Schema("one", (AGE,), "age", "number"),
        lambda: Schema("one", (AGE, FLAG), "age"),
        lambda: Schema("one", (AGE, FLAG), "age", "survival"),
        lambda: Schema("one", (AGE, FLAG), "ill", "tokens"),
    ],
)
def test_a_schema_that_cannot_be_kept_is_refused(make):
    with pytest.raises(SettingsError):
        make()


def test_an_unknown_schema_is_named():
    with pytest.raises(UnknownName, match="did you mean 'heart_disease'"):
        find_schema("heart_diseases")


def test_a_hospitals_own_table_becomes_what_the_published_one_does(shared_data):
    names = ["age", "male", "chest pain", "resting blood pressure", "cholesterol",
             "fasting sugar above 120 mg/dl", "resting ECG", "highest heart rate",
             "exercise angina", "ST depression", "slope", "vessels", "thal", "num"]  # fmt: skip
    folder = shared_data / "heart-disease"
    frame = pl.concat(
        pl.read_csv(path, has_header=False, new_columns=names, infer_schema=False)
        for path in sorted(folder.glob("processed.*.data"))
    )
    frame = frame.with_columns(
        pl.int_range(pl.len()).alias("patient"), (pl.col("num") != "0").alias("disease")
    )
    own = prepare_table(frame, HEART_DISEASE)
    published = load_dataset("heart_disease", str(shared_data), "public_ranges")
    assert published.input_shape == HEART_DISEASE.input_shape
    wanted = torch.cat([published.train.features, published.test.features])
    labels = torch.cat([published.train.labels, published.test.labels])

    def rows(features, answers):
        return sorted((*row, answer) for row, answer in
                      zip(features.tolist(), answers.tolist(), strict=True))  # fmt: skip

    assert rows(own.features, own.labels) == rows(wanted, labels)
