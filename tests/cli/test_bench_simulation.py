"""The simulation benchmark: all sides train the same, take turns, and are named when missing."""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from lepton_cli.bench import Row
from lepton_cli.bench.peer_jobs import turns as turns_module
from lepton_cli.bench.simulation import jobs, plots, rows, side
from lepton_cli.bench.simulation.bare import BareLoop, drawn
from lepton_cli.bench.simulation.limits import bytes_of_client, flops_of_client
from lepton_cli.bench.simulation.sides import Outcome, Side, from_cold, take_turns
from lepton_cli.compose import compose_settings
from lepton_cli.run import list_runs
from lepton_cli.simulation import start
from lepton_client import trainer
from lepton_common.arrays import read_parameters
from lepton_common.asking import recipe
from lepton_common.datasets.catalog import DATASETS, load_dataset
from lepton_common.models.catalog import initial_model
from lepton_common.tasks.catalog import TASKS


@pytest.fixture(scope="module", autouse=True)
def rough_pictures():
    """Not here."""


@pytest.fixture(params=[jobs.REFERENCE, jobs.SMALL], ids=lambda job: job.name)
def tiny(request, monkeypatch, tmp_path):
    """Gives a job with few clients, in the catalogs as in a side's process, and its data."""
    job = replace(request.param, clients=3, records=15, cohort=3)
    monkeypatch.setitem(jobs.JOBS, job.name, job)
    monkeypatch.setitem(DATASETS, job.name, jobs.datasets()[job.name])
    monkeypatch.setitem(TASKS, job.name, jobs.tasks()[job.name])
    monkeypatch.chdir(tmp_path)
    with jobs.data_of(job) as data:
        yield job, data
        load_dataset.cache_clear()  # it maps files that are about to go


def _bare_beside(job, data, records_of):
    """Returns the bare loop over some clients' records."""
    parts = [load_dataset(job.name, str(data), "public_ranges").train.take(r) for r in records_of]
    return BareLoop(
        job,
        initial_model(job.model, job.shape, 10, seed=1),
        torch.stack([part.features for part in parts]),
        torch.stack([part.labels for part in parts]),
    )


def test_ours_and_the_bare_loop_have_the_same_model_after_two_rounds(tiny):
    job, data = tiny
    settings = compose_settings([*job.overrides(data), "rounds=2", "runs=runs"])
    settings = replace(settings, task=job.name)
    run = start(settings)
    lists = sorted(run.folder.path.glob("sites/*/rows.npy"))
    assert len(lists) == job.clients
    bare = _bare_beside(job, data, [np.load(path) for path in lists])
    first = bare.weights.clone()
    for round_ in (1, 2):
        seed = recipe(settings, round_).seed
        seeds = [trainer.site_seed(seed, path.parent.name) for path in lists]
        bare.round(range(job.clients), seeds)
    ours = read_parameters(run.model())
    moved = float((bare.weights - first).norm())
    assert moved > 0.01
    assert float((ours - bare.weights).norm()) < 1e-4 * moved


def test_the_kernel_and_the_bare_loop_have_the_same_model_after_two_rounds(tiny):
    pytest.importorskip("lepton_client.training.many")
    from lepton_cli.bench.simulation.kernel import Kernel

    job, data = tiny
    kernel = Kernel(job, data)
    every = np.arange(job.clients * job.records).reshape(job.clients, job.records)
    bare = _bare_beside(job, data, every)
    first = bare.weights.clone()
    for round_ in (1, 2):
        kernel.round(*drawn(job, round_))
        bare.round(*drawn(job, round_))
    moved = float((bare.weights - first).norm())
    assert float((torch.from_numpy(kernel.weights) - bare.weights).norm()) < 1e-4 * moved


@pytest.mark.parametrize("job", [jobs.REFERENCE, jobs.SMALL], ids=lambda job: job.name)
def test_all_settings_of_a_job_ask_for_the_same_work(job, tmp_path):
    plain = job.overrides(tmp_path)
    for more in ([], job.secure(), job.private(), [*job.secure(), *job.private()]):
        settings = compose_settings(side.merged(plain, more))
        train = settings.train
        assert (train.optimizer, train.momentum, train.schedule) == ("sgd", 0.0, "constant")
        assert (train.learning_rate, train.augmentations) == (job.rate, 1)
        assert (settings.cohort, settings.federation.weights) == (job.cohort, "equal")
        if settings.private:
            assert train.local_steps == job.steps_of_client
            assert settings.privacy.sample_rate * job.records == job.batch
        else:
            assert (train.local_epochs, train.batch_size) == (1, job.batch)
    assert job.steps == job.cohort * job.records / job.batch


class _Fake:
    """What a side's process says, and two rounds asked of it after the first."""

    def __init__(self):
        self.rounds, self.facts, self.why = 0, None, None

    def next(self, **facts):
        self.rounds += 1
        return self.rounds < 3

    def ended(self, **facts):
        self.facts = facts

    def skipped(self, why):
        self.why = why


@pytest.fixture
def said(monkeypatch):
    fake = _Fake()
    monkeypatch.setattr(side, "Turns", lambda: fake)
    return fake


