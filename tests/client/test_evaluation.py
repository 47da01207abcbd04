"""Who is held back, that nobody trains on them, and what a server may ask to be told of them."""

from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
import yaml
from toy_site import MODEL, PERMISSIVE, PRIVACY, VECTOR, ask, context, request, synthetic

from lepton_client import consent, trainer, work
from lepton_client.app import app
from lepton_client.people import held_back
from lepton_client.training import evaluation
from lepton_client.training.resident import ResidentModel, resident_model
from lepton_common.arrays import Layout, digest_of, pack, read_parameters
from lepton_common.datasets.catalog import load_dataset
from lepton_common.datasets.records import Records
from lepton_common.errors import BuffersNotAllowed, ConsentRefused
from lepton_common.evaluation.statistics import ClassStatistics
from lepton_common.messages import MaskedSum, read_update, train_content
from lepton_common.models.catalog import initial_model
from lepton_common.policy import StatisticsRules
from lepton_common.privacy.ledger_file import read_ledger
from lepton_common.privacy.plan import SharedNoise
from lepton_common.statistics import EvaluationQuery
from lepton_common.tasks.catalog import find_task
from lepton_common.tasks.sums import FigureCells, figure_cells, named

RULES = StatisticsRules(max_epsilon=2.0, min_cohort=3, max_bins=20)
ALLOWED = replace(PERMISSIVE, statistics=RULES)
OWN = replace(PRIVACY, sample_rate=1.0, noise_multiplier=4.0, steps_per_round=1, max_steps=1)
CELLS = figure_cells(20, find_task("digits"), 3, (4,), Layout.of(MODEL).digest)
QUERY = EvaluationQuery(bins=20, length=CELLS.size)
FORM = MaskedSum(weights={f"site-{n}": 1 for n in (1, 2, 3)}, weight_cap=None, coordinates=1.0,
                 rotate=False, rounding="nearest", groups=1)  # fmt: skip


@pytest.fixture
def holding(make_site):
    """Returns a maker of sites that hold a share of their people back."""

    def make(share=0.5, policy=ALLOWED, name="site-1"):
        site = make_site(policy, name)
        file = asdict(site.file)
        file["data"]["held_back"] = share
        (site.folder / "site.yaml").write_text(yaml.safe_dump(file))
        return make_site(policy, name)

    return make


def query(run="run-1", privacy=OWN, **changes):
    """Returns a valid request for a model's figures, and what is sent with it."""
    sent = named(VECTOR, run, private=privacy is not None)
    layout = figure_cells(20, find_task("toy"), 3, (4,), Layout.of(MODEL).digest).digest
    valid = request(run=run, layout=layout, model_digest=digest_of(pack(sent).data),
                    privacy=privacy, statistics=QUERY)  # fmt: skip
    return replace(valid, **changes), sent


def asked_of(site, **changes):
    valid, sent = query(**changes)
    return app(ask(train_content(valid, sent)), context(site.folder))


def charges(site):
    contents = read_ledger(site.folder / "ledger.db", site.key.public_hex)
    return [record for record in contents.records if record.kind == "charge"]


def kept(share=0.5):
    records = synthetic()
    return records.take(np.flatnonzero(held_back(records, "row", share)))


def test_a_share_of_the_people_is_held_back_each_with_all_records():
    units = np.random.default_rng(0).integers(0, 3000, 9000)
    records = Records(torch.zeros(9000, 1), torch.zeros(9000), units=units)
    mask = held_back(records, "patient", 0.3)
    people = np.unique(units)
    share = np.array([mask[units == person].mean() for person in people[:200]])
    assert set(share) == {0.0, 1.0}
    assert len(np.unique(units[mask])) / len(people) == pytest.approx(0.3, abs=0.04)
    order = np.random.default_rng(1).permutation(9000)[:500]
    assert (held_back(records.take(order), "patient", 0.3) == mask[order]).all()
    assert (held_back(records, "device", 0.3) != mask).any()
    assert held_back(records, "patient", 0.6)[mask].all()  # more are held back, none fewer
    assert not held_back(records, "patient", 0.0).any()


