"""A federation of ours on this machine: a coordinator and its sites as processes of their own."""

import contextlib
import io
import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib import resources
from pathlib import Path

import numpy as np
import yaml

import lepton_conf
from lepton_cli.bench.measured import Measured, free_port, measure_rounds, started
from lepton_cli.bench.square import name_of
from lepton_cli.compose import compose_settings
from lepton_cli.control import control, proposal_of
from lepton_cli.main import app
from lepton_common.control.control_pb2 import SubmitRequest
from lepton_common.errors import RunError

_TASK, _RECORDS, _UP_S = "breast_cancer", 455, 120.0
_PARTNERS, _LEAD, _SERVER = ("alice", "bob"), "dora", "server"


class Federation:
    """A federation that is up."""

    def __init__(self, folder: Path, server: int) -> None:
        self._folder, self._server = folder, server

    def measure(self, megabytes: int, sites: int, rounds: int, overrides: list[str]) -> Measured:
        """Runs some rounds.

        Args:
            megabytes: size of the model.
            sites: cohort of each round.
            rounds: how many.
            overrides: of the run's settings; how it is protected.

        Raises:
            RunError: it ended otherwise than by its last round.
        """
        settings = compose_settings(
            [f"task={_TASK}", f"rounds={rounds}", f"sites={sites}", *overrides,
             "train.local_epochs=null", "train.local_steps=1", "train.learning_rate=0.001",
             f"federation.cohort={sites}"]
        )  # fmt: skip
        person = self._folder / _LEAD
        proposal = proposal_of(person, replace(settings, model=name_of(megabytes)), None, None)
        with control(person) as service:
            name = service.Submit(SubmitRequest(proposal=proposal)).name
        run = self._folder / _SERVER / "runs" / name

        def finished() -> int:
            try:
                return len((run / "metrics.jsonl").read_text().splitlines())
            except OSError:
                return 0

        def failed() -> str | None:
            path = run / "outcome.json"
            outcome = json.loads(path.read_text()) if path.exists() else {"status": "finished"}
            return None if outcome["status"] == "finished" else json.dumps(outcome)

        return measure_rounds(self._server, rounds, finished, failed)


@contextmanager
def federation(sites: int) -> Iterator[Federation]:
    """Gives a federation of that many sites, in folders of its own, and ends it.

    Raises:
        RunError: it did not come up.
    """
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as processes:
        folder = Path(name)
        names = [f"site-{index + 1}" for index in range(sites)]
        _make(folder, names)
        parts = str(resources.files("lepton_cli.bench").joinpath("own_parts"))

        def start(kind: str, name: str) -> int:
            words = ["lepton", kind, "start", name]
            return processes.enter_context(
                started(words, folder, f"{name}.log", {"PYTHONPATH": parts})
            )

        server = start("server", _SERVER)
        for site in names:
            start("site", site)
        deadline = time.monotonic() + _UP_S
        while not all("Connected" in (folder / f"{site}.log").read_text() for site in names):
            if time.monotonic() > deadline:
                raise RunError("The federation does not come up; its logs say why.")
            time.sleep(0.1)
        yield Federation(folder, server)


def _make(folder: Path, names: list[str]) -> None:
    """Makes all folders, with the roster signed and sites that take what is asked of them."""

    def here(line: str) -> None:
        with contextlib.chdir(folder), contextlib.redirect_stdout(io.StringIO()):
            app(line.split(), standalone_mode=False)

    text = resources.files(lepton_conf).joinpath("policy/simulation.yaml").read_text()
    for partner in _PARTNERS:
        here(f"federation key {partner}.pem")
    for index, name in enumerate(names):
        here(f"site init {name} --name {name} --dataset {_TASK}")
        np.save(folder / name / "rows.npy", np.arange(index, _RECORDS, len(names)))
        path = folder / name / "site.yaml"
        file = yaml.safe_load(path.read_text())
        file["data"]["rows"] = "rows.npy"
        file["policy"] = yaml.safe_load(text.replace("1e-", "1.0e-"))
        file["launch"]["approval"] = "automatic"
        path.write_text(yaml.safe_dump(file))
    here(f"server init {_SERVER} --host localhost --port {free_port()}")
    here(f"person init {_LEAD} --name {_LEAD} --role lead")
    partners = " ".join(f"--partner {partner}.pem.pub" for partner in _PARTNERS)
    adds = " ".join(f"--add {entry}/join.json" for entry in (*names, _SERVER, _LEAD))
    here(f"federation init made --name bench --threshold 2 {partners} {adds}")
    for partner in _PARTNERS:
        here(f"federation sign made --key {partner}.pem --yes")
    here("federation publish made")
    root = (folder / "made" / "roster.root").read_text()
    kinds = [("site", name) for name in names] + [("server", _SERVER), ("person", _LEAD)]
    for kind, name in kinds:
        here(f"{kind} join {name} made --root {root}")
