"""The sum of clipped gradients is that of one record at a time, for every layer and batch."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from lepton_client.training.bookkeeping import ClippedGradients
from lepton_common.arrays import trained
from lepton_common.errors import BuffersNotAllowed

CLASSES, ROWS = 3, 6
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}
UNITS = torch.tensor([2, 0, 1, 1, 2, 4])
MASK = torch.tensor([True, False, True, True, False, True])


def cross_entropy(logits, labels):
    return functional.cross_entropy(logits, labels, reduction="none")


def per_record(module, features, labels, losses=cross_entropy):
    """Gradients by plain autograd, float64, shape [rows, d]."""
    rows = []
    for row in range(len(features)):
        module.zero_grad()
        torch.autograd.backward(losses(module(features[[row]]), labels[[row]]).sum())
        parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in trained(module)]
        rows.append(torch.cat([part.reshape(-1) for part in parts]).double())
    return torch.stack(rows)


def oracle(gradients, norm, unit_of_row=None, units=None, mask=None):
    """Sums each unit's rows, clips, adds up."""
    rows = len(gradients)
    unit_of_row = torch.arange(rows) if unit_of_row is None else unit_of_row
    total = torch.zeros(units or rows, gradients.shape[1], dtype=torch.float64)
    for row in range(rows):
        if mask is None or mask[row]:
            total[unit_of_row[row]] += gradients[row]
    norms = total.norm(dim=1)
    total[~norms.isfinite()] = 0.0
    factors = (norm / norms.clamp(min=1e-300)).clamp(max=1.0)
    return torch.where(norms.isfinite(), factors, 0.0) @ total


def ours(module, features, labels, norm, losses=cross_entropy, **kinds):
    with ClippedGradients(module) as clipped:
        return clipped.sum(losses, features, labels, clipping_norm=norm, **kinds)


def far(found, expected):
    return float(((found - expected).norm() / expected.norm()).detach())


class Last(nn.Module):
    """Runs a recurrent layer and classifies its last output."""

    def __init__(self, recurrent, width):
        super().__init__()
        self.recurrent, self.head = recurrent, nn.Linear(width, CLASSES)

    def forward(self, sequences):
        if self.recurrent.batch_first:
            return self.head(self.recurrent(sequences)[0][:, -1])
        return self.head(self.recurrent(sequences.transpose(0, 1))[0][-1])


class Attention(nn.Module):
    def __init__(self, *, batch_first):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=batch_first)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, sequences):
        if self.attention.batch_first:
            return self.head(self.attention(sequences, sequences, sequences)[0].mean(1))
        turned = sequences.transpose(0, 1)
        causal = torch.triu(torch.ones(4, 4, dtype=torch.bool), 1)
        return self.head(self.attention(turned, turned, turned, attn_mask=causal)[0].mean(0))


class Cell(nn.Module):
    """Calls one cell once per step: a layer used several times."""

    def __init__(self):
        super().__init__()
        self.cell, self.head = nn.GRUCell(5, 6), nn.Linear(6, CLASSES)

    def forward(self, sequences):
        state = sequences.new_zeros(len(sequences), 6)
        for step in sequences.unbind(1):
            state = self.cell(step, state)
        return self.head(state)


class Words(nn.Module):
    def __init__(self, width, *, tied, padding_idx=0):
        super().__init__()
        self.table = nn.Embedding(11, width, padding_idx)
        self.out = nn.Linear(width, 11, bias=not tied)
        if tied:
            self.out.weight = self.table.weight

    def forward(self, tokens):
        return self.out(self.table(tokens).mean(1))[:, :CLASSES]


class Residual(nn.Module):
    """One gradient flows into two layers at once."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1, bias=False), nn.GroupNorm(2, 4), nn.Conv2d(4, 4, 1)
        )
        self.around, self.head = nn.Conv2d(2, 4, 1), nn.Linear(4, CLASSES)

    def forward(self, images):
        return self.head(torch.relu(self.body(images) + self.around(images)).mean((2, 3)))


class Token(nn.Module):
    """Has a parameter of its own beside its layers."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))
        self.first, self.head = nn.Linear(5, 4), nn.Linear(4, CLASSES)

    def forward(self, values):
        return self.head(torch.tanh(self.first(values)) * self.scale)


