"""What is kept of a layer's call in the forward pass, by a rule for each kind of layer."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.nn import functional

from lepton_client.training.layer_convolution import Convolution, Window
from lepton_client.training.layer_forms import Held, Lookup, Opaque, Signals, tensors_in
from lepton_client.training.layer_norms import COPY_BYTES, Form, Product, pieces, precision_on


@dataclass
class Call:
    """One call of one layer.

    Its forms are made in the middle of the backward pass, as soon as its outputs' gradients are
    there, so that a gradient which no form holds is freed as in plain training.

    Attributes:
        name: the layer's, for messages.
        rows: how many records the layer saw.
        inputs: tensors that the layer read, for the walk through the graph.
        outputs: tensors whose gradients are needed; let go once the hooks are on them.
        make: from those gradients to the parameters' forms.
        ends: whether autograd may end at each output: nothing before it is needed.
        edges: the outputs' places in the graph, whatever overwrites the outputs later.
        forms: empty until the gradients are there.
    """

    name: str
    rows: int
    inputs: tuple[torch.Tensor, ...]
    outputs: tuple[torch.Tensor, ...]
    make: Callable[[Signals], list[Form]]
    ends: tuple[bool, ...] = ()
    edges: tuple[GradientEdge, ...] = ()
    forms: list[Form] = field(default_factory=list)
    _signals: dict[int, torch.Tensor] = field(default_factory=dict)
    _arrived: set[int] = field(default_factory=set)
    _versions: tuple[int, ...] = ()
    _zeros: tuple[torch.Tensor, ...] = ()

    def __post_init__(self) -> None:
        first = not any(tensor.requires_grad for tensor in self.inputs)
        self.ends = self.ends or tuple(first or output.is_leaf for output in self.outputs)
        self.edges = tuple(get_gradient_edge(output) for output in self.outputs)
        self._versions = tuple(tensor._version for tensor in self.inputs)
        # Zeros that take no memory, for an output that does not reach the loss.
        self._zeros = tuple(out.new_zeros(()).expand(out.shape) for out in self.outputs)
        for place, output in enumerate(self.outputs):
            output.register_hook(partial(self._arrive, place))  # type: ignore[no-untyped-call]
        self.outputs = ()

    def check_inputs(self) -> None:
        """Refuses a layer whose input was overwritten after the layer had read it.

        Raises:
            ValueError: it was, and the layer's gradient can no longer be computed.
        """
        if self._versions != tuple(tensor._version for tensor in self.inputs):
            raise ValueError(
                f"The input of layer {self.name!r} is changed in place after the layer has read "
                "it; use an operation that returns a new tensor."
            )

    def finish(self, reached: set[object]) -> list[Form]:
        """Returns the forms; none unless an output is in ``reached``, on which the loss depends.

        Raises:
            ValueError: the loss depends on the layer, but no gradient came.
        """
        missing = set(range(len(self.edges))) - self._arrived
        if any(self.edges[place].node in reached for place in missing):
            raise ValueError(f"The loss depends on layer {self.name!r}, yet has no gradient there.")
        if self._signals:
            self._make()
        return self.forms

    def release(self) -> None:
        """Lets go of the graph, which holds this call by its hooks and would never be freed."""
        self.edges, self.inputs, self.make, self.forms = (), (), _nothing, []
        self._signals.clear()

    def _arrive(self, place: int, signal: torch.Tensor) -> None:
        self._signals[place] = signal
        self._arrived.add(place)
        if len(self._signals) == len(self._zeros):
            self._make()

    def _make(self) -> None:
        signals = [self._signals.get(place, zero) for place, zero in enumerate(self._zeros)]
        self.forms = self.make(tuple(signals))
        self._signals.clear()
        self.inputs = ()


def _nothing(_: Signals) -> list[Form]:
    return []


Rule = Callable[[Any, str, torch.Tensor, torch.Tensor], Call]


def _trained(*parameters: torch.Tensor | None) -> tuple[nn.Parameter, ...]:
    return tuple(p for p in parameters if isinstance(p, nn.Parameter) and p.requires_grad)


def affine_form(
    inputs: torch.Tensor, signal: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> list[Form]:
    """Returns the form of ``inputs @ weight.T + bias`` with any number of dimensions between."""
    kept = _trained(weight, bias)
    if not kept:
        return []
    if inputs.dim() > 3:
        inputs, signal = inputs.flatten(1, -2), signal.flatten(1, -2)
    precision = precision_on(inputs.device)
    if inputs.dim() == 2 and precision.itemsize * inputs.numel() <= COPY_BYTES:
        # Norm and sum both read them so.
        inputs = inputs.to(precision)
    return [Product(kept, inputs, signal, weight.requires_grad, len(_trained(bias)) == 1)]


def _linear(layer: nn.Linear, name: str, inputs: torch.Tensor, output: torch.Tensor) -> Call:
    def forms(signals: Signals) -> list[Form]:
        return affine_form(read, signals[0], layer.weight, layer.bias)

    read = inputs.detach()
    return Call(name, len(inputs), (inputs,), (output,), forms)


def _convolution(
    layer: nn.Conv1d | nn.Conv2d | nn.Conv3d,
    name: str,
    inputs: torch.Tensor,
    output: torch.Tensor,
) -> Call:
    def forms(signals: Signals) -> list[Form]:
        padded, padding = read, layer.padding
        if isinstance(padding, str) or layer.padding_mode != "zeros":
            mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
            padded = functional.pad(read, layer._reversed_padding_repeated_twice, mode)
            padding = (0,) * len(layer.stride)
        window = Window(layer.stride, padding, layer.dilation, layer.groups)
        kept, shape = _trained(layer.weight, layer.bias), tuple(layer.weight.shape)
        flags = layer.weight.requires_grad, len(_trained(layer.bias)) == 1
        # In channels-last order a record's image is no group of channels; both are needed plain.
        images, signal = padded.contiguous(), signals[0].contiguous()
        return [Convolution(kept, images, signal, shape, window, *flags).held_if_small()]

    # An image without its dimension of records would pass for a batch of its channels.
    rows = len(inputs) if inputs.dim() == len(layer.stride) + 2 else -1
    read = inputs.detach()
    return Call(name, rows, (inputs,), (output,), forms)


def _embedding(layer: nn.Embedding, name: str, tokens: torch.Tensor, output: torch.Tensor) -> Call:
    if layer.max_norm is not None or layer.scale_grad_by_freq:
        raise ValueError(
            f"Embedding {name!r} uses max_norm or scale_grad_by_freq, by which records act on "
            "each other; train it without."
        )

    def forms(signals: Signals) -> list[Form]:
        flat = tokens.reshape(len(tokens), -1)
        signal = signals[0].reshape(*flat.shape, -1)
        if layer.padding_idx is not None:
            signal = signal.masked_fill((flat == layer.padding_idx).unsqueeze(2), 0.0)
        return [Lookup(_trained(layer.weight), flat, signal)]

    return Call(name, len(tokens), (tokens,), (output,), forms)


def _scaled(
    layer: nn.Module,
    normalise: Callable[[torch.Tensor], torch.Tensor],
    name: str,
    inputs: torch.Tensor,
    output: torch.Tensor,
    channels: int,
) -> Call:
    """The rule of normalisations: ``weight * normalised + bias`` over trailing dimensions.

    ``channels`` is 1 where the parameters belong to the dimension after the records', and
    otherwise minus the number of trailing dimensions that they span.
    """

    def forms(signals: Signals) -> list[Form]:
        signal = signals[0]
        over = tuple(range(2, signal.dim()) if channels == 1 else range(1, signal.dim() + channels))
        parameters, parts = [], []
        for parameter, scales in ((layer.weight, True), (layer.bias, False)):
            if not isinstance(parameter, nn.Parameter) or not parameter.requires_grad:
                continue
            each = []
            # In pieces: what is normalised again stays in the cache until it is summed.
            for piece in pieces(len(signal), 4 * signal[0].numel()):
                values = normalise(read[piece]).mul_(signal[piece]) if scales else signal[piece]
                each.append((values.sum(over) if over else values).flatten(1))
            parameters.append(parameter)
            parts.append(torch.cat(each))
        return [Held(tuple(parameters), tuple(parts))]

    read = inputs.detach()
    return Call(name, len(inputs), (inputs,), (output,), forms)


def _group_norm(layer: nn.GroupNorm, name: str, inputs: torch.Tensor, output: torch.Tensor) -> Call:
    def normalise(values: torch.Tensor) -> torch.Tensor:
        return functional.group_norm(values, layer.num_groups, eps=layer.eps)

    return _scaled(layer, normalise, name, inputs, output, 1)


def _instance_norm(
    layer: nn.InstanceNorm1d | nn.InstanceNorm2d | nn.InstanceNorm3d,
    name: str,
    inputs: torch.Tensor,
    output: torch.Tensor,
) -> Call:
    def normalise(values: torch.Tensor) -> torch.Tensor:
        return functional.instance_norm(values, eps=layer.eps)

    return _scaled(layer, normalise, name, inputs, output, 1)


def _layer_norm(layer: nn.LayerNorm, name: str, inputs: torch.Tensor, output: torch.Tensor) -> Call:
    def normalise(values: torch.Tensor) -> torch.Tensor:
        return functional.layer_norm(values, layer.normalized_shape, eps=layer.eps)

    return _scaled(layer, normalise, name, inputs, output, -len(layer.normalized_shape))


# By exact type: a subclass may do anything, and is asked for its own product instead.
RULES: dict[type[nn.Module], Rule] = {
    nn.Linear: _linear,
    nn.Conv1d: _convolution,
    nn.Conv2d: _convolution,
    nn.Conv3d: _convolution,
    nn.Embedding: _embedding,
    nn.GroupNorm: _group_norm,
    nn.LayerNorm: _layer_norm,
    nn.InstanceNorm1d: _instance_norm,
    nn.InstanceNorm2d: _instance_norm,
    nn.InstanceNorm3d: _instance_norm,
}


def opaque_call(
    layer: nn.Module, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], output: object
) -> Call:
    """The rule of every other layer: whatever it computes, record by record.

    Raises:
        ValueError: none of the arguments is a tensor, so that nothing says what a record is.
    """
    attention = isinstance(layer, nn.MultiheadAttention)
    dim = 0 if not attention or layer.batch_first else 1
    arguments, names = (*args, *kwargs.values()), ("query", "key", "value", *kwargs)
    dims = [dim if isinstance(value, torch.Tensor) else None for value in arguments]
    if attention:
        # The mask of paddings has records first in either order, that of positions has none.
        positional = ("query", "key", "value", "key_padding_mask", "need_weights", "attn_mask")
        names = (*positional[: len(args)], *kwargs)
        for at, given in enumerate(names):
            if dims[at] is not None and given == "key_padding_mask":
                dims[at] = 0
            if dims[at] is not None and given == "attn_mask":
                dims[at] = None
    read = [value for value, at in zip(arguments, dims, strict=True) if at is not None]
    if not read:
        raise ValueError(f"Layer {name!r} has parameters but reads no tensor of records.")
    kept = tuple((n, p) for n, p in layer.named_parameters() if p.requires_grad)
    flat = tensors_in(output)
    used = [at for at, tensor in enumerate(flat) if tensor.requires_grad]
    # Attention returns its weights beside its output, with records first in either order.
    output_dims = [0 if attention and at == 1 else dim for at in used]

    def forms(signals: Signals) -> list[Form]:
        return [
            Opaque(
                tuple(p for _, p in kept),
                tuple(n for n, _ in kept),
                layer,
                tuple(v.detach() if isinstance(v, torch.Tensor) else v for v in arguments),
                tuple(dims),
                tuple(kwargs),
                signals,
                tuple(used),
                tuple(output_dims),
            )
        ]

    sizes = {
        value.shape[at] for value, at in zip(arguments, dims, strict=True) if at is not None
    } | {flat[at].shape[on] for at, on in zip(used, output_dims, strict=True)}
    rows = sizes.pop() if len(sizes) == 1 else -1
    outputs = tuple(flat[at] for at in used)
    # Whether such a layer's outputs depend on all of its inputs, nobody knows.
    return Call(name, rows, tuple(read), outputs, forms, ends=(True,) * len(outputs))
