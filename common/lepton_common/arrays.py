"""A model as one flat float32 vector: layout, flattening, and the array it travels in."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from flwr.app import Array
from numpy.typing import NDArray

from lepton_common.errors import BuffersNotAllowed, MalformedMessage

if TYPE_CHECKING:
    # PyTorch takes 150 MB and two seconds, which who only passes models on does without.
    import torch
    from torch import nn

Vector = NDArray[np.float32]
_STYPE = "lepton.vector.f32le"


@dataclass(frozen=True)
class Layout:
    """Names and shapes of a model's trained parameters, in order.

    Parameters that are not trained (``requires_grad=False``) do not travel: each side has its own,
    and the digest of the layout says whether they are the same.

    Attributes:
        names: parameter names as in ``named_parameters``.
        shapes: their shapes.
        frozen: hexadecimal SHA-256 of what is not trained; empty where all is.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    frozen: str = ""

    @classmethod
    def of(cls, module: "nn.Module") -> "Layout":
        """Returns the layout of a module that consists of float32 parameters only.

        Raises:
            BuffersNotAllowed: the module holds buffers (running statistics, say), which would
                carry private records past the clipping and the noise.
        """
        if buffers := [name for name, _ in module.named_buffers()]:
            raise BuffersNotAllowed(
                f"The model holds buffers ({', '.join(buffers[:3])}), which would leave the site "
                "unclipped; use a normalisation without running statistics, such as GroupNorm."
            )
        named = list(module.named_parameters())
        parameters = [(name, values) for name, values in named if values.requires_grad]
        frozen = {name: values for name, values in named if not values.requires_grad}
        return cls(
            tuple(name for name, _ in parameters),
            tuple(tuple(parameter.shape) for _, parameter in parameters),
            _digest_of_values(frozen) if frozen else "",
        )

    @property
    def sizes(self) -> list[int]:
        """Number of elements of each parameter."""
        return [int(np.prod(shape, dtype=np.int64)) for shape in self.shapes]

    @property
    def size(self) -> int:
        """Number of elements of the whole vector."""
        return sum(self.sizes)

    @property
    def digest(self) -> str:
        """Hexadecimal SHA-256 of names and shapes, and of what is not trained."""
        said = [self.names, self.shapes, *([self.frozen] if self.frozen else [])]
        return hashlib.sha256(json.dumps(said).encode()).hexdigest()

    def split(self, vector: Vector) -> dict[str, Vector]:
        """Returns the parameters by name, as views into ``vector``."""
        pieces = np.split(vector, np.cumsum(self.sizes)[:-1])
        return {
            name: piece.reshape(shape)
            for name, shape, piece in zip(self.names, self.shapes, pieces, strict=True)
        }

    def join(self, arrays: Sequence[NDArray[np.generic]]) -> Vector:
        """Returns one vector of the parameters, given in layout order."""
        return np.concatenate([np.asarray(array, np.float32).ravel() for array in arrays])


def trained(module: "nn.Module") -> "list[nn.Parameter]":
    """Returns the parameters that training changes, in order; the others stay where they are."""
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def image_order(module: "nn.Module") -> "nn.Module":
    """Puts convolution weights into channels-last order, which trains up to twice as fast."""
    import torch

    for parameter in module.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return module


def read_parameters(module: "nn.Module") -> "torch.Tensor":
    """Returns a copy of all trained parameters as one tensor on their device, shape [d]."""
    import torch

    return torch.cat([parameter.detach().reshape(-1) for parameter in trained(module)])


def write_parameters(module: "nn.Module", vector: "torch.Tensor") -> None:
    """Copies ``vector``, shape [d], into the trained parameters; their memory format is kept."""
    import torch

    start = 0
    with torch.no_grad():
        for parameter in trained(module):
            stop = start + parameter.numel()
            parameter.copy_(vector[start:stop].view(parameter.shape))
            start = stop


def lend_parameters(module: "nn.Module", layout: Layout, vector: "torch.Tensor") -> None:
    """Makes the trained parameters views of ``vector``, shape [d]; images' are copied."""
    import torch

    pieces = torch.split(vector, layout.sizes)
    for parameter, piece, shape in zip(trained(module), pieces, layout.shapes, strict=True):
        parameter.data = piece.view(shape)
    image_order(module)


def take_back_parameters(module: "nn.Module") -> None:
    """Leaves the trained parameters of a module without memory or values, until others come."""
    for parameter in trained(module):
        parameter.data = parameter.data.new_empty(0)


def pack(vector: Vector) -> Array:
    """Returns a vector as a Flower array of raw little-endian float32."""
    data = np.ascontiguousarray(vector, dtype="<f4").tobytes()
    return Array(dtype="float32", shape=(len(vector),), stype=_STYPE, data=data)


def unpack(array: Array, size: int) -> Vector:
    """Returns the read-only vector in ``array``.

    Raises:
        MalformedMessage: not a packed vector of ``size`` elements.
    """
    expected = ("float32", (size,), _STYPE, 4 * size)
    came = (array.dtype, tuple(array.shape), array.stype, len(array.data))
    if came != expected:
        raise MalformedMessage(
            f"Expected a packed float32 vector of {size} elements; got {array.stype} of shape "
            f"{tuple(array.shape)}. Are both sides on the same version and model?"
        )
    return np.frombuffer(array.data, dtype="<f4")


def _digest_of_values(parameters: "Mapping[str, nn.Parameter]") -> str:
    digest = hashlib.sha256()
    for name, values in parameters.items():
        digest.update(json.dumps([name, list(values.shape)]).encode())
        plain = values.detach().float().cpu().contiguous().numpy()
        digest.update(np.ascontiguousarray(plain, "<f4").tobytes())
    return digest.hexdigest()


def digest_of(data: bytes | memoryview) -> str:
    """Returns the hexadecimal SHA-256 of ``data``."""
    return hashlib.sha256(data).hexdigest()