def test_a_side_of_ours_runs_a_whole_federation_round_by_round(tiny, said):
    job, data = tiny
    side.main(side.Spec("federation", job.name, str(data), ["sites=4", "federation.cohort=2"]))
    assert said.why is None
    assert said.rounds == 3
    assert said.facts["peak_mb"] >= said.facts["imports_mb"] > 50
    [run] = list_runs()
    assert [len(run.rounds), run.settings.sites, run.settings.cohort] == [3, 4, 2]


def test_an_engine_that_is_not_here_is_named(tiny, said):
    job, data = tiny
    side.main(side.Spec("federation", job.name, str(data), ["engine=abacus"]))
    assert said.rounds == 0
    assert "abacus" in said.why


_SIDE = """
import sys
sys.path.insert(0, {folder!r})
from turns import Turns
turns, log = Turns(), open({log!r}, "a")
going = True
while going:
    log.write({name!r})
    log.flush()
    going = turns.next(steps={steps})
turns.ended(answer=42.0)
"""


def _side(folder, name, steps=2, body=None):
    peer_jobs = str(turns_module.__file__).rpartition("/")[0]
    log = str(folder / "log")
    code = body or _SIDE.format(folder=peer_jobs, log=log, name=name, steps=steps)
    return Side(name, (sys.executable, "-S", "-c", code), {}, steps=2, start_s=60.0, turn_s=60.0)


def test_sides_take_turns_and_none_always_comes_first(tmp_path):
    found = take_turns([_side(tmp_path, "a"), _side(tmp_path, "b")], turns=3)
    order = (tmp_path / "log").read_text()
    assert sorted(order[:2]) == ["a", "b"]  # which warm up at the same time
    assert order[2:] == "abbaab"
    for outcome in found.values():
        assert len(outcome.seconds) == 3
        assert outcome.facts["answer"] == 42.0


def test_a_side_that_cannot_go_on_or_does_other_work_is_left_out_by_name(tmp_path, capsys):
    broken = _side(tmp_path, "broken", body="raise SystemExit('no engine here')")
    found = take_turns([_side(tmp_path, "a"), broken, _side(tmp_path, "c", steps=3)], turns=1)
    assert found["broken"].missing == "it ended by itself: no engine here"
    assert found["c"].missing == "a round of it had 3 steps and not 2"
    assert len(found["a"].seconds) == 1
    assert "broken" in capsys.readouterr().err
    [row] = rows.compared("ours_vs_broken", found, "a", "broken")
    assert row == Row("ours_vs_broken", None, "skipped: broken: it ended by itself: no engine here")


def test_no_turn_begins_when_the_time_is_spent(tmp_path):
    found = take_turns([_side(tmp_path, "a")], turns=50, budget_s=0.0)
    assert len(found["a"].seconds) == 1


def test_a_cold_start_takes_some_rounds_without_being_asked(tmp_path):
    outcome = from_cold(_side(tmp_path, "a"), rounds=3)
    assert (tmp_path / "log").read_text() == "aaa"
    assert outcome.missing is None
    assert outcome.seconds[0] > 0


def test_ratios_are_of_speed_and_taken_turn_by_turn():
    found = {
        "bare": Outcome([2.0, 4.0, 9.0]),
        "ours": Outcome([1.0, 2.0, 3.0]),
        "secure": Outcome([1.5, 3.0, 4.5]),
    }
    assert list(rows.compared("a", found, "ours", "bare")) == [Row("a", 2.0, "s/round", 2.0)]
    [row] = rows.multiple("b", found, "secure", "ours", aim=1.9)
    assert (row.value, row.ratio) == (pytest.approx(1.5), pytest.approx(1 / 1.5))


def test_the_count_of_operations_is_the_one_by_hand():
    first, second = 30 * 30 * 32 * 3 * 9, 28 * 28 * 64 * 32 * 9
    dense = 64 * 14 * 14 * 128 + 128 * 10
    # Forward, and twice as much backward; the first layer's images need no gradient.
    by_hand = 2 * jobs.REFERENCE.records * (3 * (first + second + dense) - first)
    assert flops_of_client(jobs.REFERENCE) == by_hand
    weights = 4 * 9550
    # Each step reads the weights and gradients, and writes both.
    assert bytes_of_client(jobs.SMALL) > jobs.SMALL.steps_of_client * 4 * weights


def test_plots_are_drawn_of_the_rows_that_there_are(tmp_path):
    found = [
        Row("reference_bare", 2.0, "s/round"),
        Row("reference_ray_vs_bare", None, "skipped: ray"),
        Row("scaling_population_1000", 0.2, "s/round"),
        Row("scaling_population_1000_peak", 500.0, "MB"),
        Row("scaling_population_1000_peak_beyond_imports", 50.0, "MB"),
    ]
    drawn_files = plots.draw(found, tmp_path / "plots")
    assert [path.name for path in drawn_files] == [
        "simulation_reference.png",
        "simulation_scaling.png",
    ]
    assert all(path.stat().st_size > 5000 for path in drawn_files)
    assert plots.draw(found[1:2], tmp_path / "none") == []
    assert json.loads(json.dumps([row.value for row in found]))[1] is None