def random_mlp(rng):
    widths = [int(width) for width in rng.integers(2, 12, rng.integers(2, 5))]
    layers = []
    for before, after in itertools.pairwise(widths):
        layers += [nn.Linear(before, after, bias=bool(rng.integers(2))), nn.ReLU(inplace=True)]
        layers += [nn.LayerNorm(after)] if rng.integers(2) else []
    return nn.Sequential(*layers, nn.Linear(widths[-1], CLASSES)), (widths[0],)


def random_cnn(rng):
    # Few channels of input and more take different ways.
    channels, groups = int(rng.choice([2, 5])), int(rng.integers(1, 3))
    width, kernel, stride = channels * groups, int(rng.integers(1, 4)), int(rng.integers(1, 3))
    layers = [
        nn.Conv2d(channels, width, kernel, stride, padding=int(rng.integers(3)), bias=False),
        nn.GroupNorm(groups, width) if rng.integers(2) else nn.InstanceNorm2d(width, affine=True),
        nn.Tanh(),
        nn.Conv2d(width, 4, 2, dilation=int(rng.integers(1, 3)), padding=2, groups=groups),
        nn.MaxPool2d(2),
        nn.Flatten(),
    ]
    trunk = nn.Sequential(*layers)
    flat = trunk(torch.zeros(1, channels, 7, 8)).shape[1]
    return nn.Sequential(trunk, nn.Linear(flat, CLASSES)), (channels, 7, 8)


def sequence_linear(_):
    parts = [nn.Linear(5, 7), nn.Tanh(), nn.LayerNorm((6, 7)), nn.Linear(7, 40), nn.Tanh()]
    return nn.Sequential(*parts, nn.Linear(40, 4), nn.Flatten(), nn.Linear(24, CLASSES)), (6, 5)


def short_sequence(_):
    # So few positions that the norms come from pairs of positions.
    parts = [nn.Linear(30, 40), nn.Tanh(), nn.Linear(40, 30), nn.Flatten(), nn.Linear(60, CLASSES)]
    return nn.Sequential(*parts), (2, 30)


def conv1d(_):
    parts = [
        nn.Conv1d(2, 4, 3, padding="same", padding_mode="circular"),
        nn.InstanceNorm1d(4, affine=True),
        nn.Conv1d(4, 4, 3, padding="same", dilation=2, groups=2),
        nn.LayerNorm((4, 9)),
        nn.Flatten(),
    ]
    return nn.Sequential(*parts, nn.Linear(36, CLASSES)), (2, 9)


def conv3d(_):
    return nn.Sequential(nn.Conv3d(1, 2, 2), nn.Flatten(), nn.Linear(16, CLASSES)), (1, 3, 3, 3)


def twice(_):
    layer = nn.Linear(6, 6)
    parts = [layer, nn.Tanh(), layer, nn.Tanh()]
    return nn.Sequential(*parts, nn.Linear(6, CLASSES)), (6,)


def without_a_rule(_):
    parts = [nn.ConvTranspose2d(2, 3, 3), nn.PReLU(), nn.Flatten(), nn.Linear(108, CLASSES)]
    return nn.Sequential(*parts), (2, 4, 4)


def transformer(_):
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    return nn.Sequential(layer, nn.Flatten(), nn.Linear(32, CLASSES)), (4, 8)


def frozen(_):
    module = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 4), nn.Linear(4, CLASSES))
    module[0].requires_grad_(False)
    module[2].weight.requires_grad_(False)
    return nn.Sequential(module, nn.Linear(CLASSES, CLASSES).requires_grad_(False)), (5,)


