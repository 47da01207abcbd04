"""numpy-fedavg: the client."""

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from numpy_fedavg import task

app = ClientApp()


def _data(context: Context):
    partition, count = context.node_config["partition-id"], context.node_config["num-partitions"]
    return task.load_data(partition, count, context.run_config["data.rows"])


@app.train()
def train(msg: Message, context: Context) -> Message:
    features, targets = _data(context)
    (weights,) = msg.content["arrays"].to_numpy_ndarrays()
    weights, loss = task.train(weights, features, targets, msg.content["config"]["lr"])
    metrics = MetricRecord({"train_loss": loss, "num-examples": len(features)})
    content = RecordDict({"arrays": ArrayRecord([weights]), "metrics": metrics})
    return Message(content=content, reply_to=msg)


@app.evaluate()
def evaluate(msg: Message, context: Context) -> Message:
    features, targets = _data(context)
    (weights,) = msg.content["arrays"].to_numpy_ndarrays()
    metrics = MetricRecord(
        {"eval_loss": task.evaluate(weights, features, targets), "num-examples": len(features)}
    )
    return Message(content=RecordDict({"metrics": metrics}), reply_to=msg)
