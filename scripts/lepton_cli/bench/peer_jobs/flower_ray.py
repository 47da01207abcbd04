"""A job on Flower's own Ray simulation, which takes its turn after each round."""

import os

os.environ.update(
    FLWR_TELEMETRY_ENABLED="0",
    RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0",
)

import job
import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from torch import nn
from turns import Turns

client_app = ClientApp()
server_app = ServerApp()


@client_app.train()
def train(message: Message, context: Context) -> Message:
    """Trains one client for one epoch."""
    torch.set_num_threads(1)  # one actor a core
    client = int(context.node_config["partition-id"])
    model = nn.Sequential(*job.layers())
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    steps = job.train(model, client, seed=client)
    metrics = MetricRecord({"num-examples": job.RECORDS, "steps": steps})
    content = RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics})
    return Message(content, reply_to=message)


def total(replies: list[RecordDict], weighted_by: str) -> MetricRecord:
    """Returns the steps of a whole round."""
    return MetricRecord({"steps": sum(int(reply["metrics"]["steps"]) for reply in replies)})


class Counting(FedAvg):
    """FedAvg that keeps the last round's number of steps."""

    steps = 0

    def aggregate_train(self, *words: object) -> tuple:
        """Aggregates as ever."""
        arrays, metrics = super().aggregate_train(*words)
        self.steps = 0 if metrics is None else int(metrics["steps"])
        return arrays, metrics


@server_app.main()
def main(grid: Grid, context: Context) -> None:
    """Runs the rounds."""
    turns = Turns()
    strategy = Counting(
        fraction_train=job.COHORT / job.CLIENTS,
        fraction_evaluate=0.0,
        min_train_nodes=job.COHORT,
        min_available_nodes=job.CLIENTS,
        train_metrics_aggr_fn=total,
    )

    def after(round_: int, arrays: ArrayRecord) -> None:
        if round_ and not turns.next(steps=strategy.steps):
            raise SystemExit

    first = ArrayRecord(nn.Sequential(*job.layers()).state_dict())
    strategy.start(grid, first, num_rounds=job.MOST_ROUNDS, evaluate_fn=after)


run_simulation(
    server_app=server_app,
    client_app=client_app,
    num_supernodes=job.CLIENTS,
    backend_config={"client_resources": {"num_cpus": 1}},
)
