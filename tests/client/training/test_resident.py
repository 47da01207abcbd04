"""Models that stay in memory between requests: few of them, and what they change."""

import numpy as np
import pytest
import torch

from lepton_client.training.resident import resident_model
from lepton_common.errors import UpdateInvalid

CPU = torch.device("cpu")


def model(width=4, *, channels_last=False):
    return resident_model("logistic", (width,), 2, CPU, channels_last=channels_last)


def test_a_model_is_kept_until_two_others_came():
    first = model(4)
    assert model(4) is first
    model(5)
    assert model(4) is first
    model(6)
    assert model(4) is not first


def test_the_update_is_what_has_changed_and_what_came_stays_as_it_is():
    resident = model()
    for writeable in (True, False):
        came = np.arange(10, dtype=np.float32)
        came.flags.writeable = writeable
        start = resident.load(came)
        with torch.no_grad():
            for parameter in resident.module.parameters():
                parameter += 0.5
        assert resident.update_since(start).tolist() == [0.5] * 10
        assert came.tolist() == list(range(10))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_an_update_that_is_not_finite_is_none(value):
    resident = model()
    start = resident.load(np.zeros(10, np.float32))
    with torch.no_grad():
        next(resident.module.parameters())[0, 1] = value
    with pytest.raises(UpdateInvalid, match="diverged"):
        resident.update_since(start)
