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


def test_a_gpu_that_is_not_there_is_refused_by_name():
    with pytest.raises(SettingsError, match=r"train.device=cuda:99: this machine has none"):
        pick_device("cuda:99")


@pytest.mark.parametrize("word", ["cuda:128", "cuda:999", "gpu", "0", "cuda:²", "cpu:0"])
def test_a_word_that_names_no_device_is_refused(word):
    with pytest.raises(SettingsError, match=f"train.device={word}: choose auto"):
        pick_device(word)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_cuda_is_refused_on_a_machine_without():
    with pytest.raises(SettingsError, match="choose auto or cpu"):
        pick_device("cuda")


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="this machine has MPS")
def test_mps_is_refused_on_a_machine_without():
    with pytest.raises(SettingsError, match="choose auto or cpu"):
        pick_device("mps")
