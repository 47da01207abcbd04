"""What a site's people add to a level of trees: counted one by one, and bounded for each."""

import numpy as np
import pytest
import torch

from lepton_client.training.resident import resident_model
from lepton_client.training.trees import bounded_sums, person_scale, plain_sums, within
from lepton_common.arrays import Layout, read_parameters
from lepton_common.datasets.records import Records
from lepton_common.errors import EmptySite, GradientsUnavailable
from lepton_common.messages import PrivacyRequest
from lepton_common.models import boosted_trees
from lepton_common.models.boosted_trees import BoostedTrees
from lepton_common.models.catalog import initial_model
from lepton_common.models.tree_form import TreeForm
from lepton_common.privacy.noise import SecretRandom
from lepton_common.tasks.catalog import Task
from lepton_common.tasks.derivatives import Logistic, Squared

NAME, FEATURES = "boosted_trees.2x2b4", 3
BINARY = Task("pairs", "pairs", "binary", "nothing")
NUMBER = Task("numbers", "numbers", "regression", "nothing")
PLAN = PrivacyRequest(
    mode="record", count_within=False, delta=1e-5, sample_rate=1.0, noise_multiplier=1.0,
    clipping_norm=0.7, steps_per_round=1, max_steps=9,
).plan("row", 16)  # fmt: skip


def received(levels=3, **changes):
    """Returns a model whose first tree is grown, and of the second the first level."""
    module, rng = initial_model(NAME, (FEATURES,), 1, 0), np.random.default_rng(0)
    drawn = {
        "features": rng.integers(FEATURES, size=(2, 3)), "thresholds": rng.integers(3, size=(2, 3)),
        "leaves": rng.normal(size=(2, 4)), "base": [-0.3], "levels": [levels], **changes,
    }  # fmt: skip
    for name, values in drawn.items():
        getattr(module, name).data[:] = torch.tensor(np.array(values), dtype=torch.float32)
    return module, read_parameters(module).numpy()


def records_of(task, count=60, units=None, seed=1):
    rng = np.random.default_rng(seed)
    labels = (
        torch.from_numpy(rng.integers(2, size=count))
        if task is BINARY
        else torch.from_numpy(rng.uniform(-1, 1, count)).float()
    )
    return Records(
        torch.from_numpy(rng.uniform(-1.1, 1.1, (count, FEATURES))).float(), labels, units
    )


def own_model():
    return resident_model(NAME, (FEATURES,), 1, torch.device("cpu"), channels_last=False)


def bounded(task, records, vector, plan=PLAN):
    return bounded_sums(own_model(), task, records, vector, plan, SecretRandom())


def people(count=60):
    """Returns units of one, two, ... records each."""
    return np.repeat(np.arange(count), np.arange(count) % 5 + 1)[:count].astype(np.int64)


@pytest.mark.parametrize("task", [BINARY, NUMBER])
@pytest.mark.parametrize("units", [None, people()])
def test_sums_are_those_of_each_record_in_its_cells(task, units):
    module, vector = received()
    records = records_of(task, units=units)
    kind = Logistic() if task is BINARY else Squared()
    expected = np.zeros((2, 2, FEATURES, 4))
    for index, row in enumerate(records.features):
        bins = [min(int((value.clamp(-1, 1).item() + 1) * 2), 3) for value in row]

        def side(tree, node, bins=bins):
            feature = int(module.features[tree, node].item())
            return int(bins[feature] > module.thresholds[tree, node].item())

        first = side(0, 0)
        output = module.base.item() + module.leaves[0, 2 * first + side(0, 1 + first)].item()
        node, label = side(1, 0), records.labels[index].double().numpy()
        g, h = kind.of(np.array([output]), label[None])
        share = 1.0 if units is None else 1 / np.sum(units == units[index])
        for feature, bin_ in enumerate(bins):
            expected[:, node, feature, bin_] += g[0] * share, h[0] * share
    sums, loss = plain_sums(own_model(), task, records, vector)
    assert sums.reshape(expected.shape) == pytest.approx(expected, abs=1e-5)
    outputs = module(records.features).detach()
    assert loss == pytest.approx(task.losses(outputs, records.labels).double().mean().item())
    scale = PLAN.clipping_norm * person_scale(kind, FEATURES)
    private = bounded(task, records, vector).reshape(expected.shape)
    assert private == pytest.approx(
        expected * scale * np.array([1, kind.weight])[:, None, None, None]
    )


