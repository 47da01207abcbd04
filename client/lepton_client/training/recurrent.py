"""Recurrent layers as steps of affine maps, whose gradients can be kept apart.

PyTorch's own kernels return the sum over records only. The steps compute the same function
(Hochreiter and Schmidhuber 1997; Cho et al. 2014, with PyTorch's placing of the reset gate), up
to rounding.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from lepton_client.training import alignment
from lepton_client.training.layer_calls import Call, affine_form
from lepton_client.training.layer_forms import Signals
from lepton_client.training.layer_norms import Form
from lepton_client.training.lstm_steps import lstm_steps

Record = Callable[[Call], None]
State = tuple[torch.Tensor, ...]
_GATES = {nn.RNN: 1, nn.LSTM: 4, nn.GRU: 3}


def can_unroll(layer: nn.Module) -> bool:
    """Says whether this is one of PyTorch's recurrent layers, with all their options."""
    return type(layer) in _GATES and not getattr(layer, "proj_size", 0)


def unrolled(layer: Any, name: str, record: Record) -> Callable[..., Any]:  # noqa: ANN401
    """Returns a forward pass for the layer that records the calls of its affine maps.

    The function takes what the layer takes, except packed sequences.
    """

    def forward(inputs: Any, hx: Any = None) -> Any:  # noqa: ANN401
        if not isinstance(inputs, torch.Tensor) or inputs.dim() != 3:
            raise ValueError(f"Recurrent layer {name!r} takes one padded tensor [rows, time, in].")
        steps = inputs.transpose(0, 1) if layer.batch_first else inputs
        directions = 2 if layer.bidirectional else 1
        states = _initial(layer, steps, hx, directions)
        finals: list[State] = []
        for level in range(layer.num_layers):
            outputs = []
            for direction in range(directions):
                at = level * directions + direction
                suffix = f"_l{level}" + ("_reverse" if direction else "")
                kinds = _KINDS if layer.bias else _KINDS[:2]
                weights = [getattr(layer, kind + suffix) for kind in kinds]
                state = tuple(part[at] for part in states)
                one = _Direction(layer, name, record, weights)
                output, final = one.run(steps.flip(0) if direction else steps, state)
                outputs.append(output.flip(0) if direction else output)
                finals.append(final)
            steps = torch.cat(outputs, 2) if directions == 2 else outputs[0]
            if layer.dropout and layer.training and level < layer.num_layers - 1:
                steps = functional.dropout(steps, layer.dropout)
        last = tuple(torch.stack(parts) for parts in zip(*finals, strict=True))
        output = steps.transpose(0, 1) if layer.batch_first else steps
        return output, last if len(last) == 2 else last[0]

    return forward


_KINDS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


def _initial(layer: Any, steps: torch.Tensor, hx: Any, directions: int) -> State:  # noqa: ANN401
    if hx is not None:
        return hx if isinstance(hx, tuple) else (hx,)
    shape = (layer.num_layers * directions, steps.shape[1], layer.hidden_size)
    zero = steps.new_zeros(shape)
    return (zero, zero) if isinstance(layer, nn.LSTM) else (zero,)


class _Direction:
    """One level of one direction of a recurrent layer.

    Gradients of the weights come from the signals at the gates, so the weights enter the steps
    as constants.
    """

    def __init__(
        self,
        layer: nn.RNNBase,
        name: str,
        record: Record,
        weights: list[nn.Parameter],
    ) -> None:
        self._layer, self._name, self._record = layer, name, record
        self._weights = weights

    def run(self, steps: torch.Tensor, state: State) -> tuple[torch.Tensor, State]:
        """Returns outputs [time, rows, hidden] and the last state, and records the call."""
        weight_ih, weight_hh, *biases = (weight.detach() for weight in self._weights)
        bias_ih, bias_hh = biases or (None, None)
        from_inputs = alignment.linear(steps, weight_ih, bias_ih)
        separate = isinstance(self._layer, nn.GRU)
        if not separate and bias_hh is not None:
            from_inputs = from_inputs + bias_hh
        recorded = torch.is_grad_enabled()
        if recorded and not from_inputs.requires_grad:
            # The first layer reads data: nothing else would make autograd reach its gates.
            from_inputs.requires_grad_()
        from_hidden: list[torch.Tensor] = []
        last = state
        if isinstance(self._layer, nn.LSTM):
            outputs, last = lstm_steps(from_inputs, (state[0], state[1]), weight_hh)
        else:
            each = []
            for inputs in from_inputs.unbind(0):
                gates = alignment.linear(last[0], weight_hh, bias_hh if separate else None)
                if recorded and separate:
                    from_hidden.append(gates if gates.requires_grad else gates.requires_grad_())
                last = (self._step(inputs, gates, last[0]),)
                each.append(last[0])
            outputs = torch.stack(each)
        if recorded:
            before = torch.cat([state[0].unsqueeze(0), outputs[:-1]]).detach()
            self._keep(steps, state, from_inputs, before, from_hidden)
        return outputs, last

    def _step(
        self, inputs: torch.Tensor, gates: torch.Tensor, output: torch.Tensor
    ) -> torch.Tensor:
        """Returns the next output of a plain recurrence or a gated unit."""
        if isinstance(self._layer, nn.RNN):
            total = inputs + gates
            return total.tanh() if self._layer.nonlinearity == "tanh" else total.relu()
        reset_in, update_in, new_in = inputs.chunk(3, 1)
        reset, update, new = gates.chunk(3, 1)
        keep = alignment.sigmoid(update_in + update)
        fresh = (new_in + alignment.sigmoid(reset_in + reset) * new).tanh()
        return fresh + keep * (output - fresh)

    def _keep(
        self,
        steps: torch.Tensor,
        state: State,
        from_inputs: torch.Tensor,
        before: torch.Tensor,
        from_hidden: list[torch.Tensor],
    ) -> None:
        weight_ih, weight_hh, *biases = self._weights
        bias_ih, bias_hh = biases or (None, None)
        read, separate = steps.detach(), bool(from_hidden)

        def forms(signals: Signals) -> list[Form]:
            at_inputs = signals[0].transpose(0, 1)
            at_hidden = torch.stack(signals[1:], 1) if separate else at_inputs
            return [
                *affine_form(read.transpose(0, 1), at_inputs, weight_ih, bias_ih),
                *affine_form(before.transpose(0, 1), at_hidden, weight_hh, bias_hh),
            ]

        self._record(
            Call(self._name, steps.shape[1], (steps, *state), (from_inputs, *from_hidden), forms)
        )
