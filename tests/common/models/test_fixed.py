"""Linear models on fixed features: words that a text holds, and what sums up a series."""

import pytest
import torch
from torch.nn import functional

from lepton_common.models.catalog import build_model
from lepton_common.models.fixed import Movements, WordsHeld
from lepton_common.models.tokens import VOCABULARY


def test_a_text_is_the_words_that_it_holds_whatever_their_order_and_number():
    texts = torch.tensor([[7.0, 9.0, 7.0, 0.0, 0.0], [9.0, 0.0, 7.0, 9.0, 9.0]])
    held = WordsHeld()(texts)
    assert held.shape == (2, VOCABULARY)
    assert torch.equal(held[0], held[1])
    assert held[0].nonzero().flatten().tolist() == [7, 9]
    torch.testing.assert_close(held[0].norm(), torch.tensor(1.0))


def test_an_empty_text_holds_nothing_and_unknown_tokens_wrap_around():
    held = WordsHeld()(torch.tensor([[0.0, 0.0], [float("nan"), VOCABULARY + 5.0]]))
    assert not held[0].any()
    assert held[1].nonzero().flatten().tolist() == [5]


def test_four_numbers_sum_up_each_channel():
    series = torch.tensor([[[0.0, 3.0], [1.0, 3.0], [0.0, 3.0], [1.0, 3.0]]])
    found = Movements()(series).view(4, 2)  # mean, deviation, step, largest; by channel
    expected = torch.tensor([[0.5, 3.0], [0.5, 1e-6], [1.0, 0.0], [1.0, 3.0]])
    torch.testing.assert_close(found, expected)


def test_a_series_of_one_step_or_of_rest_has_finite_gradients():
    for steps in (1, 5):
        series = torch.zeros(2, steps, 3, requires_grad=True)
        model = build_model("movements", (steps, 3), 4)
        outputs = model(series)
        outputs.sum().backward()
        assert bool(outputs.isfinite().all())
        assert bool(series.grad.isfinite().all())


@pytest.mark.parametrize("name", ["word_bag", "movements"])
def test_few_weights_learn_what_the_features_tell(name):
    # A word among others, or how much a series moves: neither has a place of its own.
    generator = torch.Generator().manual_seed(5)
    labels = torch.randint(0, 2, (256,), generator=generator)
    if name == "word_bag":
        records = torch.randint(10, 40, (256, 8), generator=generator).float()
        records[torch.arange(256), torch.randint(0, 8, (256,), generator=generator)] = 5.0 + labels
    else:
        records = torch.randn(256, 20, 3, generator=generator) * (1 + labels.view(-1, 1, 1))
    torch.manual_seed(0)
    model = build_model(name, tuple(records.shape[1:]), 2)
    optimizer = torch.optim.Adam(model.parameters(), 0.1)
    for _ in range(40):
        optimizer.zero_grad()
        functional.cross_entropy(model(records[:128]), labels[:128]).backward()
        optimizer.step()
    right = (model(records[128:]).argmax(1) == labels[128:]).float().mean()
    assert float(right) > 0.9
