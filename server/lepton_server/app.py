"""The Flower ServerApp: settings -> parts -> loop; the same object in simulation and deployment."""

import json
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from lepton_common.settings_rules import parse_settings
from lepton_server.rounds.loop import run_rounds
from lepton_server.rounds.statistics import run_statistics
from lepton_server.run_folder import RunFolder

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Runs a federation, or asks it for statistics.

    The run's configuration holds ``settings``, the whole configuration as JSON, and
    ``run_folder``, where results land and where a broken run is continued from.
    """
    settings = parse_settings(json.loads(str(context.run_config["settings"])))
    run = run_statistics if settings.statistics.asked else run_rounds
    run(grid, settings, RunFolder(Path(str(context.run_config["run_folder"]))))
