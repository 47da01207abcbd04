"""Contract test: a Flower message can be given its id."""

from flwr.app import ConfigRecord, Message, RecordDict

from lepton_common.flower.message_id import assign_message_id, with_content


def test_a_message_takes_the_id_it_is_given(speaking):
    message = Message(RecordDict(), dst_node_id=2, message_type="train")
    assert message.metadata.message_id == "", "Flower now gives ids itself: see message_id.py"
    assign_message_id(message, "message-7")
    assert message.metadata.message_id == "message-7", "Flower keeps ids elsewhere now"
    reply = Message(RecordDict(), reply_to=message)
    assert reply.metadata.reply_to_message_id == "message-7"


def test_a_message_can_say_something_else_and_keeps_its_own_words(speaking):
    message = Message(RecordDict(), dst_node_id=2, message_type="train")
    other = RecordDict({"said": ConfigRecord({"text": "else"})})
    assert with_content(message, other).content == other
    assert with_content(message, other).metadata == message.metadata
    assert message.content == RecordDict()