BUILDERS = {
    **{f"mlp{seed}": random_mlp for seed in range(3)},
    **{f"cnn{seed}": random_cnn for seed in range(5)},
    "sequence_linear": sequence_linear,
    "short_sequence": short_sequence,
    # So wide that units' norms come from pairs of rows.
    "wide": lambda _: (nn.Sequential(nn.Linear(40, 30), nn.Tanh(), nn.Linear(30, CLASSES)), (40,)),
    "conv1d": conv1d,
    "conv3d": conv3d,
    "twice": twice,
    "without_a_rule": without_a_rule,
    "transformer": transformer,
    "frozen": frozen,
    "residual": lambda _: (Residual(), (2, 5, 5)),
    "lstm": lambda _: (
        Last(nn.LSTM(5, 4, 2, batch_first=True, bidirectional=True), 8),
        (4, 5),
    ),
    "lstm_records_second": lambda _: (Last(nn.LSTM(5, 4), 4), (4, 5)),
    "gru": lambda _: (Last(nn.GRU(5, 6, 2, batch_first=True), 6), (4, 5)),
    "rnn": lambda _: (
        Last(nn.RNN(5, 6, bias=False, nonlinearity="relu", batch_first=True), 6),
        (4, 5),
    ),
    "cell": lambda _: (Cell(), (4, 5)),
    "attention": lambda _: (Attention(batch_first=True), (4, 8)),
    "attention_records_second": lambda _: (Attention(batch_first=False), (4, 8)),
    "words": lambda _: (Words(4, tied=False), None),
    "words_unpadded": lambda _: (Words(4, tied=False, padding_idx=None), None),
    "words_tied": lambda _: (Words(4, tied=True), None),
    "own_parameter": lambda _: (Token(), (5,)),
}


def build(name, dtype=torch.float32, rows=ROWS):
    """Returns a model with random weights, features and labels."""
    with torch.random.fork_rng(devices=[]):
        seed = sum(map(ord, name))
        torch.manual_seed(seed)
        module, shape = BUILDERS[name](np.random.default_rng(seed))
        labels = torch.randint(0, CLASSES, (rows,))
        if shape is None:
            return module.to(dtype), torch.randint(0, 11, (rows, 5)), labels
        return module.to(dtype), torch.randn(rows, *shape, dtype=dtype), labels


@pytest.mark.parametrize("dtype", TOLERANCE, ids=["float32", "float64"])
@pytest.mark.parametrize("name", BUILDERS)
def test_the_sum_is_that_of_one_record_at_a_time(name, dtype):
    module, features, labels = build(name, dtype)
    gradients = per_record(module, features, labels)
    middle = float(gradients.norm(dim=1).median())
    for kinds in (
        {},
        {"mask": MASK},
        {"unit_of_row": UNITS, "units": 6},
        {"unit_of_row": UNITS, "units": 6, "mask": MASK},
        {"unit_of_row": torch.tensor([3, 1, 0, 5, 2, 6]), "units": 7},
    ):
        for norm in (middle * 1e-6, middle, middle * 1e3):
            found = ours(module, features, labels, norm, **kinds)
            assert found.dtype == torch.float64
            assert far(found, oracle(gradients, norm, **kinds)) < TOLERANCE[dtype]


@pytest.mark.parametrize(
    "name", ["mlp0", "wide", "cnn0", "short_sequence", "lstm", "words", "attention"]
)
def test_one_bad_record_counts_as_nothing_and_leaves_the_others_alone(name):
    module, features, labels = build(name)
    gradients = per_record(module, features, labels)

    def losses(logits, labels):
        # Its loss, and so every gradient of the third record, is not finite.
        bad = torch.tensor([1.0, 1.0, float("inf"), 1.0, 1.0, 1.0])
        return cross_entropy(logits, labels) * bad[: len(logits)]

    for unit_of_row, gone in ((None, [2]), (UNITS, [2, 3])):
        kept = torch.ones(ROWS, dtype=torch.bool)
        kept[gone] = False
        kinds = {} if unit_of_row is None else {"unit_of_row": unit_of_row, "units": 6}
        found = ours(module, features, labels, 0.5, losses, **kinds)
        assert far(found, oracle(gradients, 0.5, mask=kept, **kinds)) < 1e-5


