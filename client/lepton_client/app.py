"""The Flower ClientApp of a site: the same object in simulation and in deployment."""

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from lepton_client.answering import answer_at_site
from lepton_client.work import introduce, train
from lepton_common.messages import HELLO

app = ClientApp()


@app.train()
def handle_train(message: Message, context: Context) -> Message:
    """Answers a training request."""
    return answer_at_site(message, context, train)


@app.query(HELLO.removeprefix("query."))
def handle_hello(message: Message, context: Context) -> Message:
    """Answers a hello."""
    return answer_at_site(message, context, introduce)
