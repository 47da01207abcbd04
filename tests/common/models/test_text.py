"""Tokens, padding and frozen weights of the models that read texts."""

import hashlib

import numpy as np
import pytest
import torch
from torch import nn

from lepton_common.arrays import Layout, read_parameters, trained
from lepton_common.models.catalog import build_model, initial_model
from lepton_common.models.tokens import Tokens, spread


def test_tokens_are_whole_numbers_again_up_to_the_largest_that_float32_has():
    tokens = torch.tensor([0, 1, 4095, 2**24 - 1])
    found = Tokens(2**24)(tokens.float())
    assert found.dtype == torch.int64
    assert torch.equal(found, tokens)


def test_whatever_comes_is_within_the_vocabulary():
    values = [-1.0, -1e-30, 4096.0, 5000.0, 1e30, float("nan"), float("inf"), -float("inf")]
    found = Tokens(4096)(torch.tensor([values])).squeeze(0)
    assert bool(((found >= 0) & (found < 4096)).all())
    assert found[[0, 2, 3, 5]].tolist() == [4095, 0, 904, 0]


def test_made_up_records_name_many_tokens_and_others_stay_as_they_are():
    features = torch.randn(8, 40, generator=torch.Generator().manual_seed(0))
    spread_out = spread(build_model("transformer", (40,), 2), features)
    assert len(spread_out.unique()) > 200
    assert 0 <= float(spread_out.min()) <= float(spread_out.max()) < 4096
    assert spread(nn.Linear(40, 2), features) is features


@pytest.mark.parametrize("name", ["transformer", "transformer_lora"])
def test_padding_says_nothing(name):
    # Up to rounding: sums are longer by zeros.
    model = initial_model(name, (12,), 3, 0)
    with torch.no_grad():
        for parameter in trained(model):
            parameter.add_(0.1)
    text = torch.tensor([[5.0, 9.0, 17.0]])
    short = nn.functional.pad(text, (0, 1))
    long = nn.functional.pad(text, (0, 9))
    torch.testing.assert_close(model(long), model(short))
    assert not torch.allclose(model(long), model(long.flip(1)))  # words have places
    assert bool(model(torch.zeros(2, 12)).isfinite().all())


def test_only_adapters_and_head_are_trained_and_have_places_in_the_vector():
    model = build_model("transformer_lora", (12,), 3)
    names = Layout.of(model).names
    assert {name.rpartition(".")[0].rpartition(".")[2] for name in names} == {"down", "up", "head"}
    assert Layout.of(model).size == len(read_parameters(model)) == 2 * 2 * 256 + 33 * 3
    whole = dict(build_model("transformer", (12,), 3).named_parameters())
    frozen = {n: p for n, p in model.named_parameters() if not p.requires_grad}
    # So what one has learned fits the other.
    assert {n: p.shape for n, p in frozen.items()} == {
        n: p.shape for n, p in whole.items() if not n.startswith("head")
    }


def test_adapters_change_nothing_before_they_are_trained():
    adapted = initial_model("transformer_lora", (12,), 3, 0)
    whole = initial_model("transformer", (12,), 3, 0)
    whole.load_state_dict({n: v for n, v in adapted.state_dict().items() if "adapter" not in n})
    texts = torch.randint(0, 50, (4, 12), generator=torch.Generator().manual_seed(0)).float()
    torch.testing.assert_close(adapted(texts), whole(texts), rtol=0, atol=0)


def test_frozen_weights_depend_on_nothing_but_their_names():
    torch.manual_seed(7)
    one = initial_model("transformer_lora", (12,), 3, seed=1)
    torch.manual_seed(8)
    other = initial_model("transformer_lora", (12,), 3, seed=2)
    assert Layout.of(one) == Layout.of(other)
    assert not torch.equal(read_parameters(one), read_parameters(other))
    words = hashlib.shake_256(b"lepton frozen weights 1: words.weight").digest(2 * 4096 * 32)
    expected = np.frombuffer(words, "<i2").astype(np.float64) / 2**15 * 3**0.5
    found = one.words.weight.numpy()
    np.testing.assert_allclose(found.ravel(), expected, rtol=1e-6)
    assert abs(found.std() - 1.0) < 0.01
    assert abs(one.blocks[0].key.weight.std().item() * 32**0.5 - 1.0) < 0.05
    # What is digested is the same on every machine, or no two sites could train together.
    assert (
        Layout.of(one).frozen == "11f5b5f005702535fc8a176fd7b8817fff78d4dad5dc775dd423cc54c3e9bf0f"
    )
