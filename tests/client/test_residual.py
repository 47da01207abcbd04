"""What a site keeps of updates that were sent in part: by run, model and privacy."""

import stat

import numpy as np
import pytest
from toy_site import PRIVACY, request

from lepton_client.residual import Residuals

BEFORE, AFTER = np.float32([1, 2, 3]), np.float32([4, 0, 6])
NEXT = "b" * 64


@pytest.fixture
def residuals(tmp_path):
    return Residuals(tmp_path / "residuals")


def test_the_first_round_has_none(residuals):
    np.testing.assert_array_equal(residuals.before(request(), 3), np.zeros(3, np.float32))


def test_the_next_round_gets_what_the_last_one_left(residuals):
    residuals.keep(request(), BEFORE, AFTER)
    np.testing.assert_array_equal(residuals.before(request(model_digest=NEXT), 3), AFTER)


def test_a_repeated_round_gets_what_its_first_attempt_got(residuals):
    residuals.keep(request(), BEFORE, AFTER)
    np.testing.assert_array_equal(residuals.before(request(), 3), BEFORE)


@pytest.mark.parametrize(
    ("changes", "size"),
    [
        ({"run": "another"}, 3),
        ({"privacy": PRIVACY}, 3),
        ({"task": "another"}, 3),
        ({"layout": "c" * 64}, 3),
        ({}, 4),
    ],
    ids=["run", "privacy", "task", "layout", "size"],
)
def test_another_run_privacy_or_model_starts_from_nothing(residuals, changes, size):
    """Above all, what was trained without DP must not ride in what claims it."""
    residuals.keep(request(), BEFORE, AFTER)
    assert not residuals.before(request(model_digest=NEXT, **changes), size).any()


def test_a_damaged_file_starts_from_nothing(residuals, tmp_path):
    residuals.keep(request(), BEFORE, AFTER)
    (path,) = (tmp_path / "residuals").iterdir()
    path.write_bytes(path.read_bytes()[:-3])
    assert not residuals.before(request(model_digest=NEXT), 3).any()


def test_only_the_owner_can_read_it(residuals, tmp_path):
    residuals.keep(request(), BEFORE, AFTER)
    (path,) = (tmp_path / "residuals").iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_a_residual_that_is_not_finite_starts_from_nothing(residuals):
    residuals.keep(request(), BEFORE, np.float32([1, np.nan, 2]))
    assert not residuals.before(request(model_digest=NEXT), 3).any()
