"""One model kept ready per thread: a request swaps its weights instead of building a model."""

import threading
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from lepton_common.arrays import Layout, Vector, image_order, trained, write_parameters
from lepton_common.errors import UpdateInvalid
from lepton_common.models.catalog import build_model
from lepton_common.pages import give_back_freed_memory, keep_freed_memory


@dataclass
class ResidentModel:
    """A model that requests take turns to train.

    Attributes:
        module: the model, on `device`.
        layout: names and shapes of its trained parameters.
        device: where it lives.
        conformance: of its private gradients, once they were compared.
        proven: under which engine, with how many threads and at which heights of a batch every row
            is computed alike, in the dtype that its weights have now.
    """

    module: nn.Module
    layout: Layout
    device: torch.device
    conformance: Any = None
    proven: set[tuple[str, int, int]] = field(default_factory=set)

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights: float32, or float64 where rounding would tell too much."""
        return next(self.module.parameters()).dtype

    def load(self, vector: Vector) -> torch.Tensor:
        """Writes a received model and returns it as a tensor on the device, shape [d].

        The tensor may share the vector's memory.
        """
        # PyTorch has no tensors that are read-only, as what came in a message is.
        own = vector if vector.flags.writeable else vector.copy()
        received = torch.from_numpy(own).to(self.device, self.dtype)
        write_parameters(self.module, received)
        self.module.train()
        return received

    def update_since(self, start: torch.Tensor) -> Vector:
        """Returns what training has changed since ``start``, float32, shape [d].

        Raises:
            UpdateInvalid: training diverged to values that are not finite.
        """
        update = torch.empty_like(start)
        pieces = zip(trained(self.module), torch.split(start, self.layout.sizes),
                     torch.split(update, self.layout.sizes), strict=True)  # fmt: skip
        with torch.no_grad():
            for parameter, before, piece in pieces:
                shape = parameter.shape
                torch.sub(parameter, before.view(shape), out=piece.view(shape))
        update = update.float().cpu()
        # Of a large model there is no room for a mask.
        if not all(torch.isfinite(bound) for bound in update.aminmax()):
            raise UpdateInvalid("Training diverged; lower train.learning_rate.")
        result: Vector = update.numpy()
        return result


_LOCAL = threading.local()
_MOST_MODELS = 2  # of one kind, in both orders of memory


def resident_model(
    name: str,
    input_shape: tuple[int, ...],
    outputs: int,
    device: torch.device,
    *,
    channels_last: bool,
) -> ResidentModel:
    """Returns this thread's model of that kind; its weights are whatever was left in it.

    ``channels_last`` suits plain training; Opacus works in the ordinary memory format.
    """
    keep_freed_memory()
    # With 10 bits of mantissa, clipped gradients would be longer than their bound by 1e-3.
    torch.backends.cudnn.allow_tf32 = False
    models: dict[tuple[object, ...], ResidentModel] = _LOCAL.__dict__.setdefault("models", {})
    key = (name, input_shape, outputs, device, channels_last)
    if key not in models:
        if len(models) == _MOST_MODELS:
            del models[next(iter(models))]
        give_back_freed_memory()
        with torch.random.fork_rng(devices=[]):  # what it begins with is nobody's to notice
            module = build_model(name, input_shape, outputs)
        module = module.to(device)
        if channels_last:
            _keep_image_order(image_order(module))
        models[key] = ResidentModel(module, Layout.of(module), device)
    return models[key]


def _keep_image_order(module: nn.Module) -> None:
    """Gives gradients back in channels-last order where images were made one row of numbers.

    They would come in the other order, and each layer below would have to turn them around.
    """

    def turned(gradient: torch.Tensor) -> torch.Tensor:
        return gradient.contiguous(memory_format=torch.channels_last)

    def watch(layer: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if inputs[0].requires_grad and inputs[0].dim() == 4:
            inputs[0].register_hook(turned)  # type: ignore[no-untyped-call]

    for layer in module.modules():
        if isinstance(layer, nn.Flatten):
            layer.register_forward_pre_hook(watch)