def train(site, how):
    """Trains in one of the ways that there are."""
    asked = request() if how == "plain" else request(privacy=replace(PRIVACY, mode=how))
    site.trainer.people()
    if how == "plain":
        site.trainer.train(asked, VECTOR)
    elif how == "record":
        site.trainer.train_privately(asked, VECTOR, PRIVACY.plan("row", 16))
    else:
        shared = SharedNoise(3, 3, 1, len(VECTOR))
        plan = replace(PRIVACY, mode=how, sample_rate=1.0, steps_per_round=1).plan(
            "row", 16, shared
        )
        site.trainer.noised_sum(asked, VECTOR, plan)


@pytest.mark.parametrize("how", ["plain", "record", "distributed", "site"])
def test_nobody_who_is_held_back_is_trained_on(holding, monkeypatch, how):
    """Whatever trains is looked at where the records reach it."""
    site, seen = holding(), []

    def look(*given):
        seen.extend(part for part in given if isinstance(part, Records))
        raise InterruptedError

    for name in ("train_plain", "train_private", "noisy_sum"):
        monkeypatch.setattr(trainer, name, look)
    with pytest.raises(InterruptedError):
        train(site, how)
    (records,) = seen
    held = {row.numpy().tobytes() for row in kept().features}
    own = {row.numpy().tobytes() for row in records.features}
    assert not held & own
    assert len(held | own) == len(synthetic())
    assert 8 < len(held) < 32


@pytest.mark.parametrize(
    ("policy", "share", "changes", "reason"),
    [
        (PERMISSIVE, 0.5, {}, "answers no statistics"),
        (ALLOWED, 0.0, {}, "holds nobody's records back"),
        (replace(ALLOWED, allow_without_dp=False), 0.5, {"privacy": None}, "privacy only"),
        (PERMISSIVE, 0.5, {"privacy": None}, "answers no statistics"),
        (ALLOWED, 0.5, {"privacy": replace(OWN, noise_multiplier=0.5)}, "exceed this site's 2"),
        (ALLOWED, 0.5, {"privacy": replace(OWN, sample_rate=0.1)}, "one sum over all people"),
        (ALLOWED, 0.5, {"cohort": 2}, "floor of 3 for statistics"),
        (ALLOWED, 0.5, {"statistics": replace(QUERY, bins=21)}, "21 bins exceed this site's 20"),
        (replace(ALLOWED, models=["logistic"]), 0.5, {}, "does not train the model"),
    ],
)
def test_what_the_policy_does_not_allow_is_refused_before_anything_is_read(
    holding, toy_catalog, policy, share, changes, reason
):
    site = holding(share, policy)
    privacy = changes.pop("privacy", OWN)
    valid, sent = query(privacy=privacy, **changes)
    with pytest.raises(ConsentRefused, match=reason):
        consent.check(valid, site.file)
    toy_catalog["train"] = None  # reading it would fail
    reply = app(ask(train_content(valid, sent)), context(site.folder))
    assert reply.error.reason == "ConsentRefused"
    assert not [record for record in site.ledger.records if record.kind == "charge"]


@pytest.mark.parametrize("changed", [{"weight_cap": 5}, {"coordinates": 0.5}, {"rotate": True}])
def test_a_masked_sum_of_figures_is_summed_as_it_is(holding, changed):
    valid, _ = query(privacy=None, masked=replace(FORM, **changed))
    with pytest.raises(ConsentRefused, match="summed as they are"):
        consent.check_request(valid, holding().file, masked=True)
    consent.check_request(replace(valid, masked=FORM), holding().file, masked=True)


def test_without_privacy_the_sum_is_exact_and_of_those_held_back(holding):
    total = read_update(asked_of(holding(), privacy=None).content, CELLS.size)[0]
    held = kept()
    with torch.no_grad():
        outputs = MODEL(held.features)
    statistics = ClassStatistics(3, score_bins=20)
    assert total == pytest.approx(statistics.of(outputs, held.labels), abs=1e-5)
    assert statistics.count(total) == pytest.approx(len(held), abs=1e-5)


