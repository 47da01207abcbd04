"""torch-cyclic: the server."""

import torch
from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp

from torch_cyclic.strategy import Cyclic
from torch_cyclic.task import initial

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    result = Cyclic().start(
        grid=grid,
        initial_arrays=ArrayRecord(initial().state_dict()),
        num_rounds=context.run_config["num-server-rounds"],
    )
    torch.save(result.arrays.to_torch_state_dict(), "final_model.pt")
