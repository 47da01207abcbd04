"""The Flower ClientApp of a site: the same object in simulation and in deployment."""

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from lepton_client.door import refuse_without_site
from lepton_client.site import open_site
from lepton_client.work import introduce, train
from lepton_common.messages import HELLO, TRAIN

app = ClientApp()


@app.train()
def handle_train(message: Message, context: Context) -> Message:
    """Answers a training request."""
    return _answer(message, context)


@app.query(HELLO.removeprefix("query."))
def handle_hello(message: Message, context: Context) -> Message:
    """Answers a hello."""
    return _answer(message, context)


def _answer(message: Message, context: Context) -> Message:
    # Flower would send an exception's text to the server, so every exception ends here and
    # only its name leaves.
    try:
        site = open_site(str(context.node_config["site"]))
    except Exception as error:
        return refuse_without_site(message, error)
    with site.lock:
        try:
            handle = train if message.metadata.message_type == TRAIN else introduce
            return handle(message, site)
        except Exception as error:
            site.keep_trace(error)
            return site.door.refuse(message, error)
