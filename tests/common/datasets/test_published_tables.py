"""Tests of six published tables: form, published counts, and stand-ins made up by known rules."""

from functools import cache

import numpy as np
import pytest
import torch
from sklearn.linear_model import LinearRegression, LogisticRegression

from lepton_common.datasets.census import ADULT, ADULT_RULE, adult
from lepton_common.datasets.credit import (
    CREDIT_DEFAULT,
    CREDIT_RULE,
    GERMAN_CREDIT,
    GERMAN_RULE,
    credit_default,
    german_credit,
)
from lepton_common.datasets.factory import (
    AI4I,
    AI4I_RULE,
    WINE_QUALITY,
    WINE_RULE,
    ai4i,
    wine_quality,
)
from lepton_common.datasets.made_up import Rule, made_up
from lepton_common.datasets.records import check
from lepton_common.datasets.source import MADE_UP
from lepton_common.datasets.tumours import REGIONS, TCGA_BRCA, TCGA_RULE, tcga_brca
from lepton_common.errors import ChecksumMismatch, DataMissing, SettingsError

LOADERS = {
    "adult": (adult, ADULT, ADULT_RULE),
    "german_credit": (german_credit, GERMAN_CREDIT, GERMAN_RULE),
    "credit_default": (credit_default, CREDIT_DEFAULT, CREDIT_RULE),
    "ai4i": (ai4i, AI4I, AI4I_RULE),
    "wine_quality": (wine_quality, WINE_QUALITY, WINE_RULE),
    "tcga_brca": (tcga_brca, TCGA_BRCA, TCGA_RULE),
}
_TWO_CLASSES = ("adult", "german_credit", "credit_default", "ai4i")


@pytest.fixture(scope="module")
def real(shared_data):
    return cache(lambda name: LOADERS[name][0](str(shared_data), "public_ranges"))


@pytest.fixture(scope="module")
def stand_in():
    return cache(lambda name: LOADERS[name][0](MADE_UP, "public_ranges"))


def _has_form(data, schema):
    for part in (data.train, data.test):
        check(part, data)
        assert -1 <= float(part.features.min()) < float(part.features.max()) <= 1
    assert data.name == schema.name
    assert len(data.features) == data.input_shape[0]
    assert data.notes
    names = [one.name for one in schema.columns]
    assert not {schema.label, schema.site} & set(data.features)
    assert {feature.split("=")[0].removesuffix(" missing") for feature in data.features} <= {*names}
    if schema.duplicates == "drop":
        assert not _content(data.train) & _content(data.test)
    if schema.unit_id:
        train, test = set(data.train.units.tolist()), set(data.test.units.tolist())
        assert len(train) == len(data.train)
        assert len(test) == len(data.test)
        assert not train & test


def _content(part):
    columns = (part.features, part.labels.reshape(len(part), -1).float())
    origins = np.zeros(len(part)) if part.origins is None else part.origins
    rows = zip(torch.cat(columns, 1).numpy(), origins, strict=True)
    return {(row.tobytes(), origin) for row, origin in rows}


@pytest.mark.parametrize("name", LOADERS)
def test_published_records_have_the_form_of_their_schema(name, real):
    _has_form(real(name), LOADERS[name][1])


@pytest.mark.parametrize(
    ("name", "records", "ones"),
    [
        ("adult", (32_561, 16_281), (7_841, 3_846)),
        ("german_credit", (800, 200), (240, 60)),
        ("credit_default", (24_000, 6_000), (5_309, 1_327)),
        ("ai4i", (8_000, 2_000), (271, 68)),
    ],
)
def test_classes_are_as_often_as_published(name, records, ones, real):
    data = real(name)
    assert (len(data.train), len(data.test)) == records
    assert (int(data.train.labels.sum()), int(data.test.labels.sum())) == ones
    assert data.classes == 2


