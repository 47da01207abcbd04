"""server-eval: the server."""

from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAdam

app = ServerApp()


def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
    held_back = np.loadtxt(Path("data") / "held_back.csv")
    (weights,) = arrays.to_numpy_ndarrays()
    return MetricRecord({"distance": float(np.abs(weights - held_back).sum())})


@app.main()
def main(grid: Grid, context: Context) -> None:
    FedAdam(fraction_evaluate=0.0).start(
        grid=grid,
        initial_arrays=ArrayRecord([np.zeros(3)]),
        num_rounds=context.run_config["num-server-rounds"],
        evaluate_fn=evaluate,
    )
