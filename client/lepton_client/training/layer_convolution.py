"""Per-record gradients of a convolution, by one convolution in which records are groups."""

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import nn

from lepton_client.training.layer_forms import Held
from lepton_client.training.layer_norms import Form

# A layer may hold its records' gradients up to this size, and so many times that of its images.
_HELD_BYTES = 1 << 26
_HELD_IMAGES = 8
# For so few channels of input, kernels of the backward pass are several times slower.
_FEW_CHANNELS = 3


@dataclass(frozen=True)
class Window:
    """The geometry of a convolution, one number for each dimension of the image."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int


@dataclass(frozen=True)
class Convolution(Form):
    """A convolution of any number of dimensions.

    All records' gradients come from one convolution in which every record is a group of its
    own, so no image is ever unfolded. It is the backward pass of a convolution with so many
    groups or, for images of few channels, what that is by definition: signals slide over images,
    where stride and dilation change places.

    Attributes:
        parameters: weight [out, in / groups, *kernel] and bias [out], where trained.
        inputs: shape [rows, in, *size], already padded where the layer pads in its own way.
        signal: gradient of the output, shape [rows, out, *size].
        shape: the weight's.
        window: stride, padding, dilation and groups.
        has_weight: whether the weight is trained.
        has_bias: whether the bias is trained.
    """

    parameters: tuple[nn.Parameter, ...]
    inputs: torch.Tensor
    signal: torch.Tensor
    shape: tuple[int, ...]
    window: Window
    has_weight: bool
    has_bias: bool

    @property
    def rows(self) -> int:
        """The number of records."""
        return len(self.signal)

    def select(self, index: slice | torch.Tensor) -> Self:
        """Returns the form of some of the records."""
        return replace(self, inputs=self.inputs[index], signal=self.signal[index])

    def held_if_small(self) -> Form:
        """Returns the records' gradients themselves where they are not too large.

        They then serve the norms and the sum, where they would be computed twice, and the images
        can be let go.
        """
        size = self.rows * self.size
        held = size * self.signal.element_size() <= _HELD_BYTES
        if held and size <= _HELD_IMAGES * (self.inputs.numel() + self.signal.numel()):
            parts = tuple(self.signal.new_empty(self.rows, p.numel()) for p in self.parameters)
            for piece, each in self.in_pieces():
                for part, values in zip(parts, each, strict=True):
                    part[piece] = values
            return Held(self.parameters, parts)
        return self

    def instantiate(self) -> list[torch.Tensor]:
        """Returns the records' gradients, shape [rows, numel] each."""
        out = []
        if self.has_weight:
            few = self.shape[1] <= _FEW_CHANNELS
            out.append(self._slid() if few else self._backward())
        if self.has_bias:
            out.append(self.signal.flatten(2).sum(2))
        return out

    def weighted(self, weights: torch.Tensor) -> list[torch.Tensor]:
        """Returns the weighted sum of the gradients."""
        return self.weighted_one_by_one(weights)

    def _slid(self) -> torch.Tensor:
        """Returns the weight's gradients by a convolution of images with signals."""
        window, groups, size = self.window, self.rows * self.window.groups, self.shape[2:]
        images = self.inputs.reshape(groups, self.shape[1], *self.inputs.shape[2:])
        signal = self.signal.reshape(-1, 1, *self.signal.shape[2:])
        gradient = torch.convolution(
            images.transpose(0, 1),
            signal,
            None,
            window.dilation,
            window.padding,
            window.stride,
            False,
            [0] * len(size),
            groups,
        )
        # Where the stride leaves a remainder, signals slide further than the kernel is long.
        for dim, length in enumerate(size, 2):
            gradient = gradient.narrow(dim, 0, length)
        return gradient.transpose(0, 1).reshape(self.rows, -1)

    def _backward(self) -> torch.Tensor:
        """Returns the weight's gradients by the backward pass of a convolution."""
        window = self.window
        inputs = self.inputs.reshape(1, -1, *self.inputs.shape[2:])
        # Only the shape of the weight is read; expanding one number avoids writing it.
        weight = inputs.new_zeros(1).expand(self.rows * self.shape[0], *self.shape[1:])
        gradient: torch.Tensor = torch.ops.aten.convolution_backward(
            self.signal.reshape(1, -1, *self.signal.shape[2:]),
            inputs,
            weight,
            None,
            window.stride,
            window.padding,
            window.dilation,
            False,
            [0] * len(window.stride),
            self.rows * window.groups,
            [False, True, False],
        )[1]
        return gradient.reshape(self.rows, -1)
