"""Federations of a few sites on disk, run on whichever engine a test names."""

import numpy as np
import pytest

from lepton_cli.grounds import LEAVE_SITE, SITE_APP
from lepton_cli.run import Run
from lepton_cli.simulated_sites import SimulatedSites
from lepton_cli.simulation import create
from lepton_client.app import app as client_app
from lepton_client.site import forget_sites
from lepton_common.models.layers import PREFIX
from lepton_server.engines.inprocess import InProcessGrid
from lepton_server.engines.processes import ProcessesGrid
from lepton_server.engines.waiting import Waiting
from lepton_server.progress import OBSERVER, Observer
from lepton_server.rounds.checkpoint import load_checkpoint
from lepton_server.rounds.evaluate import Evaluator
from lepton_server.rounds.loop import run_rounds

BASE = {
    "task": "breast_cancer",
    "model": f"{PREFIX}linear600-relu",  # large enough for shared memory
    "sites": 5,
    "rounds": 3,
    "federation.cohort": 4,
    "data.partition": "dirichlet",
    "data.alpha": 5.0,
    "secagg.colluders": 0,
    "engine.name": "processes",
}


class Ground:
    """One pool of worker processes for many runs: starting one takes seconds."""

    def __init__(self, workers, **options):
        self.nodes = {}
        self.grid = ProcessesGrid(
            SITE_APP, self.nodes, workers=workers, **{"forget": LEAVE_SITE, **options}
        )


@pytest.fixture(scope="module")
def ground():
    """Returns a maker of pools, each kept until the module's tests are done."""
    made = {}

    def of(workers):
        if workers not in made:
            made[workers] = Ground(workers)
        return made[workers]

    yield of
    for one in made.values():
        one.grid.close()


@pytest.fixture
def make_ground():
    """Returns a maker of pools for one test."""
    made = []

    def of(workers, **options):
        made.append(Ground(workers, **options))
        return made[-1]

    yield of
    for one in made:
        one.grid.close()


class StopsAfter(Observer):
    """Asks to stop after a round."""

    def __init__(self, round_):
        super().__init__()
        self.last = round_

    def on_round(self, report):
        self.stop_requested = report.round == self.last


@pytest.fixture
def federation(tmp_path, make_settings):
    """Returns a runner of a federation on an engine, which returns its model."""
    folders = {}

    def run(
        name, changes=None, *, on=None, workers=1, private=False, stop_after=None, observer=None
    ):
        changes = {**BASE, "runs": str(tmp_path), **(changes or {})}
        settings = make_settings(changes, private=private)
        if name not in folders:
            folders[name] = create(settings)
        folder = folders[name]
        # A process that did not see what others wrote to the folders starts with nothing.
        forget_sites()
        first = 2
        nodes = {}
        if on is not None:
            # Ids of their own: to the workers, runs are of different federations.
            nodes, first = on.nodes, max(on.nodes, default=1) + 1
            nodes.clear()
        nodes |= dict(enumerate(SimulatedSites(settings, folder).values(), start=first))
        grid = on.grid if on else InProcessGrid(client_app, nodes, workers=workers)
        if stop_after:
            observer = StopsAfter(stop_after)
        watched = OBSERVER.set(observer or Observer())
        try:
            run_rounds(grid, settings, folder)
        finally:
            OBSERVER.reset(watched)
            if on is None:
                grid.close()
        layout = Evaluator(settings).layout
        return np.array(load_checkpoint(folder.checkpoint, layout).model)

    run.evidence = lambda name: Run(folders[name]).evidence
    run.folder = folders.get
    run.reports = lambda name: list(folders[name].reports())
    yield run
    forget_sites()


@pytest.fixture
def served(monkeypatch):
    """Lists (worker, node) of each message, and gives a node's next one to the other worker.

    An idle worker helps only one that is busy, so each worker takes some of what is given it.
    """
    found = []
    take = Waiting.take

    def noted(self, worker):
        turn = take(self, worker)
        if turn is not None:
            found.append((worker, turn.node))
            self._owner[turn.node] = 1 - worker
        return turn

    monkeypatch.setattr(Waiting, "take", noted)
    return found
