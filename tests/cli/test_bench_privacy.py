"""The least step that ours is held against is a private step: it takes the same sum."""

import torch
from torch import nn
from torch.nn import functional

from lepton_cli.bench.least_step import least_step
from lepton_client.training.bookkeeping import ClippedGradients


def _losses(logits, labels):
    return functional.cross_entropy(logits, labels, reduction="none")


def _network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4))


def test_it_moves_by_the_clipped_sum_and_by_as_much_noise_as_it_is_told():
    features, labels = 3 * torch.randn(50, 20), torch.randint(0, 4, (50,))
    model, norm, rate = _network(), 0.7, 0.5
    before = nn.utils.parameters_to_vector(model.parameters()).detach().clone()
    with ClippedGradients(model) as clipped:
        expected = clipped.sum(_losses, features, labels, clipping_norm=norm)
    alone = sum(float(torch.autograd.grad(_losses(model(x[None]), y[None]).sum(),
                list(model.parameters()))[0].norm()) > norm for x, y in zip(features, labels,
                strict=True))  # fmt: skip
    assert 0 < alone < 50  # some are clipped and some are not
    least_step(model, features, labels, rate=rate, clipping_norm=norm, noise=1e-7)()
    moved = nn.utils.parameters_to_vector(model.parameters()).detach() - before
    torch.testing.assert_close(moved.double(), -rate / 50 * expected, atol=1e-7, rtol=1e-4)
    noisy = _network()
    least_step(noisy, features, labels, rate=rate, clipping_norm=norm, noise=300.0)()
    spread = (nn.utils.parameters_to_vector(noisy.parameters()).detach() - before).std()
    assert 2.4 < float(spread) < 3.6
