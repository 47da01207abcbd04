"""A job on NVFlare's simulator, its clients the cohort, which takes its turn after each round."""

import json
import os
from pathlib import Path

import job
from nvflare.private.fed.app.simulator.simulator_runner import SimulatorRunner

_PARTS = "nvflare_parts"


def write_job(folder: Path) -> None:
    """Writes the job's folder, in NVFlare's form."""
    config = folder / "app" / "config"
    config.mkdir(parents=True)
    (folder / "app" / "custom").mkdir()
    workflow = {"num_clients": job.COHORT, "num_rounds": job.MOST_ROUNDS}
    meta = {
        "name": "bench",
        "min_clients": job.COHORT,
        "resource_spec": {},
        "deploy_map": {"app": ["@ALL"]},
    }
    server = {
        "format_version": 2,
        "workflows": [{"id": "fedavg", "path": f"{_PARTS}.TakingTurns", "args": workflow}],
        "components": [],
        "task_data_filters": [],
        "task_result_filters": [],
    }
    client = {
        "format_version": 2,
        "executors": [{"tasks": ["train"], "executor": {"path": f"{_PARTS}.Training", "args": {}}}],
        "components": [],
        "task_data_filters": [],
        "task_result_filters": [],
    }
    (folder / "meta.json").write_text(json.dumps(meta))
    (config / "config_fed_server.json").write_text(json.dumps(server))
    (config / "config_fed_client.json").write_text(json.dumps(client))


if __name__ == "__main__":
    here = Path(os.environ["LEPTON_BENCH_TURNS"])
    write_job(here / "job")
    SimulatorRunner(
        job_folder=str(here / "job"),
        workspace=str(here / "workspace"),
        n_clients=job.COHORT,
        threads=min(job.COHORT, os.cpu_count() or 1),
    ).run()
