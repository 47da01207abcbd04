"""A reply counts only from the site that was asked, as that site has signed it."""

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from lepton_common.flower.task_identity import speak_for
from lepton_common.identity.keys import SigningKey
from lepton_common.identity.sealed import sign_reply
from lepton_server.engines.inprocess import InProcessGrid
from lepton_server.gateway.nodes import KnownNode, read_nodes, write_nodes
from lepton_server.gateway.signed_grid import SignedGrid

KEYS = {2: SigningKey.generate(), 3: SigningKey.generate()}
NODES = {
    node: KnownNode(node=node, name=f"site-{node}", public_key=key.public_hex)
    for node, key in KEYS.items()
}


def content(value=1.0):
    return RecordDict(
        {
            "update": ArrayRecord({"vector": Array(np.full(3, value, np.float32))}),
            "receipt": ConfigRecord({"json": "{}"}),
            "metrics": MetricRecord({"loss": value}),
        }
    )


def honest(message, context):
    reply = Message(content(), reply_to=message)
    sign_reply(reply, KEYS[context.node_id])
    return reply


def unsigned(message, context):
    return Message(content(), reply_to=message)


def another_key(message, context):
    reply = Message(content(), reply_to=message)
    sign_reply(reply, SigningKey.generate())
    return reply


def the_other_site(message, context):
    reply = Message(content(), reply_to=message)
    sign_reply(reply, KEYS[5 - context.node_id])
    return reply


def altered(message, context):
    reply = honest(message, context)
    reply.content["update"] = content(2.0)["update"]
    return reply


def added_to(message, context):
    reply = honest(message, context)
    reply.content["more"] = ConfigRecord({"a": 1})
    return reply


def junk(message, context):
    reply = Message(content(), reply_to=message)
    reply.content["sender"] = ConfigRecord({"signature": "text"})
    return reply


_KEPT = []


def replayed(message, context):
    reply = honest(message, context)
    _KEPT.append(reply.content)
    return Message(_KEPT[0], reply_to=message)


@pytest.fixture
def woken():
    """The names of the sites that were woken up, in order."""
    return []


@pytest.fixture
def ask(woken):
    """Returns what comes of asking both nodes, once."""
    grids = []

    def call(app, nodes=NODES, times=1):
        inner = InProcessGrid(app, {2: {}, 3: {}})
        grids.append(inner)
        grid = SignedGrid(inner, nodes, lambda sites: woken.extend(sorted(sites)))
        for _ in range(times):
            messages = [Message(content(), node, "train") for node in grid.get_node_ids()]
            replies = list(grid.send_and_receive(messages, timeout=5.0))
        return replies

    speak_for(1, 1)
    yield call
    for grid in grids:
        grid.close()


def test_what_a_site_has_signed_comes_through_without_the_signature(ask):
    replies = ask(honest)
    assert len(replies) == 2
    for reply in replies:
        assert set(reply.content) == {"update", "receipt", "metrics"}
        assert reply.content["metrics"]["loss"] == 1.0


@pytest.mark.parametrize("app", [unsigned, another_key, the_other_site, altered, added_to, junk])
def test_any_other_reply_is_a_bad_signature(ask, app):
    for reply in ask(app):
        assert reply.error.reason == "BadSignature"


def test_a_reply_to_an_earlier_message_is_none_to_a_later_one(ask):
    _KEPT.clear()
    assert all(reply.has_error() for reply in ask(replayed, times=2))


def test_nodes_that_the_roster_does_not_know_are_not_asked(ask):
    replies = ask(honest, nodes={2: NODES[2]})
    assert len(replies) == 1


def test_whoever_is_asked_is_woken_up(ask, woken):
    ask(honest, times=2)
    assert woken == 2 * sorted(node.name for node in NODES.values())


def test_nodes_are_kept_on_disk(tmp_path):
    (tmp_path / "gateway").mkdir()
    write_nodes(tmp_path, list(NODES.values()))
    assert read_nodes(tmp_path) == NODES
