"""Whole runs of small federations, in which sites and the server may fail at any point."""

import pytest
from flwr.app import Error, Message

from lepton_cli.simulated_sites import SimulatedSites
from lepton_client.app import app as client_app
from lepton_client.site import forget_sites
from lepton_common.messages import TRAIN
from lepton_server.engines.inprocess import InProcessGrid
from lepton_server.rounds import loop
from lepton_server.rounds.checkpoint import load_checkpoint
from lepton_server.rounds.evaluate import Evaluator
from lepton_server.run_folder import RunFolder

SETTINGS = {
    "task": "breast_cancer",
    "sites": 5,  # with f = 0: t = 3, and at least 3 in a sum
    "rounds": 2,
    "data.partition": "dirichlet",
    "data.alpha": 5.0,
    "secagg.mode": "sa1",
    "secagg.colluders": 0,
}


@pytest.fixture
def simulate(tmp_path, make_settings):
    """Returns a runner of a federation; each name has its sites and its run folder.

    ``fails(site, stage)`` says ``before`` (it never answers), ``after`` (its answer is lost), or
    gives a function that answers in the site's place.
    """

    def run(name="run-1", changes=None, *, kind=InProcessGrid, fails=lambda node, stage: None):
        settings = make_settings({**SETTINGS, **(changes or {})})
        folder = RunFolder(tmp_path / name)
        nodes = SimulatedSites(settings, folder)
        if not folder.path.exists():
            folder.path.mkdir()
            nodes.found()
        forget_sites()

        def app(message, context):
            stage = "hello"
            if message.metadata.message_type == TRAIN:
                fields = message.content.config_records.get("secagg")
                stage = fields["stage"] if fields else "mask"
            how = fails(context.node_id - 1, stage)
            if callable(how):
                return how(message, context)
            if how == "before":
                return Message(Error(100, "SiteBroke"), reply_to=message)
            reply = client_app(message, context)
            return Message(Error(100, "SiteBroke"), reply_to=message) if how else reply

        grid = kind(app, nodes)
        try:
            loop.run_rounds(grid, settings, folder)
        finally:
            grid.close()
        layout = Evaluator(settings).layout
        return load_checkpoint(folder.checkpoint, layout).model

    run.folder = lambda name="run-1": RunFolder(tmp_path / name)
    run.reports = lambda name="run-1": list(RunFolder(tmp_path / name).reports())
    run.start = lambda: Evaluator(make_settings(SETTINGS)).initial_vector()
    yield run
    forget_sites()


@pytest.fixture
def in_clear(simulate):
    """Returns the model of the same rounds without secure aggregation."""

    def run(changes=None, *, without=()):
        plain = {"secagg.mode": "none", **(changes or {})}
        return simulate(
            "plain", plain, fails=lambda site, stage: "before" if (site, stage) in without else None
        )

    return run
