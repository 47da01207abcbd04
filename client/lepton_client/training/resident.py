"""One model kept ready per thread: a request swaps its weights instead of building a model."""

import threading
from dataclasses import dataclass

import torch
from opacus.grad_sample import GradSampleModule
from torch import nn

from lepton_common.arrays import Layout, Vector, flatten_into_one
from lepton_common.models.catalog import build_model


@dataclass
class ResidentModel:
    """A model and the one tensor that its parameters are views of.

    Attributes:
        module: the model, on `device`.
        flat: its parameters, float32, shape [d]; writing it writes the model.
        layout: names and shapes in `flat`.
        device: where it lives.
        per_sample: Opacus' hooks around `module`, once they were asked for.
    """

    module: nn.Module
    flat: torch.Tensor
    layout: Layout
    device: torch.device
    per_sample: GradSampleModule | None = None

    def load(self, vector: Vector) -> torch.Tensor:
        """Writes a received model and returns it as a tensor on the device, shape [d]."""
        # A copy, because the received bytes are read-only and PyTorch has no such tensors.
        received = torch.from_numpy(vector.copy()).to(self.device)
        with torch.no_grad():
            self.flat.copy_(received)
        self.module.train()
        return received


_LOCAL = threading.local()


def resident_model(
    name: str, input_shape: tuple[int, ...], outputs: int, device: torch.device
) -> ResidentModel:
    """Returns this thread's model of that kind; its weights are whatever was left in it."""
    models: dict[tuple[object, ...], ResidentModel] = _LOCAL.__dict__.setdefault("models", {})
    key = (name, input_shape, outputs, device)
    if key not in models:
        module = build_model(name, input_shape, outputs).to(device)
        models[key] = ResidentModel(module, flatten_into_one(module), Layout.of(module), device)
    return models[key]


def new_optimizer(
    module: nn.Module, *, name: str, learning_rate: float, momentum: float, weight_decay: float
) -> torch.optim.Optimizer:
    """Returns a fresh optimiser over a model's parameters."""
    if name == "adam":
        return torch.optim.Adam(module.parameters(), lr=learning_rate, weight_decay=weight_decay)
    return torch.optim.SGD(
        module.parameters(), lr=learning_rate, momentum=momentum, weight_decay=weight_decay
    )
