"""What whoever watches a run at a coordinator reads."""

import json

from lepton_cli.commands.deployment import tell, tell_json
from lepton_common.control.control_pb2 import Run


def test_a_line_tells_the_round_its_figures_and_who_was_missing(capsys):
    run = Run(name="r", status="running", rounds=2, of_rounds=5, metrics='{"accuracy": 0.9}')
    tell(run)
    run.missing.update({"site-3": "TimedOut", "site-2": "QuietHours"})
    tell(run)
    alone, without = capsys.readouterr().out.splitlines()
    assert alone == "running: round 2 of 5  accuracy 0.9000"
    assert without == f"{alone}  without site-2 (QuietHours), site-3 (TimedOut)"
    tell_json(run)
    assert json.loads(capsys.readouterr().out)["missing"]["site-2"] == "QuietHours"