ODD = {
    "as it should be": {},
    "certain of the wrong class": {"base": [-1e4]},
    "certain of the other": {"base": [1e30]},
    "no number": {"leaves": np.full((2, 4), np.nan)},
    "infinite": {"base": [np.inf], "levels": [np.nan], "features": np.full((2, 3), -7e9)},
}


@pytest.mark.parametrize("task", [BINARY, NUMBER])
@pytest.mark.parametrize("changes", ODD.values(), ids=ODD)
def test_one_person_less_moves_the_sum_by_a_clipping_norm_at_most(task, changes):
    _, vector = received(**changes)
    units = people(40)
    records = records_of(task, 40, units)
    records.features[3], records.features[17, 1] = torch.nan, torch.inf
    records.labels[0] = 1  # of a person who has no other record
    whole, lengths = bounded(task, records, vector), []
    for unit in np.unique(units):
        without = bounded(task, records.take(np.flatnonzero(units != unit)), vector)
        own = bounded(task, records.take(np.flatnonzero(units == unit)), vector)
        assert whole - without == pytest.approx(own, abs=1e-12)  # and nobody else's part moves
        lengths.append(np.linalg.norm(whole - without))
    assert max(lengths) <= PLAN.clipping_norm * (1 + 1e-12)
    if changes.get("base") == [-1e4]:  # the bound is reached
        assert max(lengths) == pytest.approx(PLAN.clipping_norm)


def test_how_many_records_there_are_decides_no_more_memory(monkeypatch):
    _, vector = received()
    records, seen = records_of(NUMBER, 50), []
    whole, nodes = bounded(NUMBER, records, vector), BoostedTrees.nodes

    def look(self, binned, trees, levels):
        seen.append(len(binned))
        return nodes(self, binned, trees, levels)

    monkeypatch.setattr(BoostedTrees, "nodes", look)
    monkeypatch.setattr(boosted_trees, "_VALUES", 7)  # so that two records have room
    assert bounded(NUMBER, records, vector) == pytest.approx(whole, abs=1e-12)
    assert max(seen) == 2
    many = BoostedTrees(TreeForm(9999, 1, 2), 3)
    monkeypatch.undo()
    assert many.rows_at_once * 9999 <= 1 << 22


def test_a_sample_takes_whole_people():
    _, vector = received()
    units = np.repeat(np.arange(200), 3)
    records = records_of(NUMBER, 600, units)
    plan = PrivacyRequest(**{**vars(_asked()), "sample_rate": 0.5}).plan("row", 16)
    drawn = bounded(NUMBER, records, vector, plan).reshape(2, -1)[1].sum()
    one = PLAN.clipping_norm * person_scale(Squared(), FEATURES) * Squared.weight * FEATURES
    assert drawn / one == pytest.approx(round(drawn / one), abs=1e-9)
    assert 50 < drawn / one < 150


def _asked():
    return PrivacyRequest(
        mode="record", count_within=False, delta=1e-5, sample_rate=1.0, noise_multiplier=1.0,
        clipping_norm=0.7, steps_per_round=1, max_steps=9,
    )  # fmt: skip


def test_a_site_without_records_adds_nothing_and_says_so_only_without_privacy():
    _, vector = received()
    empty = records_of(BINARY, 0)
    sums = bounded(BINARY, empty, vector)
    assert sums.shape == (2 * 2 * FEATURES * 4,)
    assert not sums.any()
    with pytest.raises(EmptySite):
        plain_sums(own_model(), BINARY, empty, vector)


def test_sums_beyond_what_a_public_size_allows_are_made_smaller_alike():
    sums = np.array([3.0, -8.0, 1.0], np.float32)
    assert within(sums, 8.0) is sums
    assert within(sums, 2.0).tolist() == [0.75, -2.0, 0.25]


def test_another_loss_is_refused_at_the_site():
    _, vector = received()
    task = Task("times", "times", "cox", "nothing")
    with pytest.raises(GradientsUnavailable, match="No trees are grown for Cox"):
        bounded(task, records_of(BINARY), vector)


def test_the_layout_names_the_form():
    digests = {Layout.of(initial_model(name, (3,), 1, 0)).digest
               for name in (NAME, "boosted_trees.2x3b4", "boosted_trees.3x2b4")}  # fmt: skip
    assert len(digests) == 3