@pytest.mark.parametrize("value", [float("inf"), float("nan"), 3e38])
@pytest.mark.parametrize("masked", [False, True])
def test_features_that_overflow_reach_no_other_record(value, masked):
    for name in ("mlp1", "cnn1"):
        module, features, labels = build(name)
        kept = torch.tensor([True, True, True, True, False, True])
        expected = oracle(per_record(module, features, labels), 0.5, mask=kept)
        features[4] = value
        alone = ours(module, features[[4]], labels[[4]], 0.5)
        if not masked and float(alone.norm()) > 0.0:
            expected = expected + alone
        found = ours(module, features, labels, 0.5, mask=kept if masked else None)
        assert far(found, expected) < 1e-5


@pytest.mark.parametrize("name", ["mlp0", "cnn2", "lstm", "words", "own_parameter"])
def test_empty_batches_give_zeros(name):
    module, features, labels = build(name)
    size = sum(parameter.numel() for parameter in module.parameters())
    nothing = torch.zeros(size, dtype=torch.float64)
    assert torch.equal(ours(module, features[:0], labels[:0], 1.0), nothing)
    assert torch.equal(ours(module, features[:0], labels[:0], 1.0, units=3), nothing)
    masked = torch.zeros(ROWS, dtype=torch.bool)
    assert torch.equal(ours(module, features, labels, 1.0, mask=masked), nothing)


@pytest.mark.parametrize("name", ["mlp2", "cnn3", "sequence_linear", "words_unpadded"])
def test_it_is_what_opacus_gives_where_opacus_is_right(name):
    from opacus.grad_sample import GradSampleModule

    module, features, labels = build(name)
    found = ours(module, features, labels, 0.1)
    for layer in module.modules():
        if isinstance(layer, nn.ReLU):
            layer.inplace = False  # which Opacus cannot hook
    hooked = GradSampleModule(module, loss_reduction="sum")
    cross_entropy(hooked(features), labels).sum().backward()
    each = torch.cat([p.grad_sample.flatten(1) for p in module.parameters()], 1).double()
    hooked.to_standard_module()
    assert far(found, oracle(each, 0.1)) < 1e-5


@pytest.mark.parametrize("name", BUILDERS)
def test_no_unit_exceeds_the_norm_and_hooks_leave_no_trace(name):
    module, features, labels = build(name)
    before = module(features)
    state = {layer: set(vars(layer)) for layer in module.modules()}
    marks = [torch.full_like(parameter, 7.0) for parameter in module.parameters()]
    for parameter, mark in zip(module.parameters(), marks, strict=True):
        parameter.grad = mark
    with ClippedGradients(module) as clipped:
        inside = module(features)
        for row in range(ROWS):
            one = clipped.sum(cross_entropy, features[[row]], labels[[row]], clipping_norm=1e-4)
            assert float(one.norm()) <= 1e-4 * (1 + 1e-6)
    assert far(inside, before) < 1e-6
    assert torch.equal(module(features), before)
    assert {layer: set(vars(layer)) for layer in module.modules()} == state
    for layer in module.modules():
        assert not layer._forward_hooks
        assert not layer._forward_pre_hooks
        assert not layer._forward_hooks_with_kwargs
    for parameter, mark in zip(module.parameters(), marks, strict=True):
        assert parameter.grad is mark
        assert bool((mark == 7.0).all())


def test_hooks_go_when_the_work_fails():
    module, features, labels = build("lstm")

    def losses(logits, labels):
        raise KeyError("by the task")

    with pytest.raises(KeyError), ClippedGradients(module) as clipped:
        clipped.sum(losses, features, labels, clipping_norm=1.0)
    assert "forward" not in vars(module.recurrent)
    assert not module.head._forward_hooks
    with ClippedGradients(module) as clipped, pytest.raises(ValueError, match="already"):
        clipped.__enter__()


@pytest.mark.parametrize("name", ["mlp0", "cnn0", "lstm", "sequence_linear"])
def test_a_record_counts_the_same_wherever_it_stands(name):
    module, features, labels = build(name, rows=40)
    alone = ours(module, features[[7]], labels[[7]], 0.1)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    whole = ours(module, features, labels, 0.1)
    assert far(ours(module, features[order], labels[order], 0.1), whole) < 1e-6
    mask = torch.zeros(40, dtype=torch.bool)
    mask[7] = True
    assert far(ours(module, features, labels, 0.1, mask=mask), alone) < 1e-6


