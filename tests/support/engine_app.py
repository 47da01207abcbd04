"""ClientApps that worker processes import by name, and what they say of the process they are in."""

import os
import signal
import time
from pathlib import Path

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp

from lepton_common.arrays import pack

app = ClientApp()
forgotten = []


def forget(context):
    forgotten.append(context.node_id)


def _reply(message, **facts):
    return Message(RecordDict({"said": ConfigRecord(facts)}), reply_to=message)


@app.train()
def train(message, context):
    seen = int(context.state.config_records.get("seen", {"times": 0})["times"]) + 1
    context.state["seen"] = ConfigRecord({"times": seen})
    return _reply(
        message,
        node=context.node_id,
        site=str(context.node_config.get("site", "")),
        seen=seen,
        process=os.getpid(),
        threads=torch.get_num_threads(),
        forgotten=forgotten,
    )


@app.query("wait")
def wait(message, context):
    """Waits until a file is there, and dies, where that is asked, as if it were killed."""
    asked = message.content["asked"]
    if context.node_id in asked["dies"]:
        os.kill(os.getpid(), signal.SIGKILL)
    Path(f"{asked['begun']}-{context.node_id}").touch()
    while asked["until"] and not Path(asked["until"]).exists():
        time.sleep(0.01)
    return train(message, context)


@app.query("fail")
def fail(message, context):
    raise ValueError("the age of patient 17 is 63")


@app.query("nothing")
def nothing(message, context):
    return None


@app.query("another")
def another(message, context):
    """Answers a message that it was never asked."""
    reply = train(message, context)
    reply.metadata.__dict__["_reply_to_message_id"] = "another"
    return reply


@app.query("arrays")
def arrays(message, context):
    """Returns what came, changed by the node's number, and whether it could be written to."""
    packed, plain = message.content["model"]["packed"], message.content["model"]["plain"]
    vector = np.frombuffer(packed.data, np.float32)
    back = ArrayRecord(
        {"packed": pack(vector + context.node_id), "plain": Array(plain.numpy() + context.node_id)}
    )
    facts = ConfigRecord(
        {
            "writeable": bool(vector.flags.writeable),
            "mapped": type(packed.data).__name__,
            "copied": type(plain.data).__name__,
            "process": os.getpid(),
        }
    )
    return Message(RecordDict({"back": back, "said": facts}), reply_to=message)
