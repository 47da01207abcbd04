"""Networks as lists of layers: what they become, and that nothing else can be said."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lepton_common.errors import SettingsError
from lepton_common.models.catalog import build_model, initial_model, model_fault
from lepton_common.models.cnn import cnn
from lepton_common.models.layers import build_layers, fault_in

CNN = "layers.conv16k5p2-pool2-relu-conv32k5p2-pool2-relu-linear128-relu"


def test_the_catalog_s_network_can_be_listed():
    torch.manual_seed(3)
    listed = build_layers(CNN, (1, 28, 28), 10)
    torch.manual_seed(3)
    written = cnn((1, 28, 28), 10)
    assert [str(module) for module in listed] == [str(module) for module in written]
    x = torch.randn(4, 1, 28, 28)
    assert torch.equal(listed(x), written(x))


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("layers.linear8", (30,)),
        ("layers.tanh", (30,)),
        ("layers.linear8-sigmoid-linear4-tanh", (3, 8, 8)),
        ("layers.conv4k3s2-norm2-relu-mean2", (3, 32, 32)),
        ("layers.conv4k3s2p1-pool3", (1, 9, 9)),
    ],
)
def test_a_list_becomes_a_network_with_logits(name, shape):
    assert model_fault(name) is None
    model = initial_model(name, shape, 7, seed=1)
    assert model(torch.randn(5, *shape)).shape == (5, 7)
    again = initial_model(name, shape, 7, seed=1)
    for a, b in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    "words",
    [
        "", "-", "linear", "linear0", "linear-1", "linear1e9", "linear64-", "lstm64", "conv16",
        "conv16k0", "conv0k3", "conv16k3s0", "pool0", "__import__", "linear64;relu",
        "linear99999999999999999999", "linear\u0665", "-".join(["relu"] * 65),
    ],
)  # fmt: skip
def test_what_is_no_list_of_layers_is_refused(words):
    assert fault_in(f"layers.{words}") is not None
    assert model_fault(f"layers.{words}") is not None
    with pytest.raises(SettingsError):
        build_model(f"layers.{words}", (30,), 2)


@pytest.mark.parametrize(
    ("name", "shape", "why"),
    [
        ("layers.conv16k5", (30,), "is for images"),
        ("layers.linear8-pool2", (1, 8, 8), "is for images"),
        ("layers.conv16k9", (1, 8, 8), "does not fit"),
        ("layers.pool9", (1, 8, 8), "leaves nothing"),
        ("layers.conv6k3-norm4", (1, 8, 8), "does not divide"),
        ("layers.linear1048576-linear1048576", (30,), "is the most"),
    ],
)
def test_layers_that_do_not_fit_are_refused_before_memory_is_taken(name, shape, why):
    with pytest.raises(SettingsError, match=why):
        build_layers(name, shape, 2)


@given(
    st.lists(
        st.sampled_from(
            ["conv4k3", "conv3k2s2p1", "pool2", "mean2", "norm1", "linear5", "relu", "tanh"]
        ),
        min_size=1, max_size=8,
    )
)  # fmt: skip
def test_what_is_built_has_the_shape_that_was_reckoned(words):
    try:
        model = build_layers("layers." + "-".join(words), (2, 12, 12), 3)
    except SettingsError:
        return
    assert model(torch.zeros(2, 2, 12, 12)).shape == (2, 3)
    assert isinstance(model[-1], nn.Linear)
    assert math.isfinite(sum(p.numel() for p in model.parameters()))
