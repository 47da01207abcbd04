"""Contract test: Flower fills the metadata of messages from the identity of the process."""

import pytest
from flwr.app import Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from lepton_common.flower.task_identity import speak_for


@pytest.fixture
def unknown():
    """Forgets the identity for one test."""
    names = ("_task_id", "_run_id", "_node_id")
    before = {name: getattr(TaskIdentity, name) for name in names}
    for name in names:
        setattr(TaskIdentity, name, None)
    yield
    for name, value in before.items():
        setattr(TaskIdentity, name, value)


def test_flower_still_keeps_the_identity_under_these_names():
    for name in ("task_id", "run_id", "node_id"):
        assert isinstance(getattr(type(TaskIdentity), name, None), property), (
            f"Flower renamed TaskIdentity.{name}: see flower/task_identity.py"
        )


def test_a_message_comes_from_whom_the_process_speaks_for(unknown):
    with pytest.raises(RuntimeError):
        Message(RecordDict(), dst_node_id=2, message_type="train")
    speak_for(17, 3)
    metadata = Message(RecordDict(), dst_node_id=2, message_type="train").metadata
    assert (metadata.run_id, metadata.src_node_id, metadata.dst_node_id) == (17, 3, 2)
