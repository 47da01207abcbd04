"""What all grids of ours have in common."""

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid


class OwnGrid(Grid):
    """A Flower grid that makes messages as Flower's own grids do."""

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Returns a message to a node; Flower's older way to make one."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)
