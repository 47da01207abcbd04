"""stateful: the client."""

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.lifespan()
def lifespan(context: Context):
    print(f"in {context.node_config['partition-id']}")
    yield
    print(f"out {context.node_config['partition-id']}")


@app.train()
def train(msg: Message, context: Context) -> Message:
    partition = context.node_config["partition-id"]
    if "counter" not in context.state:
        context.state["counter"] = MetricRecord({"calls": 0})
        context.state["notes"] = ConfigRecord({"rounds": [0]})
        context.state["personal"] = ArrayRecord([np.zeros(3)])
    context.state["counter"]["calls"] += 1
    context.state["notes"]["rounds"].append(msg.content["config"]["server-round"])
    (own,) = context.state["personal"].to_numpy_ndarrays()
    context.state["personal"] = ArrayRecord([own + partition])
    if partition == 1 and msg.content["config"]["server-round"] == 2:
        raise ValueError("the second round fails here, after the state was changed")
    if partition == 2 and msg.content["config"]["server-round"] == 3:
        # Begin anew, in another object.
        context.state = RecordDict({name: context.state[name] for name in context.state})
    metrics = MetricRecord(
        {
            "num-examples": 1,
            "partition": partition,
            "calls": context.state["counter"]["calls"],
            "rounds": context.state["notes"]["rounds"],
        }
    )
    # The state's own record travels.
    content = RecordDict({"arrays": context.state["personal"], "metrics": metrics})
    return Message(content, reply_to=msg)
