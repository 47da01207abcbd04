"""Tests of engines until they fail: lives, windows, fleets, and what is healthy and what worn."""

import math

import numpy as np
import pytest
import torch

from lepton_common.datasets import engines
from lepton_common.datasets.engines import MOST_LIFE, cmapss, machine_anomaly
from lepton_common.datasets.records import check
from lepton_common.datasets.source import MADE_UP
from lepton_common.errors import DataInvalid


def _checked(data, count):
    assert check(data.train, data) is data.train
    assert check(data.test, data) is data.test
    assert data.input_shape == (30, 14)
    assert (data.unit, data.classes) == ("engine", 0)
    assert data.sites == tuple(f"fleet-{number:02}" for number in range(1, 11))
    assert (data.train.origins == (data.train.units - 1) * 10 // count).all()
    assert set(data.train.origins.tolist()) == set(range(10))
    return data


def _cycles(labels):
    return (labels.double().numpy() + 1) / 2 * MOST_LIFE


def test_published_lives_are_judged_by_the_end_of_each_test_engine(shared_data):
    data = _checked(cmapss(str(shared_data), "public_ranges"), 100)
    assert (len(data.train), data.train.unit_count) == (20631 - 100 * 29, 100)
    assert data.test.units.tolist() == list(range(1, 101))
    published = np.loadtxt(shared_data / "cmapss-fd001" / "RUL_FD001.txt")
    np.testing.assert_allclose(_cycles(data.test.labels), np.minimum(published, 125), atol=1e-4)
    # An engine's last window ends as it fails; the one before, a cycle earlier.
    first = _cycles(data.train.labels[data.train.units == 1])
    assert len(first) == 192 - 29
    np.testing.assert_allclose(first[-3:], [2, 1, 0], atol=1e-4)
    assert first[0] == 125
    assert float(data.train.features.abs().max()) < 1  # nothing is clipped
    # Its first sensor of the first cycle, as published, in degrees Rankine.
    value = (float(data.train.features[0, 0, 0]) + 1) * 3 + 640
    assert value == pytest.approx(641.82, abs=1e-3)


def test_a_published_window_foretells_life_far_better_than_the_mean(shared_data):
    from sklearn.linear_model import Ridge

    data = cmapss(str(shared_data), "public_ranges")
    last = [part.features[:, -5:].mean(1).numpy() for part in (data.train, data.test)]
    model = Ridge(0.1).fit(last[0], _cycles(data.train.labels))
    wanted = _cycles(data.test.labels)
    error = math.sqrt(np.square(model.predict(last[1]) - wanted).mean())
    mean = math.sqrt(np.square(_cycles(data.train.labels).mean() - wanted).mean())
    assert error < 24 < 40 < mean


def test_made_up_sensors_tell_life_up_to_the_known_error():
    data = _checked(cmapss(MADE_UP, "public_ranges"), 50)
    assert data.label_kind == "number"
    assert (len(data.train), len(data.test)) == (892, 50)
    for part in (data.train, data.test):
        error = (2 * part.features[:, -1].mean(1) - part.labels).square().mean().sqrt()
        assert float(error) == pytest.approx(0.2 / math.sqrt(14), rel=0.2)
    again = cmapss(MADE_UP, "public_ranges")
    assert torch.equal(again.test.features, data.test.features)


@pytest.mark.parametrize("made_up", [True, False])
def test_engines_to_learn_from_are_healthy_and_those_to_tell_are_either(made_up, request):
    root = MADE_UP if made_up else str(request.getfixturevalue("shared_data"))
    data = _checked(machine_anomaly(root, "public_ranges"), 50 if made_up else 100)
    assert data.label_kind == "record"
    assert len(data.train) == (265 if made_up else 5239)
    for part in (data.train, data.test):
        assert torch.equal(part.labels[:, 1:], part.features.flatten(1))
    assert not data.train.labels[:, 0].any()
    assert set(data.test.labels[:, 0].tolist()) == {0.0, 1.0}
    assert 0.03 < float(data.test.labels[:, 0].mean()) < 0.2
    # Those that are told lie further from what healthy engines are like on the whole.
    usual = data.train.features.mean(0)
    far = (data.test.features - usual).square().mean((1, 2))
    worn = data.test.labels[:, 0] == 1
    assert float(far[worn].median()) > 3 * float(far[~worn].median())


def _file(tmp_path, name, rows):
    path = tmp_path / name
    path.write_text("\n".join(" ".join(map(str, row)) for row in rows))
    return path


def _row(engine, cycle):
    return [engine, cycle, 0, 0, 100, *range(1, 22)]


def test_a_file_is_read_by_engine_and_by_sensor(tmp_path):
    path = _file(tmp_path, "train.txt", [_row(2, 1), _row(1, 1), _row(2, 2)])
    found = engines._read(path)
    assert {engine: len(series) for engine, series in found.items()} == {1: 1, 2: 2}
    assert found[1][0].tolist() == list(engines.SENSORS)


@pytest.mark.parametrize("rows", [[_row(1, 1)[:-1]], [[1, "a"]], [_row(1, 1), [1]], [[1]], []])
def test_a_file_of_another_form_is_invalid(tmp_path, rows):
    with pytest.raises(DataInvalid, match="should hold 26 columns of numbers"):
        engines._read(_file(tmp_path, "train.txt", rows))


def test_lives_must_be_as_many_as_engines(tmp_path, monkeypatch):
    rows = [_row(1, cycle) for cycle in range(31)]
    paths = {
        "train_FD001.txt": _file(tmp_path, "a", rows),
        "test_FD001.txt": _file(tmp_path, "b", rows),
        "RUL_FD001.txt": _file(tmp_path, "c", [[3], [4]]),
    }
    monkeypatch.setattr(type(engines._SOURCE), "fetch", lambda self, root: paths)
    with pytest.raises(DataInvalid, match="a number for each of the 1 engines"):
        cmapss("folder", "public_ranges")
    _file(tmp_path, "c", [[3]])
    data = cmapss("folder", "public_ranges")
    assert _cycles(data.test.labels).tolist() == pytest.approx([3], abs=1e-4)
    assert _cycles(data.train.labels).tolist() == pytest.approx([1, 0], abs=1e-4)
