"""Tests of classification statistics: they agree with scikit-learn, add up, and bear noise."""

import math
import warnings

import numpy as np
import pytest
import torch
from sklearn import metrics as sk

from lepton_common.errors import DataInvalid, ModelMismatch, SettingsError, UpdateInvalid
from lepton_common.evaluation.statistics import ClassStatistics, all_metrics


def _problem(classes, n=600, *, seed=0, signal=1.5, scale=1.0):
    rng = np.random.default_rng(seed)
    labels = rng.choice(classes, n, p=np.arange(1, classes + 1) / sum(range(classes + 1)))
    logits = rng.normal(size=(n, classes))
    logits[np.arange(n), labels] += signal
    return scale * logits, labels


def _softmax(logits):
    return torch.softmax(torch.from_numpy(logits), 1).numpy()


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_counts_and_losses_agree_with_scikit_learn(classes):
    logits, labels = _problem(classes)
    statistics = ClassStatistics(classes)
    vector = statistics.of(torch.from_numpy(logits), torch.from_numpy(labels))
    found, guessed = statistics.metrics(vector), logits.argmax(1)
    expected = {
        "accuracy": sk.accuracy_score(labels, guessed),
        "balanced_accuracy": sk.balanced_accuracy_score(labels, guessed),
        "log_loss": sk.log_loss(labels, _softmax(logits)),
    }
    for average in ("macro", "micro"):
        three = sk.precision_recall_fscore_support(labels, guessed, average=average)
        for name, value in zip(("precision", "recall", "f1"), three, strict=False):
            expected[f"{name}_{average}"] = value
    each = sk.precision_recall_fscore_support(labels, guessed)
    for label in range(classes):
        for name, values in zip(("precision", "recall", "f1"), each, strict=False):
            expected[f"{name}_{label}"] = values[label]
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-12)
    assert set(found) - set(expected) == {"calibration_error", "roc_auc", "pr_auc"}
    assert np.array_equal(statistics.confusion(vector), sk.confusion_matrix(labels, guessed))


