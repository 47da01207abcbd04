"""The steps of an LSTM with their derivative written out: fewer and larger operations.

Recorded by autograd, every step would leave a dozen small operations to repeat backwards.
"""

from typing import Any

import torch

Pair = tuple[torch.Tensor, torch.Tensor]


def lstm_steps(
    from_inputs: torch.Tensor, state: Pair, weight: torch.Tensor
) -> tuple[torch.Tensor, Pair]:
    """Runs an LSTM over time (Hochreiter and Schmidhuber 1997), gates in PyTorch's order.

    Args:
        from_inputs: what the inputs and biases add to the gates, shape [time, rows, 4 * hidden].
        state: output and cell before the first step, shape [rows, hidden] each.
        weight: from outputs to gates, a constant, shape [4 * hidden, hidden].

    Returns:
        Outputs, shape [time, rows, hidden], and the last output and cell.
    """
    outputs, hidden, cell = _Steps.apply(from_inputs, *state, weight)  # type: ignore[no-untyped-call]
    return outputs, (hidden, cell)


class _Steps(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        from_inputs: torch.Tensor,
        hidden: torch.Tensor,
        cell: torch.Tensor,
        weight: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        time, rows, width = len(from_inputs), from_inputs.shape[1], hidden.shape[1]
        gates = torch.empty_like(from_inputs)
        outputs, tanhs = (from_inputs.new_empty(time, rows, width) for _ in range(2))
        cells = from_inputs.new_empty(time + 1, rows, width)
        cells[0] = cell
        turned = weight.t()
        for step in range(time):
            gate = gates[step]
            torch.addmm(from_inputs[step], hidden, turned, out=gate)
            # Sigmoids by the hyperbolic tangent: see `alignment`.
            for sigmoids in (gate[:, : 2 * width], gate[:, 3 * width :]):
                sigmoids.mul_(0.5).tanh_().mul_(0.5).add_(0.5)
            gate[:, 2 * width : 3 * width].tanh_()
            enter, forget, new, leave = gate.chunk(4, 1)
            torch.mul(forget, cells[step], out=cells[step + 1]).addcmul_(enter, new)
            torch.tanh(cells[step + 1], out=tanhs[step])
            hidden = torch.mul(leave, tanhs[step], out=outputs[step])
        ctx.save_for_backward(gates, tanhs, cells, weight)
        return outputs, outputs[-1].clone(), cells[-1].clone()

    @staticmethod
    def backward(
        ctx: Any,  # noqa: ANN401
        at_outputs: torch.Tensor,
        at_hidden: torch.Tensor,
        at_cell: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, None]:
        gates, tanhs, cells, weight = ctx.saved_tensors
        time, rows, width = tanhs.shape
        enter, forget, new, leave = gates.chunk(4, 2)
        # How each gate and the cell answer to the cell, and to the output: for all steps at once.
        slopes = torch.empty_like(gates)
        torch.mul(enter * (1.0 - enter), new, out=slopes[..., :width])
        torch.mul(forget * (1.0 - forget), cells[:-1], out=slopes[..., width : 2 * width])
        torch.mul(1.0 - new * new, enter, out=slopes[..., 2 * width : 3 * width])
        torch.mul(leave * (1.0 - leave), tanhs, out=slopes[..., 3 * width :])
        to_cell = leave * (1.0 - tanhs * tanhs)
        for step in reversed(range(time)):
            slope = slopes[step]
            at_hidden = at_hidden + at_outputs[step]
            at_cell = torch.addcmul(at_cell, at_hidden, to_cell[step])
            slope[:, : 3 * width].view(rows, 3, width).mul_(at_cell.unsqueeze(1))
            slope[:, 3 * width :].mul_(at_hidden)
            at_hidden = slope @ weight
            at_cell = at_cell * forget[step]
        return slopes, at_hidden, at_cell, None
