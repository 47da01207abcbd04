"""Tests of the four hospitals against what FLamby publishes."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from lepton_common.datasets.catalog import load_dataset
from lepton_common.datasets.heart import HOSPITALS, _read, made_up_chances
from lepton_common.datasets.records import check
from lepton_common.datasets.source import MADE_UP
from lepton_common.errors import ChecksumMismatch, DataInvalid


@pytest.fixture
def load(shared_data):
    return lambda prepare: load_dataset("heart_disease", str(shared_data), prepare)


@pytest.mark.parametrize("prepare", ["public_ranges", "site_statistics"])
def test_counts_are_those_of_flamby(load, prepare):
    data = load(prepare)
    assert len(data.train) + len(data.test) == 740
    assert (len(data.train), len(data.test)) == (486, 254)
    assert data.input_shape == (13,)
    assert (data.unit, data.classes, data.sites) == ("patient", 2, HOSPITALS)
    assert np.bincount(data.train.origins).tolist() == [199, 172, 30, 85]
    assert np.bincount(data.test.origins).tolist() == [104, 89, 16, 45]
    assert set(data.train.labels.tolist()) == {0, 1}


def test_both_preparations_hold_the_same_patients(load):
    public, private = load("public_ranges"), load("site_statistics")
    assert public.train.labels.tolist() == private.train.labels.tolist()
    assert public.notes == ()
    assert "private statistics" in private.notes[0]


def test_site_statistics_leave_mean_zero_and_deviation_one_at_each_hospital(load):
    train = load("site_statistics").train
    for hospital in range(4):
        rows = train.features[train.origins == hospital].double().numpy()
        np.testing.assert_allclose(rows.mean(axis=0), 0, atol=1e-6)
        deviation = rows.std(axis=0, ddof=1)
        constant = deviation < 1e-6
        np.testing.assert_allclose(deviation[~constant], 1, atol=1e-5)
        assert constant.sum() <= 3


def test_public_ranges_lie_within_one_and_depend_on_no_other_record(load):
    data = load("public_ranges")
    for part in (data.train, data.test):
        assert -1.0 <= float(part.features.min()) < float(part.features.max()) <= 1.0
    age = (data.train.features[:, 0].numpy() + 1) * 30 + 20
    assert np.allclose(age, np.rint(age), atol=1e-4)
    assert set(data.train.features[:, 8:].unique().tolist()) == {-1.0, 1.0}


def test_pooled_logistic_regression_reaches_the_known_accuracy(load):
    data = load("public_ranges")
    train, test = data.train.features.double().numpy(), data.test.features.double().numpy()
    mean, deviation = train.mean(axis=0), train.std(axis=0, ddof=1)
    model = LogisticRegression(max_iter=1000).fit((train - mean) / deviation, data.train.labels)
    accuracy = model.score((test - mean) / deviation, data.test.labels)
    assert accuracy == pytest.approx(0.79, abs=0.03)


def test_the_dummies_leave_out_the_first_level_and_missing_rows_are_dropped(tmp_path):
    path = tmp_path / "hospital.data"
    head, tail = "50,1,{},120,200,0", "{},150,0,1.5,2,0,3"
    rows = [f"{head.format(1)},{tail.format(0)},0", f"{head.format(4)},{tail.format(2)},3"]
    rows += [rows[0].replace("120", "?"), rows[0].replace(",2,0,3,", ",?,?,?,")]
    path.write_text("\n".join(rows))
    features, labels = _read(path)
    assert labels.tolist() == [0, 1, 0]
    assert features[0].tolist() == [50, 1, 120, 200, 0, 150, 0, 1.5, 0, 0, 0, 0, 0]
    assert features[1].tolist() == [50, 1, 120, 200, 0, 150, 0, 1.5, 0, 0, 1, 0, 1]


@pytest.mark.parametrize(
    "text",
    ["", "1,2,3\n", "1,2\n3\n", ",".join("1" * 13), ",".join("1" * 15), "a," * 13 + "b", "é"],
)
def test_a_file_of_another_form_is_invalid_and_not_quoted(tmp_path, text):
    path = tmp_path / "hospital.data"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataInvalid, match="14 comma-separated columns") as refused:
        _read(path)
    assert "1,2" not in str(refused.value)


def test_another_file_in_the_place_of_the_published_one_is_refused(tmp_path):
    (tmp_path / "heart-disease").mkdir()
    for name in HOSPITALS:
        (tmp_path / "heart-disease" / f"processed.{name}.data").write_text("1,2\n")
    with pytest.raises(ChecksumMismatch):
        load_dataset("heart_disease", str(tmp_path), "public_ranges")


def test_made_up_patients_are_of_four_hospitals_and_told_apart_as_well_as_their_rule_can():
    data = load_dataset("heart_disease", MADE_UP, "public_ranges")
    assert (data.unit, data.sites, data.input_shape) == ("patient", HOSPITALS, (13,))
    assert np.bincount(data.train.origins).tolist() == [132, 105, 39, 79]
    features = np.concatenate([part.features.double().numpy() for part in (data.train, data.test)])
    labels = np.concatenate([check(part, data).labels.numpy() for part in (data.train, data.test)])
    chances = made_up_chances(features)
    assert np.mean((chances > 0.5) == labels) == pytest.approx(
        np.maximum(chances, 1 - chances).mean(), abs=0.03
    )
    assert labels.mean() == pytest.approx(chances.mean(), abs=0.03)
    ages = [data.train.features[data.train.origins == site, 0].mean() for site in range(4)]
    assert ages == sorted(ages)  # so that hospitals differ, as real ones do
    assert set(data.train.features[:, 8:].unique().tolist()) == {-1.0, 1.0}
    assert "Made-up" in data.notes[0]
    again = load_dataset.__wrapped__("heart_disease", MADE_UP, "public_ranges")
    assert (again.train.features == data.train.features).all()


def test_made_up_patients_are_prepared_as_flamby_does_too():
    data = load_dataset("heart_disease", MADE_UP, "site_statistics")
    first = data.train.features[data.train.origins == 0]
    assert first.mean(0).abs().max() < 1e-6
    assert len(data.notes) == 2
