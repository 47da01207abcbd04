"""Whatever kind of message comes, the agent answers it, by the door."""

import pytest
from flwr.app import Message, RecordDict
from toy_site import make_site

from lepton_client.agent import _answer
from lepton_client.site import open_site
from lepton_common.audit import read_records
from lepton_common.flower.message_id import assign_message_id

__all__ = ["make_site"]


class Sent:
    """A node that keeps what it is to send."""

    node_id = 7

    def __init__(self):
        self.replies = []

    def context(self, run, config):
        from flwr.app import Context

        return Context(run, self.node_id, dict(config), RecordDict(), {})

    def send(self, reply, seconds):
        self.replies.append(reply)


@pytest.mark.parametrize("kind", ["query.nothing", "train.nothing", "evaluate"])
def test_a_message_of_an_unknown_kind_is_refused_by_name(make_site, speaking, kind):
    site = open_site(str(make_site().folder))
    message, node = Message(RecordDict(), dst_node_id=7, message_type=kind), Sent()
    assign_message_id(message, "a1")
    _answer(node, message, site.folder, site)
    assert [reply.error.reason for reply in node.replies] == ["MalformedMessage"]
    last = list(read_records(site.folder / "audit.jsonl"))[-1]
    assert (last.kind, last.body) == (
        "refusal",
        {"reply_to": "a1", "error": "MalformedMessage"},
    )
