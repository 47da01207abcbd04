"""The Flower ClientApp of a site: the same object in simulation and in deployment."""

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from lepton_client import work
from lepton_client.answering import answer_at_host, answer_at_site
from lepton_client.hosted import work as hosted
from lepton_common.hosting import ENROL, TRAIN_MANY
from lepton_common.messages import HELLO

app = ClientApp()


@app.train()
def handle_train(message: Message, context: Context) -> Message:
    """Answers a training request."""
    return answer_at_site(message, context, work.train)


@app.query(HELLO.removeprefix("query."))
def handle_hello(message: Message, context: Context) -> Message:
    """Answers a hello."""
    if "host" in context.node_config:
        return answer_at_host(message, context, hosted.introduce)
    return answer_at_site(message, context, work.introduce)


@app.train(TRAIN_MANY.removeprefix("train."))
def handle_train_many(message: Message, context: Context) -> Message:
    """Answers a training request to some sites of a host."""
    return answer_at_host(message, context, hosted.train)


@app.query(ENROL.removeprefix("query."))
def handle_enrol(message: Message, context: Context) -> Message:
    """Answers who some sites of a host are."""
    return answer_at_host(message, context, hosted.enrol)
