"""The least that a private step of a perceptron costs: products, norms, sum, noise, and no more.

Written out by hand for one network, with no autograd and no hooks, but with what the guarantee
rests on: norms and sums in float64, and noise from a cryptographic keystream. It is a bound for
ours, and for any engine that keeps the same promise with the same library.
"""

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional

from lepton_common.privacy.noise import SecretRandom


def least_step(
    model: nn.Sequential,
    features: torch.Tensor,
    labels: torch.Tensor,
    *,
    rate: float,
    clipping_norm: float,
    noise: float,
) -> Callable[[], None]:
    """Returns a function that takes one private step of cross-entropy on a fixed batch.

    Args:
        model: linear layers with a rectifier between each two.
        features: float32, shape [n, inputs].
        labels: int64, shape [n].
        rate: step size.
        clipping_norm: most that a record's gradient is long.
        noise: standard deviation on each value of the sum.
    """
    layers = [layer for layer in model if isinstance(layer, nn.Linear)]
    sizes = [p.numel() for layer in layers for p in (layer.weight, layer.bias)]
    wanted = functional.one_hot(labels, layers[-1].out_features).float()
    total, secret = torch.empty(sum(sizes), dtype=torch.float64), SecretRandom()

    @torch.no_grad()
    def step() -> None:
        inputs = [features]
        for layer in layers[:-1]:
            inputs.append(functional.linear(inputs[-1], layer.weight, layer.bias).relu_())
        logits = functional.linear(inputs[-1], layers[-1].weight, layers[-1].bias)
        signals = [torch.softmax(logits, 1).sub_(wanted)]
        for layer, read in zip(layers[:0:-1], inputs[:0:-1], strict=True):
            signals.insert(0, (signals[0] @ layer.weight).mul_(read > 0))
        exact = [values.double() for values in inputs]
        squared = torch.zeros(len(features), dtype=torch.float64)
        for read, signal in zip(exact, signals, strict=True):
            lengths = torch.linalg.vector_norm(signal, dim=1, dtype=torch.float64).square_()
            squared += lengths * torch.linalg.vector_norm(read, dim=1).square_().add_(1.0)
        factors = (clipping_norm / squared.sqrt_()).clamp_(max=1.0)[:, None]
        places = iter(torch.split(total, sizes))
        for read, signal in zip(exact, signals, strict=True):
            scaled = signal.double().mul_(factors)
            weight = next(places).view(scaled.shape[1], read.shape[1])
            torch.mm(scaled.t(), read, out=weight)
            torch.sum(scaled, 0, out=next(places))
        noisy = torch.from_numpy(secret.add_gaussian(total.numpy(), noise)).mul_(
            -rate / len(labels)
        )
        for parameter, piece in zip(model.parameters(), torch.split(noisy, sizes), strict=True):
            parameter.add_(piece.view(parameter.shape))

    return step
