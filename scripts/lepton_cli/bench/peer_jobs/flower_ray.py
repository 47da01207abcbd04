"""The reference job on Flower's own Ray simulation; prints seconds per round after the first."""

import json
import os
import sys
import time

os.environ.update(FLWR_TELEMETRY_ENABLED="0", RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0")

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from torch import nn

CLIENTS, IMAGES, COHORT, BATCH, RATE = 1000, 50, 50, 10, 0.1
ROUNDS = int(sys.argv[1])


def net() -> nn.Module:
    """The reference network, 1,626,442 parameters."""
    return nn.Sequential(
        nn.Conv2d(3, 32, 3),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64 * 14 * 14, 128),
        nn.ReLU(),
        nn.Linear(128, 10),
    )


client_app = ClientApp()
server_app = ServerApp()


@client_app.train()
def train(message: Message, context: Context) -> Message:
    """Trains one client for one epoch."""
    generator = torch.Generator().manual_seed(int(context.node_config["partition-id"]))
    features = torch.randn(IMAGES, 3, 32, 32, generator=generator)
    labels = torch.randint(0, 10, (IMAGES,), generator=generator)
    model = net()
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    for rows in torch.randperm(IMAGES, generator=generator).split(BATCH):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(features[rows]), labels[rows]).backward()
        optimizer.step()
    metrics = MetricRecord({"num-examples": IMAGES})
    content = RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics})
    return Message(content, reply_to=message)


@server_app.main()
def main(grid: Grid, context: Context) -> None:
    """Runs the rounds, timing each."""
    ends: list[float] = []

    def stamp(round_: int, arrays: ArrayRecord) -> None:
        ends.append(time.perf_counter())

    strategy = FedAvg(
        fraction_train=COHORT / CLIENTS,
        fraction_evaluate=0.0,
        min_train_nodes=COHORT,
        min_available_nodes=CLIENTS,
    )
    strategy.start(grid, ArrayRecord(net().state_dict()), num_rounds=ROUNDS, evaluate_fn=stamp)
    # The first stamp is the initial model's, the second the warm-up round's.
    print(json.dumps({"seconds_per_round": (ends[-1] - ends[1]) / (len(ends) - 2)}), flush=True)


run_simulation(
    server_app=server_app,
    client_app=client_app,
    num_supernodes=CLIENTS,
    backend_config={"client_resources": {"num_cpus": 1}},
)