def test_cancelling_positions_do_not_spoil_the_norm():
    # Two positions whose gradients all but cancel: pairs in float32 would lose the rest.
    module = nn.Sequential(nn.Linear(30, 40, bias=False))
    features = torch.randn(1, 2, 30, generator=torch.Generator().manual_seed(0))
    features[:, 1] = features[:, 0] * (1 + 1e-4)
    signs = torch.tensor([1.0, -1.0]).view(1, 2, 1)

    def losses(outputs, labels):
        return (outputs * signs).sum((1, 2)) * 1e6

    found = ours(module, features, torch.zeros(1), 1.0, losses)
    assert math.isclose(float(found.norm()), 1.0, rel_tol=1e-3)


class Borrowing(nn.Module):
    """Uses one layer's weight in a function of its own."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(5, CLASSES)

    def forward(self, values):
        return self.first(values) + functional.linear(values, self.first.weight)


class Turning(nn.Module):
    """Puts positions before records."""

    def __init__(self):
        super().__init__()
        self.first, self.head = nn.Linear(5, 4), nn.Linear(4, CLASSES)

    def forward(self, sequences):
        return self.head(self.first(sequences.transpose(0, 1)).mean(0))


class Overwriting(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.head = nn.Linear(5, 5), nn.Linear(5, CLASSES)

    def forward(self, values):
        hidden = self.first(values)
        out = self.head(hidden)
        hidden.mul_(2.0)
        return out


def batch_norm():
    return nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, CLASSES))


@pytest.mark.parametrize(
    ("module", "shape", "error", "message"),
    [
        (batch_norm(), (6, 5), BuffersNotAllowed, "GroupNorm"),
        (
            nn.Sequential(nn.InstanceNorm1d(2, affine=True, track_running_stats=True)),
            (6, 2, 5),
            BuffersNotAllowed,
            "GroupNorm",
        ),
        (Borrowing(), (6, 5), ValueError, "outside the layer"),
        # As many records as positions: only the probe can tell.
        (Turning(), (6, 6, 5), ValueError, "first dimension"),
        (Overwriting(), (6, 5), ValueError, "in place"),
        (
            nn.Sequential(nn.Unflatten(1, (5, 1)), nn.Flatten(0, 1), nn.Linear(1, 3)),
            (6, 5),
            ValueError,
            "first dimension",
        ),
    ],
    ids=["batch_norm", "instance_statistics", "borrowed", "turned", "overwritten", "merged"],
)
def test_what_does_not_keep_records_apart_is_refused(module, shape, error, message):
    features, labels = torch.randn(*shape), torch.zeros(6, dtype=torch.long)
    with pytest.raises(error, match=message):
        ours(module, features, labels, 1.0, lambda out, _: out.flatten(1).sum(1))


@pytest.mark.parametrize(
    ("losses", "kinds", "message"),
    [
        (lambda out, y: functional.cross_entropy(out, y), {}, "rows"),
        (cross_entropy, {"clipping_norm": 0.0}, "above 0"),
        (cross_entropy, {"clipping_norm": float("inf")}, "finite"),
        (cross_entropy, {"mask": torch.ones(3, dtype=torch.bool)}, "per row"),
        (cross_entropy, {"unit_of_row": UNITS}, "units"),
        (cross_entropy, {"unit_of_row": UNITS, "units": 3}, "units"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(losses, kinds, message):
    module, features, labels = build("mlp0")
    with ClippedGradients(module) as clipped, pytest.raises(ValueError, match=message):
        clipped.sum(losses, features, labels, **{"clipping_norm": 1.0, **kinds})


def test_a_penalty_on_the_weights_is_refused():
    module, features, labels = build("mlp0")

    def losses(logits, labels):
        return cross_entropy(logits, labels) + next(module.parameters()).square().sum()

    with pytest.raises(ValueError, match="outside the layer"):
        ours(module, features, labels, 1.0, losses)