def test_products_of_three_classes_stand_for_three_plants(real):
    data = real("ai4i")
    assert data.sites == ("L", "M", "H")
    assert np.bincount(data.train.origins).tolist() == [4_800, 2_397, 803]
    assert np.bincount(data.test.origins).tolist() == [1_200, 600, 200]
    failed = data.train.labels.numpy() == 1
    assert np.bincount(data.train.origins[failed]).min() > 10


def test_each_wine_is_there_once_with_its_mark(real):
    data = real("wine_quality")
    assert len(data.train) + len(data.test) == 5_320
    both = np.concatenate([data.train.origins, data.test.origins])
    assert data.sites == ("red", "white")
    assert np.bincount(both).tolist() == [1_359, 3_961]
    marks = 5 + 5 * torch.cat([data.train.labels, data.test.labels]).double()
    assert torch.allclose(marks, marks.round(), atol=1e-5)
    assert (int(marks.round().min()), int(marks.round().max())) == (3, 9)


def test_patients_are_split_as_flamby_splits_them(real):
    data = real("tcga_brca")
    assert data.sites == REGIONS
    assert data.unit == "patient"
    assert np.bincount(data.train.origins).tolist() == [248, 156, 164, 129, 129, 40]
    assert np.bincount(data.test.origins).tolist() == [63, 40, 42, 33, 33, 11]
    times, events = torch.cat([data.train.labels, data.test.labels]).T
    assert (float(times.min()), float(times.max())) == (0.0, 8_605.0)
    assert int(events.sum()) == 151
    assert data.input_shape == (39,)
    ages = (data.train.features[:, 0] + 1) / 2 * (90 - 18) + 18
    assert torch.allclose(ages, ages.round(), atol=1e-4)
    assert set(data.train.features[:, 1:].unique().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize("name", LOADERS)
def test_few_measured_values_lie_beyond_their_public_range(name, real):
    schema, data = LOADERS[name][1], real(name)
    for column in schema.feature_columns:
        if column.unit:
            values = data.train.features[:, data.features.index(column.name)]
            assert (values == 1).float().mean() < 0.06, column.name
            assert values.unique().numel() > 20, column.name


@pytest.mark.parametrize(("name", "base", "least"), [("adult", 0.764, 0.84), ("ai4i", 0.966, 0.967),
    ("credit_default", 0.779, 0.81), ("german_credit", 0.70, 0.71)])  # fmt: skip
def test_a_linear_model_of_the_published_records_beats_the_majority(name, base, least, real):
    data = real(name)
    shares = data.test.labels.double().mean().item()
    assert max(shares, 1 - shares) == pytest.approx(base, abs=0.001)
    features, labels = data.train.features[:8_000], data.train.labels[:8_000]
    model = LogisticRegression(max_iter=300).fit(features, labels)
    assert model.score(data.test.features, data.test.labels) > least


def test_a_linear_model_of_the_published_wines_beats_the_mean(real):
    data = real("wine_quality")
    ours, mean = _errors(data, LinearRegression().fit(data.train.features, data.train.labels))
    assert ours < 0.86 * mean


def _errors(data, model):
    wanted = data.test.labels.numpy()
    said = model.predict(data.test.features.numpy())
    mean = data.train.labels.numpy().mean()
    return np.sqrt(np.square(said - wanted).mean()), np.sqrt(np.square(mean - wanted).mean())


@pytest.mark.parametrize("name", LOADERS)
def test_made_up_records_have_the_form_of_the_published_ones(name, stand_in):
    data = stand_in(name)
    _has_form(data, LOADERS[name][1])
    assert (len(data.train), len(data.test)) == (800, 400)
    assert "Made-up" in data.notes[0]
    if data.sites:
        assert np.bincount(data.train.origins, minlength=len(data.sites)).min() > 100


@pytest.mark.parametrize("name", LOADERS)
def test_made_up_records_are_the_same_each_time(name, stand_in):
    first, second = stand_in(name), LOADERS[name][0](MADE_UP, "public_ranges")
    assert first.train.features.equal(second.train.features)
    assert first.train.labels.equal(second.train.labels)
    assert first.test.features.equal(second.test.features)
    assert first.test.labels.equal(second.test.labels)


@pytest.mark.parametrize("name", _TWO_CLASSES)
def test_a_linear_model_learns_made_up_classes_nearly_as_well_as_can_be(name, stand_in):
    data, rule = stand_in(name), LOADERS[name][2]
    model = LogisticRegression(C=0.3, max_iter=300).fit(data.train.features, data.train.labels)
    reached = model.score(data.test.features, data.test.labels)
    labels = data.test.labels.numpy()
    best = ((rule.sums(data.test.features, data.features) > 0) == labels).mean()
    majority = max(labels.mean(), 1 - labels.mean())
    assert majority < 0.65
    assert majority + 0.15 < best - 0.05 < reached


def test_a_linear_model_learns_made_up_numbers_nearly_as_well_as_can_be(stand_in):
    data = stand_in("wine_quality")
    ours, mean = _errors(data, LinearRegression().fit(data.train.features, data.train.labels))
    assert WINE_RULE.deviation * 0.9 < ours < WINE_RULE.deviation * 1.2 < 0.5 * mean


def test_made_up_events_come_by_the_rule(stand_in):
    data = stand_in("tcga_brca")
    times, events = data.train.labels.T.numpy()
    risks = TCGA_RULE.sums(data.train.features, data.features)
    assert 0.4 < events.mean() < 0.8
    assert times.max() <= TCGA_BRCA.column("T").high
    earlier = np.flatnonzero(events)
    later = times[None] > times[earlier][:, None]
    agree = (risks[earlier][:, None] > risks[None]) & later
    assert agree.sum() / later.sum() > 0.75


def test_a_rule_weighs_the_features_that_it_names():
    schema = WINE_QUALITY
    data = made_up(schema, Rule({"pH": 0.5}))
    held = data.features.index("pH")
    torch.testing.assert_close(data.train.labels, 0.5 * data.train.features[:, held])


@pytest.mark.parametrize("name", LOADERS)
def test_rules_name_features_of_their_schemas(name):
    _, schema, rule = LOADERS[name]
    assert set(rule.weights) <= set(schema.features)


def test_what_is_missing_shows_as_a_feature_of_its_own(real, stand_in):
    for data in (stand_in("adult"), real("adult")):
        held = data.features.index("workclass missing")
        absent = data.train.features[:, held] == 1
        assert 0.02 < absent.float().mean() < 0.10
        listed = [i for i, name in enumerate(data.features) if name.startswith("workclass=")]
        assert torch.equal(data.train.features[:, listed].sum(1) == 0, absent)


@pytest.mark.parametrize("name", LOADERS)
def test_other_preparations_are_refused(name):
    with pytest.raises(SettingsError, match=f"'{name}' offers public_ranges only"):
        LOADERS[name][0](MADE_UP, "site_statistics")


@pytest.mark.parametrize("name", LOADERS)
def test_files_that_are_not_there_are_missed_by_name(name, tmp_path):
    with pytest.raises(DataMissing, match=r"(data|csv|test) at .* is not there"):
        LOADERS[name][0](str(tmp_path), "public_ranges")


def test_a_file_that_cannot_be_downloaded_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("LEPTON_CACHE", str(tmp_path))
    with pytest.raises(DataMissing, match=r"cannot be downloaded; set data\.root .* or to made-up"):
        credit_default(None, "public_ranges")


def test_another_file_in_the_place_of_the_published_one_is_refused(tmp_path):
    (tmp_path / "german-credit").mkdir()
    (tmp_path / "german-credit" / "german.data").write_text("A11 6\n")
    with pytest.raises(ChecksumMismatch):
        german_credit(str(tmp_path), "public_ranges")
