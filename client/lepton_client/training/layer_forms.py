"""Forms of layers whose gradients are held, looked up, or asked of the layer itself."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from lepton_client.training.layer_norms import COPY_BYTES, Form, pieces, precision_on, square_sums

Signals = tuple[torch.Tensor, ...]
# Per-record gradients of a layer without a rule, this many records at a time.
_OPAQUE_ROWS = 32


@dataclass(frozen=True)
class Held(Form):
    """Gradients so small that they are simply held, shape [rows, numel] for each parameter."""

    parameters: tuple[nn.Parameter, ...]
    parts: tuple[torch.Tensor, ...]

    @property
    def rows(self) -> int:
        """The number of records."""
        return len(self.parts[0])

    def select(self, index: slice | torch.Tensor) -> Self:
        """Returns the form of some of the records."""
        return replace(self, parts=tuple(part[index] for part in self.parts))

    def instantiate(self) -> list[torch.Tensor]:
        """Returns the records' gradients, shape [rows, numel] each."""
        return list(self.parts)

    def weighted(self, weights: torch.Tensor) -> list[torch.Tensor]:
        """Returns the weighted sum of the gradients."""
        precision = precision_on(self.device)
        totals = [part.new_zeros(part.shape[1], dtype=precision) for part in self.parts]
        weights = weights.to(precision)
        for total, part in zip(totals, self.parts, strict=True):
            for piece in pieces(self.rows, precision.itemsize * part.shape[1], COPY_BYTES):
                total += weights[piece] @ part[piece].to(precision)
        return totals

    def kept(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yields the gradients and their norms."""
        for number, part in enumerate(self.parts):
            yield f"part {number}", part
            yield f"norm {number}", square_sums(part)

    def squared_norms(self) -> torch.Tensor:
        """Returns the records' squared norms, shape [rows]."""
        return torch.stack([square_sums(part) for part in self.parts]).sum(0)


@dataclass(frozen=True)
class Lookup(Form):
    """An embedding: a token's row receives the sum of the signals at its positions.

    Attributes:
        parameters: the table alone.
        tokens: int64, shape [rows, positions].
        signal: shape [rows, positions, width]; zero at the padding token.
    """

    parameters: tuple[nn.Parameter, ...]
    tokens: torch.Tensor
    signal: torch.Tensor

    @property
    def rows(self) -> int:
        """The number of records."""
        return len(self.tokens)

    def select(self, index: slice | torch.Tensor) -> Self:
        """Returns the form of some of the records."""
        return replace(self, tokens=self.tokens[index], signal=self.signal[index])

    def instantiate(self) -> list[torch.Tensor]:
        """Returns the records' gradients, shape [rows, numel] each."""
        words, width = self.parameters[0].shape
        flat = self.signal.new_zeros(self.rows * words, width)
        flat.index_add_(0, self._places(words), self.signal.flatten(0, 1))
        return [flat.view(self.rows, -1)]

    def weighted(self, weights: torch.Tensor) -> list[torch.Tensor]:
        """Returns the weighted sum of the gradients."""
        precision = precision_on(self.device)
        table = self.signal.new_zeros(self.parameters[0].shape, dtype=precision)
        row, word, sums = self._sums()
        return [table.index_add_(0, word, (sums * weights[row].unsqueeze(1)).to(precision))]

    def kept(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yields tokens, signal and norm; a table written out would show no more."""
        yield from (("tokens", self.tokens), ("signal", self.signal))
        yield "norm", self.squared_norms()

    def squared_norms(self) -> torch.Tensor:
        """Returns the records' squared norms, shape [rows]."""
        row, _, sums = self._sums()
        squares = square_sums(sums)
        total = torch.zeros(self.rows, dtype=squares.dtype, device=squares.device)
        return total.index_add_(0, row, squares)

    def _sums(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Returns row, token and sum of signals of each token that a record names, once."""
        words = self.parameters[0].shape[0]
        places, position = torch.unique(self._places(words), return_inverse=True)
        sums = self.signal.new_zeros(len(places), self.signal.shape[2])
        sums.index_add_(0, position, self.signal.flatten(0, 1))
        return places // words, places % words, sums

    def _places(self, words: int) -> torch.Tensor:
        row = torch.arange(self.rows, device=self.tokens.device).unsqueeze(1)
        return (row * words + self.tokens).flatten()


@dataclass(frozen=True)
class Opaque(Form):
    """A layer without a rule: its own vector-Jacobian product, record by record by ``vmap``.

    Attributes:
        parameters: all that the layer and its children train.
        names: theirs, in the layer.
        layer: the layer.
        arguments: all of the call's, positional ones first.
        record_dims: for each argument the dimension of its records; None where all share it.
        keywords: names of the last of `arguments`.
        signals: gradients of the outputs that have any.
        outputs: which of the layer's outputs those are.
        output_dims: for each the dimension of its records.
    """

    parameters: tuple[nn.Parameter, ...]
    names: tuple[str, ...]
    layer: nn.Module
    arguments: tuple[Any, ...]
    record_dims: tuple[int | None, ...]
    keywords: tuple[str, ...]
    signals: Signals
    outputs: tuple[int, ...]
    output_dims: tuple[int, ...]

    @property
    def rows(self) -> int:
        """The number of records."""
        return self.signals[0].shape[self.output_dims[0]]

    def select(self, index: slice | torch.Tensor) -> Self:
        """Returns the form of some of the records."""
        arguments = tuple(
            value if dim is None else _take(value, dim, index)
            for value, dim in zip(self.arguments, self.record_dims, strict=True)
        )
        signals = tuple(
            _take(signal, dim, index)
            for signal, dim in zip(self.signals, self.output_dims, strict=True)
        )
        return replace(self, arguments=arguments, signals=signals)

    def instantiate(self) -> list[torch.Tensor]:
        """Returns the records' gradients, shape [rows, numel] each."""

        def product(
            values: list[torch.Tensor], signals: Signals, *arguments: object
        ) -> torch.Tensor:
            whole = [
                value.unsqueeze(dim)
                if isinstance(value, torch.Tensor) and dim is not None
                else value
                for value, dim in zip(arguments, self.record_dims, strict=True)
            ]
            expanded = tuple(
                signal.unsqueeze(dim) for signal, dim in zip(signals, self.output_dims, strict=True)
            )
            return self._product(values, expanded, tuple(whole))

        dims = (None, self.output_dims, *self.record_dims)
        each = torch.func.vmap(
            torch.func.grad(product), dims, randomness="error", chunk_size=_OPAQUE_ROWS
        )
        values = [parameter.detach() for parameter in self.parameters]
        # The fused kernels of attention have no batching rule.
        try:
            with sdpa_kernel(SDPBackend.MATH):
                gradients: list[torch.Tensor] = each(values, self.signals, *self.arguments)
        except RuntimeError as error:
            raise ValueError(
                f"{type(self.layer).__name__} has no rule, and cannot be run record by record "
                "either; build it from other layers."
            ) from error
        return [gradient.flatten(1) for gradient in gradients]

    def weighted(self, weights: torch.Tensor) -> list[torch.Tensor]:
        """Returns the weighted sum of the gradients."""
        return self.weighted_one_by_one(weights)

    def _product(
        self, values: list[torch.Tensor], signals: Signals, arguments: tuple[Any, ...]
    ) -> torch.Tensor:
        """Returns the sum of outputs times signals as a function of the parameters."""
        count = len(arguments) - len(self.keywords)
        outputs = torch.func.functional_call(
            self.layer,
            dict(zip(self.names, values, strict=True)),
            arguments[:count],
            dict(zip(self.keywords, arguments[count:], strict=True)),
        )
        flat = tensors_in(outputs)
        return torch.stack(
            [(flat[at] * signal).sum() for at, signal in zip(self.outputs, signals, strict=True)]
        ).sum()


def _take(value: torch.Tensor, dim: int, index: slice | torch.Tensor) -> torch.Tensor:
    return value[index] if dim == 0 else value[:, index]


def tensors_in(value: object) -> list[torch.Tensor]:
    """Returns the tensors of a layer's output: a tensor, or tuples of tensors."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, (tuple, list)):
        return [tensor for part in value for tensor in tensors_in(part)]
    return []
