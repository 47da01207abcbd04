"""mods-queries: the client."""

import numpy as np
from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.mod import arrays_size_mod, message_size_mod
from flwr.clientapp.typing import ClientAppCallable


def tracing_mod(msg: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Tells the app that it came by here, and the server that it went by here."""
    msg.content["trace"] = ConfigRecord({"seen": ["in"]})
    reply = call_next(msg, context)
    reply.content["trace"] = ConfigRecord({"seen": [*msg.content["trace"]["seen"], "out"]})
    return reply


def doubling_mod(msg: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Changes the question in place."""
    msg.content["question"]["sample"] *= 2
    return call_next(msg, context)


app = ClientApp(mods=[tracing_mod, message_size_mod])


def _values(msg: Message, context: Context) -> np.ndarray:
    generator = np.random.default_rng(context.node_config["partition-id"])
    return generator.normal(size=msg.content["question"]["sample"])


@app.query("mean_of")
def mean_of(msg: Message, context: Context) -> Message:
    values = _values(msg, context)
    metrics = MetricRecord({"mean": float(values.mean()), "count": len(values)})
    return Message(RecordDict({"answer": metrics}), reply_to=msg)


@app.query("histogram", mods=[doubling_mod, arrays_size_mod])
def histogram(msg: Message, context: Context) -> Message:
    counts, _ = np.histogram(_values(msg, context), bins=4, range=(-2, 2))
    metrics = MetricRecord({"counts": counts.tolist(), "partition": _partition(context)})
    return Message(RecordDict({"answer": metrics}), reply_to=msg)


@app.query()
def who(msg: Message, context: Context) -> Message:
    metrics = MetricRecord({"partition": _partition(context)})
    return Message(RecordDict({"answer": metrics}), reply_to=msg)


def _partition(context: Context) -> int:
    return context.node_config["partition-id"]
