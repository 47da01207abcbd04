"""Tests of the pictures of an evaluation: each is written, of ordinary and of odd values."""

import numpy as np
import pytest
from matplotlib import image

from lepton_cli.evaluation_pictures import (
    draw_calibration,
    draw_confusion,
    draw_precision_recall,
    draw_predictions,
    draw_roc,
)
from lepton_common.evaluation.scores import pr_curve, roc_curve
from lepton_common.evaluation.statistics import ClassStatistics

_BLUE, _GREY = (31, 95, 168), (122, 122, 122)


@pytest.fixture(scope="module", autouse=True)
def rough_pictures():
    """Not here."""


def _evaluation(classes):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, classes, 400)
    logits = rng.normal(size=(400, classes))
    logits[np.arange(400), labels] += 2.0
    statistics = ClassStatistics(classes)
    return statistics, statistics.of(logits, labels)


def _pixels(path):
    return (image.imread(path)[..., :3] * 255).round().astype(int)


def _count(path, color):
    return int((_pixels(path) == color).all(axis=2).sum())


def test_curves_show_the_model_and_guessing(tmp_path):
    statistics, vector = _evaluation(2)
    counts = statistics.score_counts(vector)
    draw_roc({"model": roc_curve(counts)}, "ROC", tmp_path / "roc.png")
    draw_precision_recall({"model": pr_curve(counts)}, "PR", tmp_path / "pr.png", guessing=0.5)
    for name in ("roc.png", "pr.png"):
        assert _count(tmp_path / name, _BLUE) > 500
        assert _count(tmp_path / name, _GREY) > 100


def test_many_classes_share_a_picture(tmp_path):
    statistics, vector = _evaluation(12)
    curves = {str(k): roc_curve(statistics.score_counts(vector, k)) for k in range(12)}
    draw_roc(curves, "ROC", tmp_path / "roc.png")
    assert _count(tmp_path / "roc.png", _GREY) > 100


@pytest.mark.parametrize("classes", [3, 13])
def test_a_confusion_matrix_is_darkest_where_it_is_right(tmp_path, classes):
    names = [f"class {k}" for k in range(classes)]
    path = tmp_path / "confusion.png"
    draw_confusion(np.eye(classes) * 50, names, "confusion", path)
    darkest, lightest = _count(path, (8, 48, 107)), _count(path, (247, 251, 255))
    assert lightest / darkest == pytest.approx(classes - 1, rel=0.3)


def test_empty_classes_and_no_records_are_drawn_without_a_warning(tmp_path):
    draw_confusion(np.zeros((3, 3)), ["a", "b", "c"], "none", tmp_path / "a.png")
    empty = np.zeros(0)
    draw_calibration(empty, empty, empty, "none", tmp_path / "b.png")
    draw_predictions(empty, empty, "hours", "none", tmp_path / "c.png")
    draw_predictions(np.array([2.0]), np.array([2.0]), "hours", "one", tmp_path / "d.png")
    assert len(list(tmp_path.glob("*.png"))) == 4


def test_calibration_shows_the_gap(tmp_path):
    statistics, vector = _evaluation(3)
    path = tmp_path / "calibration.png"
    draw_calibration(*statistics.calibration(vector), "calibration", path)
    assert _count(path, _BLUE) > 200
    assert _count(path, (217, 130, 43)) > 50


def test_predictions_lie_about_the_diagonal(tmp_path):
    true = np.linspace(0, 100, 20_000)
    path = tmp_path / "predictions.png"
    draw_predictions(true + 5.0, true, "hours", "predictions", path)
    assert _count(path, _GREY) > 100
    assert len(np.unique(_pixels(path).reshape(-1, 3), axis=0)) > 20
