"""Tests of the choice of a device."""

import pytest
import torch

from lepton_common.device import pick_device
from lepton_common.errors import SettingsError


def test_cpu_is_always_there():
    assert pick_device("cpu") == torch.device("cpu")


def test_auto_takes_the_best_there_is():
    best = "cuda" if torch.cuda.is_available() else "cpu"
    best = "mps" if torch.backends.mps.is_available() and best == "cpu" else best
    assert pick_device("auto") == torch.device(best)


@pytest.mark.parametrize("index", [99, 128, 200, 999])
def test_a_gpu_that_is_not_there_is_refused_by_name(index):
    with pytest.raises(SettingsError, match=f"train.device=cuda:{index}: this machine has none"):
        pick_device(f"cuda:{index}")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_cuda_is_refused_on_a_machine_without():
    with pytest.raises(SettingsError, match="choose auto or cpu"):
        pick_device("cuda")


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="this machine has MPS")
def test_mps_is_refused_on_a_machine_without():
    with pytest.raises(SettingsError, match="choose auto or cpu"):
        pick_device("mps")
