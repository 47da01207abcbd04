"""One site's optimisers take PyTorch's steps, bit for bit."""

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from lepton_client.training.optimizers import new_optimizer


def _theirs(module, recipe):
    weights = [p for p in module.parameters() if p.requires_grad]
    if recipe.optimizer == "adam":
        kind, more = torch.optim.Adam, {}
    else:
        kind, more = torch.optim.SGD, {"momentum": recipe.momentum}
    return kind(weights, lr=recipe.learning_rate, weight_decay=recipe.weight_decay, **more)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("decay", [0.0, 0.01])
@pytest.mark.parametrize(("optimizer", "momentum"), [("sgd", 0.0), ("sgd", 0.9), ("adam", 0.0)])
def test_the_steps_are_pytorchs_own(optimizer, momentum, decay, dtype):
    recipe = SimpleNamespace(optimizer=optimizer, momentum=momentum, weight_decay=decay,
                             learning_rate=0.1)  # fmt: skip
    generator = torch.Generator().manual_seed(1)
    ours = nn.Sequential(nn.Linear(7, 5), nn.Linear(5, 3), nn.Linear(3, 2))
    ours[0].bias.requires_grad_(False)
    theirs = copy.deepcopy(ours).to(dtype)
    mine, reference = new_optimizer(ours, recipe), _theirs(theirs, recipe)
    ours.to(dtype)  # where rounding would tell too much, a model becomes finer after it was made
    for step in range(5):
        for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            if one.requires_grad:
                one.grad = torch.randn(one.shape, generator=generator, dtype=dtype)
                other.grad = one.grad.clone()
        if step == 2:  # a layer that a batch did not reach
            ours[1].weight.grad = theirs[1].weight.grad = None
        mine.step()
        reference.step()
        for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            assert torch.equal(one, other)
    mine.clear()
    assert all(parameter.grad is None for parameter in ours.parameters())
