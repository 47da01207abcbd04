"""A record's place in a batch changes nothing of its gradient; where it would, float64 is used."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from toy_site import RECIPE, VECTOR, synthetic

from lepton_client.training import conformance
from lepton_client.training.bookkeeping import ClippedGradients
from lepton_client.training.conformance import DOUBLE, OPACUS, OURS, SINGLE, Conformance, conform
from lepton_client.training.likeness import rows_alike
from lepton_client.training.private import Engine, clipped_sum, heights, train_private
from lepton_client.training.resident import ResidentModel, resident_model
from lepton_client.training.views import Views
from lepton_client.training.written_out import EachAlone
from lepton_common.arrays import Layout
from lepton_common.datasets.records import Records
from lepton_common.errors import GradientsUnavailable, PrecisionUnavailable
from lepton_common.models.catalog import initial_model
from lepton_common.privacy.noise import SecretRandom
from lepton_common.privacy.plan import PrivacyPlan
from lepton_common.tasks.augmentation import OfImages
from lepton_common.tasks.catalog import Task

TASK = Task("toy", "toy", "cross_entropy", "nothing")
PLAN = PrivacyPlan("row", 1e-5, 1.0, 1.0, 1.0, 1, 10, 16.0)
CPU = torch.device("cpu")


def resident(module):
    return ResidentModel(module, Layout.of(module), CPU)


def summed(model, records, plan=PLAN, engine=OURS, batch_size=1024):
    units = list(np.arange(len(records)).reshape(-1, 1))
    with Conformance(engine, 0.0).open(model) as hooks:
        return clipped_sum(Engine(model, hooks), TASK, records, units, batch_size, plan)


@pytest.mark.parametrize("engine", [OURS, OPACUS])
@pytest.mark.parametrize("width", [13, 30, 50, 785])
def test_records_in_front_change_no_bit_of_a_gradient(width, engine):
    # Weights as large as a server may choose, whose terms cancel: the last bits are all there is.
    generator = torch.Generator().manual_seed(width)
    model = resident(initial_model("logistic", (width,), 3, seed=0))
    for _ in range(5):
        with torch.no_grad():
            for parameter in model.module.parameters():
                drawn = torch.rand(parameter.shape, generator=generator)
                parameter.copy_(100 * (2 * drawn - 1))
            record = torch.rand(1, width, generator=generator)
            bias = list(model.module.parameters())[-1]
            bias.sub_(model.module(record)[0])
        alone = None
        for front in range(4):
            # A record that is no number adds nothing, and takes a place.
            others = torch.full((front, width), float("nan"))
            features = torch.cat([others, record])
            found = summed(model, Records(features, torch.ones(front + 1).long()), engine=engine)
            alone = found if alone is None else alone
            assert torch.equal(found, alone)
        assert float(alone.norm()) > 0.1


def test_one_record_in_front_does_not_reach_the_others_through_a_step_of_float32():
    # What an attack did: two places' logits on either side of the step of 1 + exp(-z).
    width, plan = 30, replace(PLAN, clipping_norm=1e-6)
    model = resident(initial_model("logistic", (width,), 2, seed=0))
    weight, bias = model.module.parameters()
    generator = torch.Generator().manual_seed(1)
    gaps = []
    for _ in range(500):
        signs = torch.where(torch.rand(width, generator=generator) < 0.5, 1.0, -1.0)
        drawn = (90 + 10 * torch.rand(width, generator=generator)) * signs
        record = 0.5 + 0.5 * torch.rand(width, generator=generator)
        with torch.no_grad():
            weight.copy_(torch.stack([-drawn, drawn]))
            bias.zero_()
            logits = model.module(record.expand(64, width).contiguous())
            half = float(logits[0, 1] - logits[0, 0] - 16.63) / 2
            bias.copy_(torch.tensor([half, -half]))
            logits = model.module(record.expand(64, width).contiguous()).double()
        gap = (logits[1, 1] - logits[1, 0]) - (logits[0, 1] - logits[0, 0])
        if abs(half) <= 100:
            gaps.append((abs(float(gap)), drawn, record))
    _, drawn, record = max(gaps, key=lambda found: found[0])
    steps = []
    for target in np.arange(16.60, 16.67, 5e-5):
        with torch.no_grad():
            weight.copy_(torch.stack([-drawn, drawn]))
            bias.zero_()
            logits = model.module(record.expand(64, width).contiguous())
            half = float(logits[0, 1] - logits[0, 0] - target) / 2
            bias.copy_(torch.tensor([half, -half]))
            chances = model.module(record.expand(64, width).contiguous()).log_softmax(1).exp()
        steps.append((abs(float(chances[0, 1] - chances[1, 1])), bias.detach().clone()))
    with torch.no_grad():
        bias.copy_(max(steps, key=lambda found: found[0])[1])
    pair = torch.stack([record, torch.zeros(width)]).repeat(250, 1)
    less = Records(pair, torch.ones(500, dtype=torch.int64))
    for front in (1, 2, 3):
        others = torch.zeros(front, width)
        labels = torch.ones(500 + front, dtype=torch.int64)
        more = summed(model, Records(torch.cat([others, pair]), labels), plan)
        moved = float((more - summed(model, less, plan)).norm()) / plan.clipping_norm
        assert moved <= front * (1 + 1e-5)  # it was 130


@pytest.fixture
def threads():
    """Gives back the number of threads that a test has changed."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_threads_that_share_a_batch_unevenly_change_no_gradient(threads, count):
    threads(count)
    shape, generator = (1, 28, 28), torch.Generator().manual_seed(4)
    model = resident(initial_model("cnn_small", shape, 10, seed=0))
    found = conform(model, TASK, shape, 10, (64, 128))
    record = torch.ones(1, *shape)
    values = record.expand(64, *shape).to(model.dtype)
    with torch.no_grad():
        for layer in model.module:
            if isinstance(layer, nn.Conv2d | nn.Linear):
                drawn = torch.rand(layer.weight.shape, generator=generator)
                layer.weight.copy_(200 * drawn - 100)
                layer.bias.zero_()
                read = layer(values)[0]
                middle = read[:, read.shape[1] // 2, read.shape[2] // 2] if read.dim() > 1 else read
                layer.bias.copy_((-middle).clamp(-100, 100))
            values = layer(values)
    sums = []
    for rows in (64, 65):
        features = record.expand(rows, *shape).contiguous()
        records = Records(features, torch.zeros(rows, dtype=torch.int64))
        sums.append(summed(model, records, engine=found.engine))
    assert float((sums[1] - sums[0]).norm()) <= 1 + 1e-5  # three made it 1.025


class _Sequence(nn.Module):
    """A recurrent layer or attention, of which Opacus has no gradients, and a linear layer."""

    def __init__(self, layer, width):
        super().__init__()
        self.layer, self.head = layer, nn.Linear(width, 3)

    def forward(self, sequences):
        attention = isinstance(self.layer, nn.MultiheadAttention)
        outputs, _ = self.layer(*(3 * [sequences] if attention else [sequences]))
        return self.head(outputs[:, -1])


@pytest.mark.parametrize(
    ("kind", "width"),
    [
        (nn.RNN, 8),
        (nn.GRU, 8),
        (nn.LSTM, 8),
        pytest.param(nn.GRU, 521, marks=pytest.mark.slow),  # threads share its gates
        pytest.param(nn.LSTM, 521, marks=pytest.mark.slow),
    ],
)
def test_recurrent_layers_train_and_no_place_changes_a_gradient(threads, kind, width):
    threads(3)
    torch.manual_seed(0)
    model = resident(_Sequence(kind(4, width, batch_first=True), width))
    found = conform(model, TASK, (3, 4), 3, (64,))
    assert found.engine == OURS
    assert found.difference < 1e-5
    assert found.together
    generator = torch.Generator().manual_seed(1)
    records = torch.randn(40, 3, 4, generator=generator).to(model.dtype)
    with found.open(model) as engine:
        for record in records:
            batch = record.expand(64, 3, 4).contiguous()
            for _, rows in engine.each_row(TASK.losses, batch, torch.zeros(64).long()):
                assert bool((rows == rows[:1]).all())  # of LSTMs 17 of 40 differed


def test_attention_trains():
    torch.manual_seed(0)
    model = resident(_Sequence(nn.MultiheadAttention(8, 2, batch_first=True), 8))
    found = conform(model, TASK, (3, 8), 3, (64,))
    assert (found.engine, found.difference < 1e-5) == (OURS, True)


def test_a_model_of_which_no_engine_has_gradients_is_refused(monkeypatch):
    monkeypatch.setattr(ClippedGradients, "sum", lambda *_, **__: torch.ones(3 * 81 + 3))
    model = resident(_Sequence(nn.RNN(4, 8, batch_first=True), 8))
    with pytest.raises(GradientsUnavailable, match="PyTorch's own layers"):
        conform(model, TASK, (3, 4), 3, (64,))


def test_a_model_that_takes_no_record_alone_is_refused_by_name(monkeypatch):
    def one(*_, **__):
        raise RuntimeError("no batch of one")

    monkeypatch.setattr(EachAlone, "_record_gradients", one)
    model = resident(_Sequence(nn.RNN(4, 8, batch_first=True), 8))
    with pytest.raises(GradientsUnavailable):
        conform(model, TASK, (3, 4), 3, (64,))


class _Crooked(nn.Module):
    """A model whose rows come out differently, by what a test says."""

    def __init__(self, how):
        super().__init__()
        self.layer, self.head, self.how = nn.Linear(16, 16), nn.Linear(16, 3), how

    def forward(self, features):
        hidden = self.layer(features)
        if self.how == "place":
            hidden = hidden + 1e-5 * (torch.arange(len(features)) == 3).unsqueeze(1)
        if self.how == "height" and len(features) == 192:
            hidden = hidden * 1.0001
        if self.how == "backward" and hidden.requires_grad:
            bent = torch.ones(len(features), 1)
            bent[-1] += 1e-5
            hidden = hidden * 1.0
            hidden.register_hook(lambda gradient: gradient * bent)
        return self.head(hidden)


@pytest.mark.parametrize("engine", [OURS, OPACUS])
@pytest.mark.parametrize("how", ["alike", "place", "height", "backward"])
def test_whatever_tells_one_place_from_another_is_seen(how, engine):
    model = resident(_Crooked(how))
    before = [parameter.clone() for parameter in model.module.parameters()]
    kind = Conformance(engine, 0.0).kind
    at = [rows_alike(model, kind, TASK, (16,), list(used)) for used in ((64, 128), (64, 192))]
    expected = {"alike": [True, True], "height": [True, False]}.get(how, [False, False])
    assert at == expected
    assert all(map(torch.equal, model.module.parameters(), before))
    assert all(parameter.grad is None for parameter in model.module.parameters())


def test_every_height_is_tried_before_it_is_used_and_once(monkeypatch, threads):
    tried = []

    def alike(model, kind, task, shape, used):
        tried.append((torch.get_num_threads(), used))
        return True

    monkeypatch.setattr(conformance, "rows_alike", alike)
    model = resident(initial_model("mlp", (4,), 3, seed=0))
    small, large = replace(RECIPE, batch_size=100), replace(RECIPE, batch_size=5000)
    threads(1)
    for recipe in (small, small, large):
        conform(model, TASK, (4,), 3, heights(recipe, model))
    threads(2)
    conform(model, TASK, (4,), 3, heights(small, model))
    whole = list(range(64, 1025, 64))
    first = [16, 32, 48, 64, 128]
    assert tried == [(1, first), (1, whole[2:]), (2, first)]
    views = replace(RECIPE, batch_size=2000, augmentations=1500)
    assert heights(views, model)[-1] == 1536
    # Where records' gradients are written out, larger batches are not faster.
    written_out = resident(initial_model("cnn_small", (1, 28, 28), 10, seed=0))
    assert heights(large, written_out)[-1] == 256
    model.device = torch.device("cuda")
    assert heights(small, model) == (128,)


def test_where_small_batches_differ_only_they_are_filled_up_further(monkeypatch):
    def alike(model, kind, task, shape, used):
        return 16 not in used

    monkeypatch.setattr(conformance, "rows_alike", alike)
    model = resident(initial_model("mlp", (4,), 3, seed=0))
    found = conform(model, TASK, (4,), 3, heights(replace(RECIPE, batch_size=100), model))
    assert (found.step, found.precision, found.together) == (64, SINGLE, True)
    seen = []
    with found.open(model) as gradients:
        summed = gradients.sum
        gradients.sum = lambda losses, features, *rest, **more: (
            seen.append(len(features)) or summed(losses, features, *rest, **more)
        )
        for step in (found.step, 16):
            engine = Engine(model, gradients, True, step)
            units = list(np.arange(10).reshape(-1, 1))
            clipped_sum(engine, TASK, synthetic(12), units, 100, PLAN)
    assert seen == [64, 16]


@pytest.mark.parametrize("engine", [OURS, OPACUS])
def test_where_rows_differ_all_is_computed_in_float64(monkeypatch, engine):
    records, plan = synthetic(12), replace(PLAN, clipping_norm=0.7)
    monkeypatch.setattr(conformance, "rows_alike", lambda *_: False)
    model = resident(initial_model("mlp", (4,), 3, seed=0))
    model.load(VECTOR)
    found = conform(model, TASK, (4,), 3, (64,))
    assert (found.precision, found.together, model.dtype) == (DOUBLE, False, torch.float64)
    assert model.layout == Layout.of(model.module)
    assert np.array_equal(torch.cat([p.flatten() for p in model.module.parameters()])
                          .detach().float().numpy(), VECTOR)  # fmt: skip
    expected = torch.zeros(len(VECTOR), dtype=torch.float64)
    for row in range(len(records)):
        losses = TASK.losses(model.module(records.features[[row]].double()), records.labels[[row]])
        parts = torch.autograd.grad(losses[0], list(model.module.parameters()))
        gradient = torch.cat([part.flatten() for part in parts])
        expected += gradient * min(1.0, 0.7 / float(gradient.norm()))
    torch.testing.assert_close(
        summed(model, records, plan, engine), expected, rtol=1e-12, atol=1e-13
    )
    monkeypatch.setattr(conformance, "rows_alike", lambda *_: True)
    assert conform(model, TASK, (4,), 3, (128,)).precision == DOUBLE  # for good
    update = train_private(model, TASK, records, VECTOR, replace(RECIPE, proximal_mu=0.1),
                           replace(plan, steps_per_round=2), found)  # fmt: skip
    assert update.dtype == np.float32
    assert update.any()


def test_where_rows_differ_in_float64_too_each_person_goes_through_alone():
    # What is left of the difference in float64, a deep network makes as large as it likes.
    model = resident(_Crooked("place"))
    found = conform(model, TASK, (16,), 3, (64, 128))
    assert (found.precision, found.together) == (DOUBLE, False)
    assert conform(model, TASK, (16,), 3, (64, 128)) is found
    records = Records(torch.ones(5, 16), torch.zeros(5, dtype=torch.int64))
    sums = []
    for units in ([[0]], [[3]], [[0], [3], [4]], [[4], [0], [3], [0]], [[1, 2], [0]], [[1, 2]]):
        with found.open(model) as hooks:
            engine = Engine(model, hooks, found.together)
            rows = [np.array(unit) for unit in units]
            sums.append(clipped_sum(engine, TASK, records, rows, 64, PLAN))
    one = float(sums[0].norm())
    assert one > 0.01
    for found_sum, count in zip(sums[1:4], (1, 3, 4), strict=True):
        torch.testing.assert_close(found_sum, count * sums[0], rtol=1e-14, atol=0)
    torch.testing.assert_close(sums[4] - sums[5], sums[0], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("count", [3, 5])
@pytest.mark.parametrize(
    "activation",
    [nn.Sigmoid(), nn.CELU(), nn.ELU(), nn.GELU(), nn.GELU("tanh"), nn.Mish(), nn.SELU(),
     nn.SiLU(), nn.Softplus()],
)  # fmt: skip
def test_an_activation_is_the_same_at_every_place(threads, activation, count):
    # Each thread computed the last numbers of its share otherwise: 100 clipping norms over 6,400
    # records, at a width of which one made-up record shows nothing.
    threads(count)
    model = resident(nn.Sequential(nn.Linear(8, 1025), activation, nn.Linear(1025, 2)))
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(20, 1, 1025, generator=generator).expand(-1, 64, -1)
    expected = activation(rows[:, 0])
    differing = 0
    with ClippedGradients(model.module):
        for row, alone in zip(rows, expected, strict=True):
            given = row.contiguous().requires_grad_()
            values = activation(given)
            (slopes,) = torch.autograd.grad(values.sum(), given)
            differing += int((values != values[:1]).any()) + int((slopes != slopes[:1]).any())
            torch.testing.assert_close(values[0], alone, rtol=1e-6, atol=2e-7)
    assert differing == 0


def test_what_goes_through_is_laid_out_as_it_was_tried():
    # Views of images have their channels last, for which a normalisation sums in another order.
    images = torch.rand(64, 3, 8, 8).contiguous(memory_format=torch.channels_last)
    task, seen = replace(TASK, augmentation=OfImages(1, mirror=True)), []
    model = resident(initial_model("logistic", (3, 8, 8), 3, seed=0))
    model.module.register_forward_pre_hook(lambda _, args: seen.append(args[0].stride()))
    for views in (None, Views(task, replace(RECIPE, augmentations=4), SecretRandom())):
        for count in (3, 16, 64):
            records = Records(images[:count], torch.zeros(count, dtype=torch.int64))
            units = list(np.arange(count).reshape(-1, 1))
            with Conformance(OURS, 0.0).open(model) as hooks:
                hooks._probed = True
                clipped_sum(Engine(model, hooks), task, records, units, 64, PLAN, views)
    assert seen
    assert set(seen) == {(192, 64, 8, 1)}


def test_a_device_that_can_do_neither_is_refused(monkeypatch):
    monkeypatch.setattr(conformance, "rows_alike", lambda *_: False)
    model = resident(initial_model("mlp", (4,), 3, seed=0))
    conform(model, TASK, (4,), 3, ())
    model.device = torch.device("mps")
    with pytest.raises(PrecisionUnavailable, match="no float64"):
        conform(model, TASK, (4,), 3, (64,))


@pytest.mark.parametrize("name", ["logistic", "mlp"])
def test_this_machine_computes_small_models_alike_in_float32(name):
    model = resident_model(name, (30,), 2, CPU, channels_last=False)
    assert conform(model, TASK, (30,), 2, heights(RECIPE, model)).precision == SINGLE
