"""The sum of clipped gradients in one backward pass (book-keeping; Bu et al., ICML 2023).

The backward pass asks only for the gradients of the layers' outputs. With the layers' inputs
they give each record's norm (Goodfellow 2015) and, once its clip factor is known, the sum of
clipped gradients by one product per layer: no second pass, and no tensor of records times
parameters.

What a record contributes depends on nothing but itself and the weights, where `likeness` has
shown it. The norm, the clip factor and the sum are float64.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.utils.hooks import RemovableHandle

from lepton_client.training import alignment, recurrent
from lepton_client.training.layer_calls import RULES, Call, Rule, opaque_call
from lepton_client.training.layer_norms import Form, precision_on
from lepton_client.training.unit_norms import weigh
from lepton_common.arrays import trained
from lepton_common.errors import BuffersNotAllowed

Losses = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

_MOST_ROWS, _MOST_WRITTEN_OUT = 1024, 256


class ClippedGradients:
    """Hooks on a model's layers, from `__enter__` until `__exit__`, whatever happens between.

    Records are the first dimension of every layer's input and output, except in recurrent and
    attention layers that were built with records second. Layers are those with trained
    parameters: linear, convolution, embedding, recurrent and normalisation layers have rules; any
    other, together with its children, is asked for its own vector-Jacobian product record by
    record.
    A layer may be called several times and parameters may be shared between layers.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._parameters = trained(module)
        self._handles: list[RemovableHandle] = []
        self._unrolled: list[nn.Module] = []
        self._aligned: list[nn.Module] = []
        self._calls: list[Call] | None = None
        self._probed = False

    def __enter__(self) -> Self:
        if self._handles or self._unrolled or self._aligned:
            raise ValueError("These hooks are on the model already; leave the first context.")
        try:
            self._attach()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Takes every hook off; more than once does no harm."""
        while self._handles:
            self._handles.pop().remove()
        alignment.restore(self._unrolled)
        alignment.restore(self._aligned)

    def sum(
        self,
        losses: Losses,
        features: torch.Tensor,
        labels: torch.Tensor,
        *,
        clipping_norm: float,
        unit_of_row: torch.Tensor | None = None,
        units: int | None = None,
        mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Returns the sum over units of each one's gradient, scaled to at most a norm.

        A unit whose gradient is not finite, or longer than 1e30 times the norm, contributes
        exactly zero, and so does a masked row.

        Args:
            losses: from the model's outputs and the labels to each row's loss, shape [rows].
            features: shape [rows, ...], on the model's device.
            labels: shape [rows, ...].
            clipping_norm: L2 norm that no unit exceeds, above 0.
            unit_of_row: int64, shape [rows], each in [0, units); None: each row is a unit.
            units: number of units; None: as many as rows.
            mask: bool, shape [rows]; False for rows that only fill the batch up.

        Returns:
            In the order of the trained parameters, shape [d], float64 where the device has it.

        Raises:
            ValueError: an argument or a layer does not keep records apart as described above.
            BuffersNotAllowed: a layer mixes records.
        """
        if not 0.0 < clipping_norm < float("inf"):
            raise ValueError(f"The clipping norm must be above 0 and finite, not {clipping_norm}.")
        rows = len(features)
        for given in (unit_of_row, mask):
            if given is not None and given.shape != (rows,):
                raise ValueError(f"Units and masks have one value per row, {rows} in all.")
        if unit_of_row is not None and rows:
            least, most = unit_of_row.aminmax()
            if units is None or int(least) < 0 or int(most) >= units:
                raise ValueError(f"The units of rows must be in [0, units), with units={units}.")
        total = torch.zeros(
            sum(parameter.numel() for parameter in self._parameters),
            dtype=precision_on(features.device),
            device=features.device,
        )
        if rows == 0 or (mask is not None and not bool(mask.any())):
            return total
        if not self._probed:
            self._probe(features)
        forms = self._backward(losses, features, labels, mask)
        if not forms:
            return total
        with torch.no_grad():
            forms, weights = weigh(forms, clipping_norm, unit_of_row, units or rows, mask)
            self._add(total, forms, weights)
        return total

    def each_row(
        self, losses: Losses, features: torch.Tensor, labels: torch.Tensor
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """Yields all that `sum` uses of each row, by name, records first; for `likeness`."""
        for number, form in enumerate(self._backward(losses, features, labels, None)):
            for name, values in form.kept():
                yield f"{number} {name}", values

    def _attach(self) -> None:
        self._aligned = alignment.align(self._module)
        opened: set[nn.Module] = set()
        for name, layer in self._module.named_modules():
            if isinstance(layer, _NormBase):
                self._handles.append(layer.register_forward_pre_hook(_refuse_mixing))
            if layer in opened or not any(True for _ in layer.parameters(recurse=False)):
                continue
            # What is inside a layer with parameters of its own is part of that layer.
            opened.update(layer.modules())
            if recurrent.can_unroll(layer):
                vars(layer)["forward"] = recurrent.unrolled(layer, name, self._record)
                self._unrolled.append(layer)
                continue
            if not trained(layer):
                continue
            hook = self._hook(name, _rule_of(layer))
            self._handles.append(layer.register_forward_hook(hook, prepend=True, with_kwargs=True))

    def _hook(self, name: str, rule: Rule | None) -> Callable[..., None]:
        def keep(
            layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: torch.Tensor
        ) -> None:
            if self._calls is None:
                return
            if rule is None:
                self._calls.append(opaque_call(layer, name, args, kwargs, output))
            elif output.requires_grad:
                self._calls.append(rule(layer, name, (*args, *kwargs.values())[0], output))

        return keep

    def _record(self, call: Call) -> None:
        if self._calls is not None:
            self._calls.append(call)

    def _forward(self, features: torch.Tensor, calls: list[Call]) -> torch.Tensor:
        """Returns the model's outputs, and appends the calls of its layers, in order."""
        self._calls = calls
        try:
            with torch.enable_grad():
                outputs: torch.Tensor = self._module(features.detach())
        finally:
            # The replay of a layer, and evaluation inside the context, are not kept.
            self._calls = None
        for call in calls:
            if call.rows != len(features):
                raise ValueError(
                    f"Layer {call.name!r} does not have records as the first dimension of what "
                    "it reads and returns, so their gradients cannot be told apart."
                )
        return outputs

    def _probe(self, features: torch.Tensor) -> None:
        """Runs two and three records, so that no dimension passes for that of the records.

        In a batch as long as a sequence, records first and records second look alike.
        """
        with torch.random.fork_rng(devices=[]):
            for rows in (2, 3):
                with _released() as calls:
                    self._forward(features[:1].expand(rows, *features.shape[1:]), calls)
        self._probed = True

    def _backward(
        self,
        losses: Losses,
        features: torch.Tensor,
        labels: torch.Tensor,
        mask: torch.Tensor | None,
    ) -> list[Form]:
        with _released() as calls, torch.enable_grad():
            each = losses(self._forward(features, calls), labels)
            if each.shape != (len(features),):
                raise ValueError(f"Losses have shape [rows], not {tuple(each.shape)}.")
            total = each.sum() if mask is None else torch.where(mask, each, 0.0).sum()
            reached = _reach(total, calls, {id(p) for p in self._parameters})
            for call in calls:
                call.check_inputs()
            # Autograd is asked for the first layers alone: the others lie on the way, and what
            # it returns it would hold until the end.
            ends = [
                edge
                for call in calls
                for edge, end in zip(call.edges, call.ends, strict=True)
                if end and edge.node in reached
            ]
            if ends:
                torch.autograd.grad(total, ends, allow_unused=True)
            return [form for call in calls for form in call.finish(reached)]

    def _add(self, total: torch.Tensor, forms: list[Form], weights: torch.Tensor) -> None:
        places: dict[int, torch.Tensor] = {}
        begun: set[int] = set()
        offset = 0
        for parameter in self._parameters:
            places[id(parameter)] = total[offset : offset + parameter.numel()]
            offset += parameter.numel()
        for form in forms:
            parts = form.weighted(weights.to(form.dtype))
            for parameter, part in zip(form.parameters, parts, strict=True):
                # Copied, unless several uses of one parameter add up, which is rare.
                if id(parameter) in begun:
                    part = part + places[id(parameter)].view_as(part)
                begun.add(id(parameter))
                places[id(parameter)].copy_(part.reshape(-1))


def most_rows(module: nn.Module) -> int:
    """Returns the number of records beyond which a batch takes memory and is not faster.

    Fewer where records' gradients are written out, so that they can be held between the norms and
    the sum.
    """
    own = (layer for layer in module.modules() if any(True for _ in layer.parameters(False)))
    whole = all(isinstance(layer, (nn.Linear, nn.Embedding)) for layer in own)
    return _MOST_ROWS if whole else _MOST_WRITTEN_OUT


@contextmanager
def _released() -> Iterator[list[Call]]:
    """Gives a list for calls, and has them let go of the graph in the end."""
    calls: list[Call] = []
    try:
        yield calls
    finally:
        for call in calls:
            call.release()


def _rule_of(layer: nn.Module) -> Rule | None:
    """Returns the rule of a layer; None where it computes its weight from other parameters."""
    own = {name for name, _ in layer.named_parameters()}
    return RULES.get(type(layer)) if own <= {"weight", "bias"} else None


def _refuse_mixing(layer: nn.Module, _: object) -> None:
    """Runs before each call of a batch or instance normalisation, whose mode may change.

    Raises:
        BuffersNotAllowed: it normalises over records, or keeps statistics of them.
    """
    tracks = bool(getattr(layer, "track_running_stats", False))
    mixes = layer.training or not tracks
    if tracks if isinstance(layer, _InstanceNorm) else mixes:
        raise BuffersNotAllowed(
            f"{type(layer).__name__} mixes records or keeps statistics of them, which no clipping "
            "bounds; use GroupNorm."
        )


def _reach(total: torch.Tensor, calls: list[Call], parameters: set[int]) -> set[object]:
    """Returns the nodes on which the loss depends, those within layers left out.

    Raises:
        ValueError: one is a parameter, past the layer that holds it: by a penalty on the
            weights, for instance, or as one layer's weight in another layer's function.
    """
    call_of = {edge.node: call for call in calls for edge in call.edges}
    reached: set[object] = set()
    ahead = [total.grad_fn]
    while ahead:
        node = ahead.pop()
        if node is None or node in reached:
            continue
        reached.add(node)
        if node in call_of:
            # The walk goes around a layer, from its outputs to its inputs.
            ahead += [tensor.grad_fn for tensor in call_of[node].inputs]
            continue
        if id(getattr(node, "variable", None)) in parameters:
            raise ValueError(
                "The loss depends on a parameter outside the layer that holds it, where records' "
                "gradients cannot be told apart; use the parameter in its own layer only."
            )
        ahead += [below for below, _ in node.next_functions]
    return reached