def test_with_privacy_it_is_charged_and_each_run_may_ask_once(holding):
    site = holding(policy=replace(ALLOWED, max_epsilon=1.2))
    reply = asked_of(site)
    assert len(read_update(reply.content, CELLS.size)[0]) == CELLS.size
    (charge,) = charges(site)
    assert charge.body["run"] == "run-1"
    released = [r for r in site.audit.records if r.kind == "release"]
    assert not released or released[-1].body["charge"] == charge.hash
    assert asked_of(site).error.reason == "BudgetSpent"
    assert asked_of(site, run="run-2").error.reason == "BudgetSpent"
    assert len(charges(site)) == 1


def test_another_layout_or_length_than_the_sites_own_ends_under_one_name(holding):
    site = holding()
    assert asked_of(site, layout="0" * 64).error.reason == "PrivateWorkFailed"
    longer = replace(QUERY, length=QUERY.length + 1)
    assert asked_of(site, run="run-2", statistics=longer).error.reason == "PrivateWorkFailed"
    fewer = replace(QUERY, bins=10)
    assert asked_of(site, run="run-3", statistics=fewer).error.reason == "PrivateWorkFailed"
    assert len(charges(site)) == 3  # whatever went wrong, it stays spent


def test_sums_that_a_masked_one_would_cut_off_are_refused(holding):
    from lepton_client.work import _Result

    valid, _ = query(privacy=None, masked=FORM)
    part = type("Part", (), {"spec": type("Spec", (), {"clip": 8.0})()})()
    result = _Result(np.full(CELLS.size, 9.0, np.float32))
    with pytest.raises(work.EncodingError, match=r"raise secagg\.clip"):
        work._masked(result, valid, part, holding())


@pytest.mark.parametrize(
    ("task", "model", "classes", "shape"),
    [("toy", "mlp", 3, (4,)), ("heart_disease", "logistic", 2, (6,)),
     ("wine_quality", "logistic", 0, (5,)), ("machine_anomaly", "autoencoder", 0, (6, 4)),
     ("tcga_brca_hazard", "logistic", 0, (5,)), ("shakespeare", "char_gru", 20, (12,))],
)  # fmt: skip
@pytest.mark.parametrize("size", [0.1, 90.0])
def test_nobody_moves_the_sum_by_more_than_one(task, model, classes, shape, size):
    """Each of the people is taken out in turn, of models with tame and with wild weights."""
    task, generator = find_task(task), torch.Generator().manual_seed(3)
    outputs = task.outputs(classes, shape)
    seeded = initial_model(model, shape, outputs, seed=1)
    vector = (size * np.sign(read_parameters(seeded).numpy())).astype(np.float32)
    own = resident_model(model, shape, outputs, torch.device("cpu"), channels_last=False)
    own.load(torch.from_numpy(vector).numpy())
    features = torch.randn(14, *shape, generator=generator)
    if task.name == "shakespeare":
        features = torch.randint(0, 20, (14, *shape), generator=generator).float()
    labels = task.objective.made_up_labels(14, classes, shape, generator)
    units = np.array([0, 0, 0, 1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9])
    records = Records(features, labels, units=units)
    cells = figure_cells(10, task, classes, shape, own.layout.digest)
    whole, most = evaluation._sum_over_people(own, records, cells), 0.0
    for person in np.unique(units):
        left = records.take(np.flatnonzero(units != person))
        moved = np.linalg.norm(whole - evaluation._sum_over_people(own, left, cells))
        most = max(most, float(moved))
    assert 0.1 < most <= 1 + 1e-9
    assert cells.statistics.count(whole / cells.scale) == pytest.approx(10)


