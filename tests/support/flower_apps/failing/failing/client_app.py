"""failing: the client."""

import os
import signal
import sys

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def train(msg: Message, context: Context):
    partition = context.node_config["partition-id"]
    if partition == 0 and context.run_config["server-fails"] == "interrupt":
        os.kill(os.getpid(), signal.SIGINT)  # as Ctrl-C does
    if partition == 1:
        raise ZeroDivisionError("nothing to divide by")
    if partition == 2:
        return None
    if partition == 3:
        return {"arrays": 1}
    if partition == 4:
        sys.exit(3)
    if partition == 5:
        return msg
    if partition == 6:
        context.run_config["num-server-rounds"] = 100
    (weights,) = msg.content["arrays"].to_numpy_ndarrays()
    metrics = MetricRecord({"num-examples": 10 + partition})
    content = RecordDict(
        {"arrays": ArrayRecord([weights + np.float32(partition + 1)]), "metrics": metrics}
    )
    return Message(content, reply_to=msg)
