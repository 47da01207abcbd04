"""Flower's words for a reply that will not come are told from a site's own."""

import time

import pytest
from flwr.app import Error, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.server.superlink.linkstate.utils import (
    create_message_error_unavailable_ins_message,
    create_message_error_unavailable_res_message,
)

from lepton_common.flower.lost import expired, why_lost


def test_what_expired_timed_out_and_who_is_gone_is_unavailable(speaking):
    asked = Message(RecordDict(), dst_node_id=2, message_type="train", ttl=5.0).metadata
    asked.__dict__["_created_at"] = time.time()
    words = create_message_error_unavailable_res_message
    expired, gone = words(asked, "msg_unavail"), words(asked, "node_unavail")
    never = create_message_error_unavailable_ins_message("a1", 1)
    assert [why_lost(m.error) for m in (expired, never, gone)] == [
        "TimedOut", "TimedOut", "NodeUnavailable",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "error",
    [
        Error(100, "BudgetSpent"),
        Error(ErrorCode.MESSAGE_UNAVAILABLE, "Reply message objects are unavailable."),
        Error(ErrorCode.CLIENT_APP_CRASHED, "It crashed."),
    ],
)
def test_any_other_error_is_not_lost(error):
    assert why_lost(error) is None


def test_a_grid_of_ours_says_the_same():
    answer = expired("a1", 7)
    assert why_lost(answer.error) == "TimedOut"
    assert (answer.metadata.reply_to_message_id, answer.metadata.run_id) == ("a1", 7)
