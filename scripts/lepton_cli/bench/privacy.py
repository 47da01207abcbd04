"""Private training steps: ours against plain SGD and against Opacus, by hooks and by ghost norms.

A step is forward, the sum of clipped gradients, noise and the update. Ours draws its noise from
a cryptographic keystream, Opacus from PyTorch's generator; the rows named `_sum` leave noise and
update out; `_least` is a step of the perceptron that does nothing but what the guarantee needs.
Batches go through the model in the parts that a site takes them in. All modes take
turns in one process, and the best of several counts. Memory is the growth of the resident set in
a process of its own, less the growth of plain SGD.
"""

import multiprocessing
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from lepton_cli.bench import Row
from lepton_cli.bench.least_step import least_step
from lepton_client.training.bookkeeping import ClippedGradients, most_rows
from lepton_common.models.catalog import build_model
from lepton_common.pages import keep_freed_memory
from lepton_common.privacy.noise import SecretRandom

Step = Callable[[], object]
_RATE, _NORM, _NOISE = 0.01, 1.0, 1.0
_BATCHES = (64, 256, 1024)
_PEERS = ("plain", "hooks", "ghost")
# Slow modes of large models: no more turns than this once so many seconds have passed.
_BUDGET_S, _QUICK_BUDGET_S, _TURNS, _LEAST_TURNS = 20.0, 4.0, 40, 3


def rows(quick: bool, with_peers: bool) -> Iterator[Row]:
    """Yields our seconds per step with the ratio to each reference, and extra memory."""
    del with_peers
    warnings.filterwarnings("ignore", "Full backward hook is firing", UserWarning)
    batches = (256,) if quick else _BATCHES
    for name in _SHAPES:
        for batch in batches:
            took = _took(name, batch, _QUICK_BUDGET_S if quick else _BUDGET_S)
            for peer in _PEERS:
                yield Row(f"{name}_{batch}_vs_{peer}", took["ours"], "s", took[peer] / took["ours"])
            ratio = took["plain"] / took["sum"]
            yield Row(f"{name}_{batch}_sum_vs_plain", took["sum"], "s", ratio)
            for peer in ("plain", "ghost") if "least" in took else ():
                ratio = took[peer] / took["least"]
                yield Row(f"{name}_{batch}_least_vs_{peer}", took["least"], "s", ratio)
    for name in ("mlp", "cnn") if quick else tuple(_SHAPES):
        growth = {mode: _memory(name, batches[-1], mode) for mode in ("plain", "hooks", "ours")}
        for mode in ("ours", "hooks"):
            extra = max(0.0, growth[mode] - growth["plain"])
            yield Row(f"{name}_{batches[-1]}_extra_memory_{mode}", extra, "MB")


class _Sequence(nn.Module):
    """An LSTM over the rows of an image, and a linear layer over its last output."""

    def __init__(self, recurrent: nn.Module) -> None:
        super().__init__()
        self.recurrent, self.head = recurrent, nn.Linear(64, 10)

    def forward(self, sequences: torch.Tensor) -> torch.Tensor:
        outputs, _ = self.recurrent(sequences)
        logits: torch.Tensor = self.head(outputs[:, -1])
        return logits


_SHAPES = {"mlp": (784,), "cnn": (1, 28, 28), "resnet": (3, 32, 32), "lstm": (28, 28)}


