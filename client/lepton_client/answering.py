"""Answers a message at a site, so that no exception's text ever leaves."""

from collections.abc import Callable
from typing import Protocol

from flwr.app import Context, Message

from lepton_client.door import Door, refuse_without_site
from lepton_client.hosted.host import Host, open_host
from lepton_client.site import Site, forget_site, open_site
from lepton_common.errors import MalformedMessage


class _Answering(Protocol):
    @property
    def door(self) -> Door: ...

    def keep_trace(self, error: BaseException) -> None: ...


def answer_at_site(
    message: Message, context: Context, handle: Callable[[Message, Site], Message]
) -> Message:
    """Returns what ``handle`` releases under the site's lock, or the name of what went wrong."""
    try:
        site = open_site(str(context.node_config["site"]))
    except Exception as error:
        return refuse_without_site(message, error)

    def refreshed() -> Message:
        site.refresh()
        return handle(message, site)

    with site.lock:
        return _answered(message, site, refreshed)


def answer_at_host(
    message: Message, context: Context, handle: Callable[[Message, Host], Message]
) -> Message:
    """Returns what ``handle`` releases for many sites at once, or the name of what went wrong."""
    if "host" not in context.node_config:
        return answer_at_site(message, context, _no_host)
    try:
        host = open_host(str(context.node_config["host"]))
    except Exception as error:
        return refuse_without_site(message, error)
    return _answered(message, host, lambda: handle(message, host))


def _no_host(message: Message, site: Site) -> Message:
    raise MalformedMessage("This site answers for itself alone, and not as a host of others.")


def leave_site(context: Context) -> None:
    """Closes a simulated site that another of the owner's processes has served since."""
    forget_site(str(context.node_config["site"]))


def _answered(message: Message, site: _Answering, answer: Callable[[], Message]) -> Message:
    """Returns an answer; Flower would send an exception's text, so every exception ends here."""
    try:
        return answer()
    except Exception as error:
        site.keep_trace(error)
        return site.door.refuse(message, error)
