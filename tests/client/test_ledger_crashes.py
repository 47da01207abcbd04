"""A training site killed a hundred times at random: its ledger never shows less than was spent."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

_SUPPORT = Path(__file__).parents[1] / "support"


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes")
def test_whenever_a_site_is_killed_what_left_is_in_the_ledger(tmp_path):
    done = subprocess.run(
        [sys.executable, _SUPPORT / "ledger_crashes.py", tmp_path / "site-1", "100", "7"],
        env={**os.environ, "PYTHONPATH": str(_SUPPORT)},
        capture_output=True,
        text=True,
        timeout=240,
        check=True,
    )
    kills = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(kills) == 100
    for before, after in itertools.pairwise(kills):
        assert after["charges"] >= before["charges"]  # nothing is ever refunded
    for kill in kills:
        assert kill["left"] <= kill["released"] <= kill["charges"]
        # After a kill the run goes on, or refuses because its steps are charged.
        assert set(kill["others"]) <= {"BudgetSpent"}
    # The kills came at all stages: before a charge, between charge and release, and after.
    assert kills[-1]["left"] > 5
    assert kills[-1]["charges"] > kills[-1]["released"] + 5
    assert any(kill["others"] for kill in kills)
