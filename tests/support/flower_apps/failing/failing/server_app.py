"""failing: the server."""

import json
import sys
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()
ERRORS: list[list] = []


class Noting(FedAvg):
    """FedAvg that writes down the errors."""

    def aggregate_train(self, server_round, replies):
        replies = list(replies)
        for reply in replies:
            if reply.has_error():
                error = reply.error
                ERRORS.append([server_round, reply.metadata.src_node_id, error.code, error.reason])
        return super().aggregate_train(server_round, replies)


@app.main()
def main(grid: Grid, context: Context) -> None:
    how = context.run_config["server-fails"]
    result = Noting(fraction_evaluate=0.0).start(
        grid=grid,
        initial_arrays=ArrayRecord([np.zeros(2, dtype=np.float32)]),
        num_rounds=context.run_config["num-server-rounds"],
    )
    (weights,) = result.arrays.to_numpy_ndarrays()
    Path("found.json").write_text(json.dumps({"errors": ERRORS, "weights": weights.tolist()}))
    if how == "raise":
        raise LookupError("the model was not found")
    if how == "exit":
        sys.exit(7)
    if how == "leave":
        sys.exit(0)
