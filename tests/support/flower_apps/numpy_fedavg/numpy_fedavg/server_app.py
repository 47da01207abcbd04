"""numpy-fedavg: the server."""

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    config = context.run_config
    print(f"Running {config['title']}")
    strategy = FedAvg(fraction_train=1.0, fraction_evaluate=config["fraction-evaluate"])
    result = strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord([np.zeros(4)]),
        num_rounds=config["num-server-rounds"],
        train_config=ConfigRecord({"lr": config["learning-rate"]}),
    )
    # A relative path, as in Flower's own quickstarts.
    np.savez("final_model.npz", *result.arrays.to_numpy_ndarrays())
    print("Saved final_model.npz")