def test_classes_nobody_has_or_predicts_count_as_scikit_learn_counts_them():
    labels = np.array([0, 0, 1, 1, 1])
    logits = np.eye(4)[[0, 3, 0, 0, 0]]  # 1 is never predicted, 3 is not held, 2 is neither
    found = all_metrics(ClassStatistics(4), logits, labels)
    guessed = logits.argmax(1)
    for name, score in (("precision", sk.precision_score), ("recall", sk.recall_score)):
        expected = score(labels, guessed, average="macro", zero_division=0)
        assert found[f"{name}_macro"] == pytest.approx(expected)
    assert found["f1_macro"] == pytest.approx(sk.f1_score(labels, guessed, average="macro"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that a predicted class is not held
        expected = sk.balanced_accuracy_score(labels, guessed)
    assert found["balanced_accuracy"] == pytest.approx(expected)
    assert "recall_2" not in found
    assert found["precision_1"] == 0.0


@pytest.mark.parametrize("shape", [(-1,), (-1, 1)])
def test_one_logit_is_that_of_label_one(shape):
    logits, labels = _problem(2)
    single = (logits[:, 1] - logits[:, 0]).reshape(shape)
    statistics = ClassStatistics(2)
    assert all_metrics(statistics, single, labels) == pytest.approx(
        all_metrics(statistics, logits, labels)
    )


@pytest.mark.parametrize(("classes", "scale"), [(2, 1.0), (2, 8.0), (5, 1.0)])
def test_areas_from_bins_are_near_the_exact_ones(classes, scale):
    logits, labels = _problem(classes, 4000, scale=scale)
    statistics = ClassStatistics(classes)
    binned = statistics.metrics(statistics.of(logits, labels))
    exact = statistics.exact(logits, labels)
    for name in ("roc_auc", "pr_auc"):
        assert binned[name] == pytest.approx(exact[name], abs=1e-3)
        assert 0.1 < exact[name] < 0.99  # not of a problem in which everything is near
    if scale > 1:  # scikit-learn is given probabilities, of which some round to 1
        return
    probabilities = _softmax(logits)
    given = probabilities[:, 1] if classes == 2 else probabilities
    expected = sk.roc_auc_score(labels, given, multi_class="ovr", average="macro")
    assert exact["roc_auc"] == pytest.approx(expected, abs=1e-12)
    hot = labels == 1 if classes == 2 else np.eye(classes)[labels]
    expected = sk.average_precision_score(hot, given, average="macro")
    assert exact["pr_auc"] == pytest.approx(expected, abs=1e-12)


def test_areas_hold_where_every_probability_rounds_to_one_or_nothing():
    rng = np.random.default_rng(4)
    labels = rng.integers(0, 2, 2000)
    logits = 45 + 3 * (rng.normal(size=2000) + labels)  # probabilities of 1 - 1e-20
    found = ClassStatistics(2).exact(logits, labels)
    assert found["roc_auc"] == pytest.approx(sk.roc_auc_score(labels, logits))
    assert 0.7 < found["roc_auc"] < 0.8


def test_the_calibration_error_is_the_weighted_gap_of_fifteen_bins():
    logits, labels = _problem(3, 900, scale=3.0)
    probabilities = _softmax(logits)
    confidence, right = probabilities.max(1), probabilities.argmax(1) == labels
    expected = 0.0
    for low in np.arange(15) / 15:
        inside = (low <= confidence) & (confidence < low + 1 / 15)
        if inside.any():
            gap = abs(confidence[inside].mean() - right[inside].mean())
            expected += inside.mean() * gap
    statistics = ClassStatistics(3)
    vector = statistics.of(logits, labels)
    assert statistics.metrics(vector)["calibration_error"] == pytest.approx(expected, abs=1e-12)
    count, mean, share = statistics.calibration(vector)
    assert count.sum() == 900
    assert float(count @ np.abs(mean - share)) / 900 == pytest.approx(expected)


def test_statistics_add_up_over_records_and_sites():
    logits, labels = _problem(4)
    statistics = ClassStatistics(4)
    parts = [statistics.of(logits[i::7], labels[i::7]) for i in range(7)]
    whole = statistics.of(logits, labels)
    assert whole.shape == (statistics.length,)
    assert whole.dtype == np.float64
    assert np.allclose(sum(parts), whole, atol=1e-9)
    assert not statistics.of(logits[:0], labels[:0]).any()


def test_losses_are_capped_in_sums_and_whole_where_all_records_are_at_hand():
    statistics = ClassStatistics(2, loss_cap=5.0)
    logits, labels = np.array([100.0, 3.0]), np.array([0, 1])
    small = math.log1p(math.exp(-3.0))
    binned = statistics.metrics(statistics.of(logits, labels))
    assert binned["log_loss"] == pytest.approx((5.0 + small) / 2)
    assert statistics.exact(logits, labels)["log_loss"] == pytest.approx((100.0 + small) / 2)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_an_output_that_is_not_finite_is_wrong_at_full_loss(bad):
    statistics = ClassStatistics(3)
    logits = np.array([[bad, 0.0, 0.0], [9.0, 0.0, 0.0]])
    found = all_metrics(statistics, logits, np.array([0, 0]))
    assert found["accuracy"] == 0.5
    assert found["log_loss"] == pytest.approx(5.0, abs=1e-3)


def test_noise_leaves_metrics_finite_within_their_bounds_and_nearly_right():
    logits, labels = _problem(3, 5000)
    statistics = ClassStatistics(3, score_bins=50)
    vector, true = statistics.of(logits, labels), all_metrics(statistics, logits, labels)
    rng = np.random.default_rng(1)
    trials = [statistics.metrics(vector + rng.normal(size=len(vector)) * 10) for _ in range(40)]
    for found in trials:
        assert set(found) == set(true)
        assert all(0.0 <= value <= 1.0 for name, value in found.items() if name != "log_loss")
    for name in ("accuracy", "roc_auc", "f1_macro"):
        mean = np.mean([found[name] for found in trials])
        assert mean == pytest.approx(true[name], abs=0.02)
    for scale in (1.0, 1e6):
        pure = statistics.metrics(rng.normal(size=len(vector)) * scale)
        assert all(map(math.isfinite, pure.values()))


def test_what_is_undefined_is_left_out():
    statistics = ClassStatistics(2)
    assert statistics.metrics(np.zeros(statistics.length)) == {}
    assert statistics.metrics(np.full(statistics.length, -3.0)) == {}
    alone = all_metrics(statistics, np.array([2.0, -1.0]), np.array([1, 1]))
    assert "roc_auc" not in alone
    assert "pr_auc" not in alone
    assert alone["accuracy"] == 0.5
    assert "roc_auc" not in ClassStatistics(2, score_bins=0).metrics(np.ones(50))


def test_many_classes_get_no_metrics_of_their_own():
    logits, labels = _problem(21)
    found = ClassStatistics(21, score_bins=0).metrics(
        ClassStatistics(21, score_bins=0).of(logits, labels)
    )
    assert "recall_macro" in found
    assert "recall_0" not in found


def test_other_forms_are_refused_by_name():
    statistics = ClassStatistics(3)
    with pytest.raises(ModelMismatch, match=r"\[n, 3\]"):
        statistics.of(np.zeros((4, 2)), np.zeros(4, int))
    with pytest.raises(DataInvalid, match=r"0\.\.2"):
        statistics.of(np.zeros((4, 3)), np.array([0, 1, 2, 3]))
    with pytest.raises(DataInvalid, match=r"\[4\]"):
        statistics.of(np.zeros((4, 3)), np.zeros(3, int))
    with pytest.raises(UpdateInvalid, match="finite"):
        statistics.metrics(np.full(statistics.length, np.nan))
    with pytest.raises(UpdateInvalid, match=f"{statistics.length}"):
        statistics.metrics(np.zeros(7))
    with pytest.raises(SettingsError, match="2 or more"):
        ClassStatistics(1)
