"""The server's side: FedAvg over all sites, which writes down when each round ended."""

import time
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Runs the rounds."""
    config = context.run_config

    def mark(round_: int, arrays: ArrayRecord) -> None:
        with Path(str(config["marks"])).open("a") as file:
            file.write(f"{round_} {time.time()}\n")

    sites = int(config["sites"])
    model = np.random.default_rng(0).normal(0, 0.01, int(config["parameters"])).astype(np.float32)
    strategy = FedAvg(fraction_evaluate=0.0, min_train_nodes=sites, min_available_nodes=sites)
    strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord([model]),
        num_rounds=int(config["rounds"]),
        evaluate_fn=mark,
    )
