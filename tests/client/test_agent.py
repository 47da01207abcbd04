"""Whatever kind of message comes, the agent answers it by the door, and once."""

from types import SimpleNamespace

import pytest
from flwr.app import Message, RecordDict
from toy_site import make_site

from lepton_client.agent import _answer, _is_unique
from lepton_client.answered import Answered
from lepton_client.outbox import Outbox
from lepton_client.site import open_site
from lepton_common.audit import read_records
from lepton_common.flower.message_id import assign_message_id

__all__ = ["make_site"]


class Sent:
    """A node that keeps what it is to send."""

    node_id = 7

    def __init__(self):
        self.parcels = []

    def context(self, run, config):
        from flwr.app import Context

        return Context(run, self.node_id, dict(config), RecordDict(), {})

    def send(self, parcel):
        self.parcels.append(parcel)


def said(parcel):
    """The message that a parcel announces."""
    from flwr.common.serde import message_from_proto

    return message_from_proto(parcel.announced(7).messages_list[0])


@pytest.mark.parametrize("kind", ["query.nothing", "train.nothing", "evaluate"])
def test_a_message_of_an_unknown_kind_is_refused_by_name(make_site, speaking, kind):
    site = open_site(str(make_site().folder))
    message, node = Message(RecordDict(), dst_node_id=7, message_type=kind), Sent()
    assign_message_id(message, "a1")
    outbox, answered = Outbox(site.folder, site.key), Answered(site.audit)
    assert "a1" not in answered
    _answer(node, message, site, outbox)
    outbox.send_on(node)
    outbox.send_on(node)  # nothing is left
    assert [said(parcel).error.reason for parcel in node.parcels] == ["MalformedMessage"]
    assert "a1" in answered
    assert "a1" in Answered(site.audit)  # also of the next process
    assert "a2" not in answered
    last = list(read_records(site.folder / "audit.jsonl"))[-1]
    assert (last.kind, last.body) == (
        "refusal",
        {"reply_to": "a1", "error": "MalformedMessage"},
    )


@pytest.mark.parametrize(
    ("facts", "unique"),
    [({"charge": None}, False), ({"charge": "c1"}, True), ({"charge": None, "spec": "s1"}, True)],
    ids=["plain", "charged", "masked"],
)
def test_what_was_charged_or_masked_is_kept_past_a_crash(make_site, facts, unique):
    site = open_site(str(make_site().folder))
    site.audit.append("release", {"reply_to": "a1", "items": [], **facts})
    assert _is_unique(SimpleNamespace(reply_to="a1"), site) is unique
    assert not _is_unique(SimpleNamespace(reply_to="a2"), site)
