"""Per-record gradients of one layer, held as its input and its output's gradient.

A form answers three questions without a tensor of records times parameters: how long is each
record's gradient (Goodfellow 2015), what is their weighted sum (Bu et al., ICML 2023), and, for a
few records at a time, what are they.

What is summed is what was measured, to the last bit. A record's gradient may be a sum over
positions whose terms cancel, as a server can arrange by its choice of weights: then its norm is
small, and yet its terms, added up together with other records', would drown those by rounding.
So where there are positions, a record's gradient is written out alone, some records at a time and
always as many, before it is measured or added to others.

Records are added up in float64. What a record adds depends on that record alone, and only the sum
rounds: see `Form.weighted`.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import nn

# Pieces of work of about two cores' caches.
_PIECE_BYTES = 1 << 21
# Copies in float64 are of this size at most.
COPY_BYTES = 1 << 23
# The convolution library reorders what it reads: more rows at once cost memory, fewer time.
_MOST_ROWS = 32
_PAIRED_ROWS = 64
# A float64 product costs about this many float32 ones.
_DOUBLE_COST = 2.5


def precision_on(device: torch.device) -> torch.dtype:
    """Returns the dtype of norms and sums: float64, but float32 on Apple's GPUs."""
    return torch.float32 if device.type == "mps" else torch.float64


def square_sums(values: torch.Tensor) -> torch.Tensor:
    """Returns each row's sum of squares, computed in float64 where there is, shape [rows]."""
    flat = values.reshape(len(values), -1)
    precision = precision_on(values.device)
    if flat.dtype == precision:
        exact: torch.Tensor = torch.linalg.vector_norm(flat, dim=1)
        return exact.square()
    norms = torch.empty(len(flat), dtype=precision, device=values.device)
    # In pieces: a float64 copy of everything, made anew each time, takes longer than its sum.
    for piece in pieces(len(flat), precision.itemsize * flat.shape[1], COPY_BYTES):
        torch.linalg.vector_norm(flat[piece], dim=1, dtype=precision, out=norms[piece])
    return norms.square_()


