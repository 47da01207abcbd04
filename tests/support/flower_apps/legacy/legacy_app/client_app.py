"""legacy: the client."""

import numpy as np
from flwr.client import NumPyClient
from flwr.clientapp import ClientApp


class Client(NumPyClient):
    """Adds its partition to the model."""

    def __init__(self, partition):
        self.partition = partition

    def fit(self, parameters, config):
        return [p + self.partition for p in parameters], 1 + self.partition, {"lr": config["lr"]}

    def evaluate(self, parameters, config):
        return float(np.sum(parameters[0])), 1, {"accuracy": self.partition / 10}


def client_fn(context):
    return Client(context.node_config["partition-id"]).to_client()


app = ClientApp(client_fn=client_fn)
