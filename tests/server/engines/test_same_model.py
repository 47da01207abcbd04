"""One seed gives one model, bit for bit, on whatever engine, and every log of it verifies."""

import os
import signal
import threading
import time

import numpy as np
import pytest

from lepton_common.errors import LeptonError
from lepton_server.progress import Observer

SECURE = {"secagg.mode": "sa1"}


_ALONE = {}


@pytest.fixture
def alone(federation):
    """Returns the model that one thread ends in, computed once."""

    def of(how):
        key = tuple(how)
        if key not in _ALONE:
            _ALONE[key] = federation("alone", how)
        return _ALONE[key]

    return of


@pytest.fixture(params=[{}, SECURE], ids=["plain", "secure"])
def how(request):
    return request.param


@pytest.mark.slow
def test_two_processes_end_in_the_model_of_one_thread_and_of_two(federation, ground, alone, how):
    assert np.array_equal(federation("threads", how, workers=2), alone(how))
    assert np.array_equal(federation("processes", how, on=ground(2)), alone(how))
    assert all(report.failed == {} for report in federation.reports("processes"))
    assert federation.evidence("processes").witnessed >= 3 * 4


@pytest.mark.system
@pytest.mark.parametrize("workers", [1, 3])
def test_so_do_one_and_three(federation, ground, alone, how, workers):
    assert np.array_equal(federation("processes", how, on=ground(workers)), alone(how))
    assert not np.array_equal(federation("other", {**how, "seed": 2}), alone(how))


@pytest.mark.parametrize(
    ("how", "begins"),
    [
        pytest.param({}, "inprocess", marks=pytest.mark.slow),
        pytest.param(SECURE, "processes", marks=pytest.mark.slow),
        pytest.param({}, "processes", marks=pytest.mark.system),
        pytest.param(SECURE, "inprocess", marks=pytest.mark.system),
    ],
    ids=["plain-there", "secure-back", "plain-back", "secure-there"],
)
def test_a_run_that_stopped_on_one_engine_goes_on_on_another(
    federation, ground, alone, how, begins
):
    engines = [None, ground(2)] if begins == "inprocess" else [ground(2), None]
    federation("broken", how, on=engines[0], stop_after=1)
    assert len(federation.reports("broken")) == 1
    assert np.array_equal(federation("broken", how, on=engines[1]), alone(how))
    assert federation.evidence("broken").witnessed >= 3 * 4


@pytest.mark.parametrize(
    "how",
    [pytest.param({}, marks=pytest.mark.system), pytest.param(SECURE, marks=pytest.mark.slow)],
    ids=["plain", "secure"],
)
def test_with_privacy_the_noise_differs_and_what_is_spent_does_not(federation, ground, how):
    models, spent = [], []
    for name, on in (("threads", None), ("processes", ground(2))):
        models.append(federation(name, how, on=on, private=True))
        sites = federation.evidence(name).sites.values()
        spent.append({site.name: (site.epsilon, len(site.events)) for site in sites})
        assert all(report.failed == {} for report in federation.reports(name))
    assert spent[0] == spent[1]
    assert all(epsilon is None or 0 < epsilon <= 3.0 for epsilon, _ in spent[0].values())
    assert sum(events for _, events in spent[0].values()) == 3 * 4
    assert not np.array_equal(*models)


@pytest.mark.parametrize(
    ("how", "private"),
    [
        (SECURE, False),
        pytest.param({}, False, marks=pytest.mark.system),
        pytest.param({}, True, marks=pytest.mark.system),
        pytest.param(SECURE, True, marks=pytest.mark.system),
    ],
    ids=["secure", "plain", "plain-private", "secure-private"],
)
def test_sites_that_move_at_every_message_keep_logs_that_verify(
    federation, ground, served, alone, how, private
):
    model = federation("moving", how, on=ground(2), private=private)
    workers = {}
    for worker, node in served:
        workers.setdefault(node, set()).add(worker)
    assert any(len(found) == 2 for found in workers.values()), "no site has moved"
    assert all(report.failed == {} for report in federation.reports("moving"))
    assert federation.evidence("moving").witnessed >= 3 * 4
    assert private or np.array_equal(model, alone(how))


@pytest.mark.system
def test_without_a_word_that_it_moved_a_site_refuses_to_write(federation, served, make_ground):
    """What the hook is for: a log has one writer, and says so."""
    with pytest.raises(LeptonError):
        federation("moving", SECURE, on=make_ground(2, forget=None))
    folder = federation.folder("moving")
    traces = [path.read_text() for path in folder.path.glob("sites/*/errors.log")]
    assert any("changed under its writer" in trace for trace in traces)


class KillsAWorker(Observer):
    """Kills, in the second round, the first worker that is at work."""

    def __init__(self, grid):
        super().__init__()
        self.grid, self.killed = grid, None

    def on_round(self, report):
        if report.round == 1:
            threading.Thread(target=self._kill, daemon=True).start()

    def _kill(self):
        while not (busy := list(self.grid._waiting._at_work)):
            time.sleep(0.0005)
        self.killed = self.grid._running[busy[0]]._process.pid
        os.kill(self.killed, signal.SIGKILL)


@pytest.mark.system
def test_a_worker_that_is_killed_in_a_round_costs_one_site_of_it(federation, ground):
    on = ground(2)
    kills = KillsAWorker(on.grid)
    federation("killed", {"federation.cohort": None}, on=on, observer=kills)
    assert kills.killed is not None
    first, second, third = (report.failed for report in federation.reports("killed"))
    assert (first, list(second.values()), third) == ({}, ["ClientAppCrashed"], {})
    assert kills.killed not in [worker._process.pid for worker in on.grid._running.values()]
    assert federation.evidence("killed").witnessed >= 3 * 5 - 1
