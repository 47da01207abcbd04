"""Flower's state in memory, but that messages cut off by a broken connection are not lost.

Stock, a message is told to its node once, whether or not that hears it; and a reply is told of
before all of it has come, after which its rest is taken from nobody any more.
"""

from flwr.app import Message
from flwr.server.superlink.linkstate.in_memory_linkstate import InMemoryLinkState
from flwr.supercore.object_store.in_memory_object_store import InMemoryObjectStore


class WholeMessages(InMemoryLinkState):
    """Tells of a message until its node has confirmed it, and of a reply once it is whole."""

    def get_message_ins(
        self, node_id: int, limit: int | None, *, run_id: int | None = None
    ) -> list[Message]:
        """Returns what a node has not been told yet; else what it has not confirmed yet."""
        found: list[Message] = super().get_message_ins(node_id, limit, run_id=run_id)
        if found:
            return found
        with self.lock:
            told = [
                message
                for message_id, message in self.message_ins_store.items()
                if message.metadata.dst_node_id == node_id
                and run_id in (None, message.metadata.run_id)
                and message_id not in self.message_ins_id_to_message_res_id
                # Confirming takes it out of there.
                and message_id in self.object_store
                and not self._is_finished_run(message.metadata.run_id)
            ]
        return told[:limit]

    def get_message_res(self, message_ids: set[str], run_id: int) -> list[Message]:
        """Returns the replies that are there, whole; of others at most that none will come."""
        with self.lock:
            replies = self.message_ins_id_to_message_res_id
            coming = {
                asked: replies.pop(asked)
                for asked in message_ids & set(replies)
                if not self._is_whole(replies[asked])
            }
            found: list[Message] = super().get_message_res(message_ids, run_id)
            given_up = {message.metadata.reply_to_message_id for message in found}
            for asked, reply in coming.items():
                if asked in given_up:
                    self.message_res_store.pop(reply, None)
                    self.object_store.delete(reply)
                elif reply in self.message_res_store:
                    replies[asked] = reply
        return found

    def delete_messages(self, message_ins_ids: set[str]) -> None:
        """Deletes messages and the replies to them, and what they say if nobody confirmed that."""
        super().delete_messages(message_ins_ids)
        for message_id in message_ins_ids:
            self.object_store.delete(message_id)

    def _is_whole(self, message_id: str) -> bool:
        store = self.object_store
        assert isinstance(store, InMemoryObjectStore), "state and objects are both in memory"
        with store.lock_store:
            left, seen = [message_id], set[str]()
            while left:
                name = left.pop()
                entry = store.store.get(name)
                if entry is None or not entry.is_available:
                    return False
                seen.add(name)
                left += [child for child in entry.child_object_ids if child not in seen]
        return True