def _model(name: str, opacus: bool) -> nn.Module:
    torch.manual_seed(0)
    if name == "mlp":
        return nn.Sequential(
            nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10)
        )
    if name == "cnn":
        return nn.Sequential(
            nn.Conv2d(1, 16, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(1568, 58),
            nn.ReLU(),
            nn.Linear(58, 10),
        )
    if name == "resnet":
        return build_model("resnet", _SHAPES["resnet"], 10)
    if opacus:
        from opacus.layers import DPLSTM

        return _Sequence(DPLSTM(28, 64, batch_first=True))
    return _Sequence(nn.LSTM(28, 64, batch_first=True))


def _losses(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return functional.cross_entropy(logits, labels, reduction="none")


def _step(name: str, batch: int, mode: str) -> Step:
    """Returns a function that takes one step of that mode on a fixed batch."""
    model = _model(name, mode in ("hooks", "ghost"))
    features, labels = torch.randn(batch, *_SHAPES[name]), torch.randint(0, 10, (batch,))
    make = {"plain": _plain, "hooks": _hooks, "ghost": _ghost, "ours": _ours, "sum": _sum,
            "least": _least}[mode]  # fmt: skip
    return make(model, features, labels)


def _plain(model: nn.Module, features: torch.Tensor, labels: torch.Tensor) -> Step:
    optimizer = torch.optim.SGD(model.parameters(), lr=_RATE)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(functional.cross_entropy(model(features), labels))
        optimizer.step()

    return step


def _hooks(model: nn.Module, features: torch.Tensor, labels: torch.Tensor) -> Step:
    from opacus.grad_sample import GradSampleModule
    from opacus.optimizers import DPOptimizer

    hooked = GradSampleModule(model)
    inner = torch.optim.SGD(hooked.parameters(), lr=_RATE)
    optimizer = DPOptimizer(
        inner, noise_multiplier=_NOISE, max_grad_norm=_NORM, expected_batch_size=len(labels)
    )

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(functional.cross_entropy(hooked(features), labels))
        optimizer.step()

    return step


def _ghost(model: nn.Module, features: torch.Tensor, labels: torch.Tensor) -> Step:
    from opacus.grad_sample import GradSampleModuleFastGradientClipping
    from opacus.optimizers import DPOptimizerFastGradientClipping
    from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping

    hooked = GradSampleModuleFastGradientClipping(
        model, max_grad_norm=_NORM, use_ghost_clipping=True
    )
    optimizer = DPOptimizerFastGradientClipping(
        torch.optim.SGD(hooked.parameters(), lr=_RATE),
        noise_multiplier=_NOISE,
        max_grad_norm=_NORM,
        expected_batch_size=len(labels),
    )
    criterion = DPLossFastGradientClipping(hooked, optimizer, nn.CrossEntropyLoss())

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        criterion(hooked(features), labels).backward()
        optimizer.step()

    return step


def _sum(
    model: nn.Module, features: torch.Tensor, labels: torch.Tensor
) -> Callable[[], torch.Tensor]:
    clipped, rows = ClippedGradients(model).__enter__(), most_rows(model)
    parts = list(zip(torch.split(features, rows), torch.split(labels, rows), strict=True))

    def step() -> torch.Tensor:
        # As `clipped_sum` adds up the parts of a batch.
        total = clipped.sum(_losses, *parts[0], clipping_norm=_NORM)
        for part in parts[1:]:
            total.add_(clipped.sum(_losses, *part, clipping_norm=_NORM))
        return total

    return step


def _ours(model: nn.Module, features: torch.Tensor, labels: torch.Tensor) -> Step:
    clipped_sum, secret = _sum(model, features, labels), SecretRandom()
    parameters = list(model.parameters())
    sizes = [parameter.numel() for parameter in parameters]

    def step() -> None:
        gradient = clipped_sum()
        gradient = torch.from_numpy(secret.add_gaussian(gradient.numpy(), _NOISE * _NORM))
        gradient *= -_RATE / len(labels)
        with torch.no_grad():
            for parameter, piece in zip(parameters, torch.split(gradient, sizes), strict=True):
                parameter.add_(piece.view(parameter.shape))

    return step


def _least(model: nn.Module, features: torch.Tensor, labels: torch.Tensor) -> Step:
    assert isinstance(model, nn.Sequential), "of the perceptron alone"
    return least_step(
        model, features, labels, rate=_RATE, clipping_norm=_NORM, noise=_NOISE * _NORM
    )


def _took(name: str, batch: int, budget_s: float) -> dict[str, float]:
    """Returns the least wall time of a step of each mode, in seconds; modes take turns."""
    keep_freed_memory()  # as wherever a site trains
    modes = (*_PEERS, "ours", "sum", *(["least"] if name == "mlp" else []))
    steps = {mode: _step(name, batch, mode) for mode in modes}
    best = dict.fromkeys(steps, float("inf"))
    began = time.perf_counter()
    for turn in range(_TURNS):
        if turn >= _LEAST_TURNS and time.perf_counter() - began > budget_s:
            break
        for mode, step in steps.items():
            # As in training, a step comes after one of its kind; its memory and caches are its own.
            step()
            started = time.perf_counter()
            step()
            best[mode] = min(best[mode], time.perf_counter() - started)
    return best


def _memory(name: str, batch: int, mode: str) -> float:
    """Returns the growth of the peak resident set by steps of one mode, in MB."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_growth, name, batch, mode).result()


def _growth(name: str, batch: int, mode: str) -> float:
    warnings.filterwarnings("ignore", "Full backward hook is firing", UserWarning)
    # Libraries are loaded and warm before the first reading.
    _step(name, 2, mode)()
    step = _step(name, batch, mode)
    before = _peak_kilobytes()
    for _ in range(3):
        step()
    return (_peak_kilobytes() - before) / 1024


def _peak_kilobytes() -> int:
    """Returns the process's peak resident set; `getrusage` would inherit that of its parent."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0])
