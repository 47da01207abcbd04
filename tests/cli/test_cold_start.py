"""What a run imports before its first round: nothing that takes long and is not used."""

import json
import os
import subprocess
import sys

import pytest

_SCRIPT = """
import json, sys
from lepton_cli.compose import compose_settings
from lepton_cli.simulation import start
from lepton_server.progress import Observer

class Looks(Observer):
    def on_round(self, report):
        print(json.dumps(sorted(sys.modules)))
        self.stop_requested = True

start(compose_settings(sys.argv[1:]), Looks())
"""
_HEAVY = {"dp_accounting", "matplotlib", "opacus", "pandas", "polars", "ray", "scipy.linalg",
          "scipy.optimize", "scipy.stats", "sklearn", "sympy"}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["inprocess", "vectorized"])
def test_a_plain_run_gets_to_its_first_round_without_what_it_does_not_use(tmp_path, engine):
    words = ("task=pneumoniamnist", "data.root=made-up", "sites=4", "rounds=2", "privacy=none",
             "secagg=none", "model=mlp", "baselines=false", f"engine={engine}")  # fmt: skip
    ended = subprocess.run(
        [sys.executable, "-c", _SCRIPT, *words], cwd=tmp_path, capture_output=True, text=True,
        timeout=300, check=False, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert "Stopped after round 1 of 2" in ended.stderr
    loaded = set(json.loads(ended.stdout.splitlines()[0]))
    assert "torch" in loaded
    assert not loaded & _HEAVY
