"""Answers a message at a site: under its lock, and so that no exception's text ever leaves."""

from collections.abc import Callable

from flwr.app import Context, Message

from lepton_client.door import refuse_without_site
from lepton_client.site import Site, forget_site, open_site


def answer_at_site(
    message: Message, context: Context, handle: Callable[[Message, Site], Message]
) -> Message:
    """Returns what ``handle`` releases, or the name of what went wrong.

    Flower would send an exception's text to the server, so every exception ends here.
    """
    try:
        site = open_site(str(context.node_config["site"]))
    except Exception as error:
        return refuse_without_site(message, error)
    with site.lock:
        try:
            site.refresh()
            return handle(message, site)
        except Exception as error:
            site.keep_trace(error)
            return site.door.refuse(message, error)


def leave_site(context: Context) -> None:
    """Closes a simulated site that another of the owner's processes has served since."""
    forget_site(str(context.node_config["site"]))