def pieces(rows: int, bytes_per_row: int, size: int = _PIECE_BYTES) -> Iterator[slice]:
    """Yields slices that cover ``rows`` rows, each of about ``size`` bytes: a core's cache."""
    step = max(1, size // max(bytes_per_row, 1))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def _whole_units(sizes: list[int]) -> Iterator[int]:
    """Yields where to cut sorted rows, between units, into parts of about `_PAIRED_ROWS`."""
    start = stop = 0
    for size in sizes:
        stop += size
        if stop - start >= _PAIRED_ROWS:
            yield stop
            start = stop
    if stop > start:
        yield stop


class Form(ABC):
    """Gradients of a layer's parameters, one for each record.

    Attributes:
        parameters: those of the layer, in the order of every list returned.
    """

    parameters: tuple[nn.Parameter, ...]

    @property
    @abstractmethod
    def rows(self) -> int:
        """The number of records."""

    @abstractmethod
    def select(self, index: slice | torch.Tensor) -> Self:
        """Returns the form of some of the records; ``index`` is a slice or int64 positions."""

    @abstractmethod
    def instantiate(self) -> list[torch.Tensor]:
        """Returns the gradients themselves, for each parameter of shape [rows, numel]."""

    @abstractmethod
    def weighted(self, weights: torch.Tensor) -> list[torch.Tensor]:
        """Returns the sum of ``weights[row]`` times the row's gradient, for each parameter.

        ``weights`` has shape [rows] and the parameters' dtype. The sum is float64 where there is
        (`precision_on`): in float32, the order of records and the place where one batch ends and
        the next begins would decide how much of the short ones is lost beside the long ones, which
        came to 6.7 clipping norms over a million records.
        """

    def weighted_one_by_one(self, weights: torch.Tensor) -> list[torch.Tensor]:
        """Returns what `weighted` does, from each record's gradient as it was measured."""
        precision = precision_on(self.device)
        totals = [p.new_zeros(p.numel(), dtype=precision) for p in self.parameters]
        weights = weights.to(precision)
        for piece, parts in self.in_pieces():
            for total, part in zip(totals, parts, strict=True):
                total += weights[piece] @ part.to(precision)
        return totals

    def squared_norms(self) -> torch.Tensor:
        """Returns each record's squared L2 norm over the layer, float64, shape [rows]."""
        return torch.cat(
            [
                torch.stack([square_sums(part) for part in parts]).sum(0)
                for _, parts in self.in_pieces()
            ]
        )

    def kept(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yields all that the form uses of each row, by name, some rows after others."""
        for _, parts in self.in_pieces():
            for number, part in enumerate(parts):
                yield f"part {number}", part
                yield f"norm {number}", square_sums(part)

    def in_pieces(self) -> Iterator[tuple[slice, list[torch.Tensor]]]:
        """Yields some records after others, and what `instantiate` returns for them.

        It always instantiates equally many, so that each record takes the same kernels whatever
        the others are.
        """
        height = max(1, min(_MOST_ROWS, _PIECE_BYTES // (self.size * self.dtype.itemsize)))
        for start in range(0, self.rows, height):
            stop = min(start + height, self.rows)
            if stop - start == height:
                yield slice(start, stop), self.select(slice(start, stop)).instantiate()
                continue
            index = torch.arange(start, start + height, device=self.device).clamp_(max=stop - 1)
            parts = self.select(index).instantiate()
            yield slice(start, stop), [part[: stop - start] for part in parts]

    def squared_norms_of_units(self, unit_of_row: torch.Tensor, units: int) -> torch.Tensor | None:
        """Returns the squared norms of units' sums, shape [units]; None: write them out."""
        del unit_of_row, units
        return None

    @property
    def dtype(self) -> torch.dtype:
        """That of the parameters and of the weights in `weighted`."""
        return self.parameters[0].dtype

    @property
    def device(self) -> torch.device:
        """Where the parameters live."""
        return self.parameters[0].device

    @property
    def size(self) -> int:
        """The number of values in one record's gradient."""
        return sum(parameter.numel() for parameter in self.parameters)


@dataclass(frozen=True)
class Product(Form):
    """An affine map: the gradient is the sum over positions of ``signal`` times ``inputs``.

    Attributes:
        parameters: weight [out, in] and bias [out], less those that are not trained.
        inputs: shape [rows, in], in float64 perhaps, or [rows, positions, in].
        signal: gradient of the output, shape [rows, out] or [rows, positions, out].
        has_weight: whether the weight is trained.
        has_bias: whether the bias is trained.
    """

    parameters: tuple[nn.Parameter, ...]
    inputs: torch.Tensor
    signal: torch.Tensor
    has_weight: bool = True
    has_bias: bool = True

    @property
    def rows(self) -> int:
        """The number of records."""
        return len(self.signal)

    def select(self, index: slice | torch.Tensor) -> Self:
        """Returns the form of some of the records."""
        return replace(self, inputs=self.inputs[index], signal=self.signal[index])

    def instantiate(self) -> list[torch.Tensor]:
        """Returns the records' gradients, shape [rows, numel] each."""
        inputs, signal = self.inputs.to(self.signal.dtype), self.signal
        if signal.dim() == 2:
            inputs, signal = inputs.unsqueeze(1), signal.unsqueeze(1)
        out = []
        if self.has_weight:
            out.append(torch.bmm(signal.transpose(1, 2), inputs).flatten(1))
        if self.has_bias:
            out.append(signal.sum(1))
        return out

    def weighted(self, weights: torch.Tensor) -> list[torch.Tensor]:
        """Returns the weighted sum of the gradients."""
        if self.signal.dim() > 2:
            return self.weighted_one_by_one(weights)
        precision, width = precision_on(self.device), self.inputs.shape[1]
        # Exact so; in float32, numbers as small as 1e-45 could be rounded to twice what they are.
        scaled = self.signal.to(precision) * weights.to(precision).unsqueeze(1)
        out: list[torch.Tensor] = []
        if self.has_weight:
            for piece in pieces(self.rows, precision.itemsize * width, COPY_BYTES):
                signal, inputs = scaled[piece].t(), self.inputs[piece].to(precision)
                if out:
                    out[0].addmm_(signal, inputs)
                else:
                    out.append(signal @ inputs)
            out = out or [scaled.new_zeros(scaled.shape[1], width)]
        return out + ([scaled.sum(0)] if self.has_bias else [])

    def kept(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yields inputs, signal and norm, and what is written out of several positions."""
        yield from (("inputs", self.inputs), ("signal", self.signal))
        if self.signal.dim() > 2:
            yield from super().kept()
        else:
            yield "norm", self.squared_norms()

    def squared_norms(self) -> torch.Tensor:
        """Returns the records' squared norms, shape [rows]."""
        if self.signal.dim() > 2:
            return super().squared_norms()
        # One position: the norm of an outer product is the product of the norms.
        factor = square_sums(self.inputs) if self.has_weight else 0.0
        return square_sums(self.signal) * (factor + float(self.has_bias))

    def squared_norms_of_units(self, unit_of_row: torch.Tensor, units: int) -> torch.Tensor | None:
        """Returns the units' squared norms from pairs of their rows, in float64."""
        sizes = torch.bincount(unit_of_row, minlength=units)
        width, outputs = self.inputs.shape[-1], self.signal.shape[-1]
        most = width * outputs / (_DOUBLE_COST * (width + outputs))
        if self.signal.dim() > 2 or int(sizes.max()) > most:
            return None
        order = torch.argsort(unit_of_row, stable=True)
        precision = precision_on(self.signal.device)
        total = torch.zeros(units, dtype=precision, device=self.signal.device)
        start = 0
        for stop in _whole_units(sizes.tolist()):
            rows = order[start:stop]
            inputs, signal = self.inputs[rows].to(precision), self.signal[rows].to(precision)
            unit, start = unit_of_row[rows], stop
            gram = inputs @ inputs.t() if self.has_weight else torch.zeros_like(signal[:, :1])
            gram = (gram + float(self.has_bias)) * (signal @ signal.t())
            # Chosen, not multiplied by zero: a pair with another unit may not be finite.
            total.index_add_(0, unit, torch.where(unit == unit.unsqueeze(1), gram, 0.0).sum(1))
        return total.clamp_(min=0.0)
