"""torch-cyclic: the client."""

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from torch_cyclic.task import Net, load_data, test
from torch_cyclic.task import train as train_fn

app = ClientApp()


def _setup(msg: Message, context: Context):
    net = Net()
    net.load_state_dict(msg.content["arrays"].to_torch_state_dict())
    device = torch.device("cpu")
    loader = load_data(context.node_config["partition-id"], context.run_config["batch-size"])
    return net.to(device), loader


@app.train()
def train(msg: Message, context: Context) -> Message:
    net, loader = _setup(msg, context)
    loss = train_fn(net, loader)
    content = RecordDict(
        {
            "arrays": ArrayRecord(net.state_dict()),
            "metrics": MetricRecord({"train_loss": loss, "num-examples": len(loader.dataset)}),
        }
    )
    return Message(content=content, reply_to=msg)


@app.evaluate()
def evaluate(msg: Message, context: Context) -> Message:
    net, loader = _setup(msg, context)
    metrics = MetricRecord({"accuracy": test(net, loader), "num-examples": len(loader.dataset)})
    return Message(content=RecordDict({"metrics": metrics}), reply_to=msg)
