"""legacy: the server."""

import json
from pathlib import Path

import numpy as np
from flwr.common import ndarrays_to_parameters, parameters_to_ndarrays
from flwr.server import ServerAppComponents, ServerConfig
from flwr.server.strategy import FedAvg
from flwr.serverapp import ServerApp


class Keeping(FedAvg):
    """FedAvg that keeps the last model."""

    def aggregate_fit(self, server_round, results, failures):
        parameters, metrics = super().aggregate_fit(server_round, results, failures)
        (weights,) = parameters_to_ndarrays(parameters)
        Path("model.json").write_text(json.dumps(weights.tolist()))
        return parameters, metrics


def server_fn(context):
    strategy = Keeping(
        initial_parameters=ndarrays_to_parameters([np.zeros(2)]),
        on_fit_config_fn=lambda server_round: {"lr": 0.1},
        min_available_clients=2,
    )
    rounds = context.run_config["num-server-rounds"]
    return ServerAppComponents(strategy=strategy, config=ServerConfig(num_rounds=rounds))


app = ServerApp(server_fn=server_fn)
