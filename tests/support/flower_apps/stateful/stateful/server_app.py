"""stateful: the server, which checks what the nodes remember."""

import numpy as np
from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()


def check(server_round: int, replies) -> None:
    for reply in replies:
        metrics = reply.content["metrics"]
        partition = metrics["partition"]
        # Node 1 failed in the second round, and what it had changed by then is gone.
        missed = [2] if partition == 1 and server_round > 2 else []
        rounds = [r for r in range(server_round + 1) if r not in missed]
        assert metrics["rounds"] == rounds, (partition, metrics["rounds"])
        assert metrics["calls"] == len(rounds) - 1, (partition, metrics["calls"])
        (own,) = reply.content["arrays"].to_numpy_ndarrays()
        assert np.array_equal(own, np.full(3, partition * metrics["calls"], dtype=float))


class Checking(FedAvg):
    """FedAvg that looks at single replies, as it may."""

    def aggregate_train(self, server_round, replies):
        replies = list(replies)
        whole = [reply for reply in replies if reply.has_content()]
        check(server_round, whole)
        for reply in whole:
            # The server owns what it was sent.
            reply.content["metrics"]["partition"] = -1
            reply.content["metrics"]["calls"] = -1
        return reply.content["arrays"], MetricRecord({"answered": len(whole)})


@app.main()
def main(grid: Grid, context: Context) -> None:
    strategy = Checking(fraction_evaluate=0.0)
    result = strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord([np.zeros(3)]),
        num_rounds=context.run_config["num-server-rounds"],
    )
    answered = [m["answered"] for m in result.train_metrics_clientapp.values()]
    print(f"answered: {answered}")