def test_a_vector_that_were_too_long_is_cut():
    """The bound holds even where what is proven of a kind of statistics were wrong."""

    class Wrong(ClassStatistics):
        per_record_bound = 0.01

    cells = FigureCells(find_task("toy"), Wrong(3), "0" * 64)
    own = resident_model("mlp", (4,), 3, torch.device("cpu"), channels_last=False)
    own.load(VECTOR)
    one = synthetic(1)
    assert np.linalg.norm(evaluation._sum_over_people(own, one, cells)) == pytest.approx(1.0)


def test_no_more_of_a_persons_records_are_in_memory_than_the_policy_allows(toy_catalog):
    valid, sent = query()
    valid = replace(valid, recipe=replace(valid.recipe, batch_size=5))
    own = resident_model("mlp", (4,), 3, torch.device("cpu"), channels_last=False)
    records = replace(synthetic(12), units=np.zeros(12, np.int64))
    heights = []
    with own.module.register_forward_pre_hook(lambda _, given: heights.append(len(given[0]))):
        evaluation.figure_sum(valid, sent, own, records, load_dataset("toy", None, "public_ranges"))
    assert heights[-3:] == [5, 5, 2]  # behind the trial of the model


def test_whether_there_is_room_for_a_batch_does_not_tell_who_has_so_many_records(toy_catalog):
    """A server may choose a model so large that a batch of few records fits, and one of all not."""
    valid, sent = query()
    valid = replace(valid, recipe=replace(valid.recipe, batch_size=11))
    own = resident_model("mlp", (4,), 3, torch.device("cpu"), channels_last=False)
    dataset = load_dataset("toy", None, "public_ranges")

    def no_room(_, given):
        if len(given[0]) == valid.recipe.batch_size:
            raise MemoryError

    several = replace(synthetic(12), units=np.zeros(12, np.int64))
    with own.module.register_forward_pre_hook(no_room):
        for records in (synthetic(12), several, synthetic(0)):
            with pytest.raises(MemoryError):
                evaluation.figure_sum(valid, sent, own, records, dataset)


def test_a_person_whose_vector_is_no_number_adds_nothing():
    class Odd(ClassStatistics):
        def of(self, outputs, labels):
            return super().of(outputs, labels) * (np.nan if int(labels[0]) == 1 else 1.0)

    cells = FigureCells(find_task("toy"), Odd(3), "0" * 64)
    own = resident_model("mlp", (4,), 3, torch.device("cpu"), channels_last=False)
    own.load(VECTOR)
    records = synthetic(30)
    others = records.take(np.flatnonzero(records.labels.numpy() != 1))
    whole = evaluation._sum_over_people(own, records, cells)
    assert 0 < len(others) < 30
    assert (whole == evaluation._sum_over_people(own, others, cells)).all()


def test_a_model_that_remembers_records_is_evaluated_without_privacy_only(toy_catalog):
    class Remembers(torch.nn.Linear):
        def forward(self, features):
            said = super().forward(features + getattr(self, "before", 0.0))
            self.before = features.nan_to_num().mean().detach()
            return said

    module = Remembers(4, 3)
    own = ResidentModel(module, Layout.of(module), torch.device("cpu"))
    cells = figure_cells(20, find_task("toy"), 3, (4,), own.layout.digest)
    dataset, vector = load_dataset("toy", None, "public_ranges"), read_parameters(module).numpy()

    def figures(privacy):
        asked = EvaluationQuery(bins=20, length=cells.size)
        valid, _ = query(privacy=privacy, layout=cells.digest, statistics=asked)
        sent = named(vector, "run-1", private=privacy is not None)
        return evaluation.figure_sum(valid, sent, own, synthetic(), dataset)[0]

    assert len(figures(None)) == cells.size
    with pytest.raises(BuffersNotAllowed, match="shown before"):
        figures(OWN)


def test_data_is_loaded_whole_for_statistics_and_the_ledger(holding):
    site = holding()
    assert len(site.trainer.people()) == len(load_dataset("toy", None, "public_ranges").train)
    assert site.trainer.describe().records == 40
