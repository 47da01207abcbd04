"""The site's side: trains by adding a number to the model, another one at each site."""

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Returns the model, changed: what is the same at two sites would travel only once."""
    (model,) = message.content["arrays"].to_numpy_ndarrays()
    model = model + np.float32(1e-3 * (context.node_id % 1009 + 1))
    content = RecordDict(
        {"arrays": ArrayRecord([model]), "metrics": MetricRecord({"num-examples": 1})}
    )
    return Message(content, reply_to=message)
