"""Flower's SuperLink in this process: its state and its handlers, and connections that break."""

import httpx
from flwr.app import Message
from flwr.app.message import remove_content_from_message
from flwr.proto import fleet_pb2, heartbeat_pb2, message_pb2, runtime_pb2
from flwr.proto.task_pb2 import Task, TaskStatus
from flwr.server.superlink.linkstate.in_memory_linkstate import RunRecord
from flwr.supercore.constant import NOOP_FEDERATION_ID
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.inflatable.inflatable_utils import ObjectUnavailableError
from flwr.supercore.run import Run
from flwr.superlink.federation import NoOpFederationManager
from flwr.superlink.servicer.fleet import fleet_handlers
from flwr.superlink.servicer.runtime import runtime_handlers

from lepton_common.flower.link_state import WholeMessages
from lepton_common.flower.message_id import assign_message_id
from lepton_common.flower.received import pull_message
from lepton_common.flower.superlink_process import FileObjectStore
from lepton_common.flower.task_identity import speak_for

RUN = 5


class SuperLinkInside:
    """A SuperLink with one node and one run, which answers the fleet API's requests.

    Attributes:
        calls: names of the fleet API's calls so far.
        cut: number of the call at which a connection breaks; None for never.
        heard: whether the call that breaks was heard, and only its answer lost.
        replies: what the run's app was given, by the ids of what it asked.
    """

    def __init__(self, folder, state=WholeMessages):
        self.state = state(NoOpFederationManager(), FileObjectStore(folder))
        self.node = self.state.create_node("owner", "owner", b"key", 30.0)
        self.state.activate_node(self.node, 30.0)
        run = Run.create_empty(RUN)
        run.primary_task_id, run.federation_id = RUN, NOOP_FEDERATION_ID
        self.state.run_ids[RUN] = RunRecord(run=run)
        self.task = Task(task_id=RUN, run_id=RUN, status=TaskStatus(status="running"))
        self.state.task_store[RUN] = self.task
        self.calls, self.cut, self.heard, self.replies = [], None, False, {}
        self._asked = set()

    def ask(self, content, ttl=60.0):
        """Sends the node a message, as the run's app does; returns its id."""
        speak_for(RUN, 1)
        message = Message(content, dst_node_id=self.node, message_type="train", ttl=ttl)
        assign_message_id(message, message.object_id)
        session = self.state.start_session(RUN)
        tree = get_object_tree(message)
        bare = remove_content_from_message(message)
        stored, missing = self.state.store_message_and_object_tree(bare, tree, session)
        assert stored
        contents = {name: one.deflate() for name, one in get_all_nested_objects(message).items()}
        for name in missing:
            assert self.state.store_object(RUN, session, name, contents[name])
        self._asked.add(message.metadata.message_id)
        return message.metadata.message_id

    def poll(self):
        """Takes the replies that it is told of, as the run's app does again and again."""
        asked = runtime_pb2.PullAppMessagesRequest(message_ids=sorted(self._asked))
        pulled = runtime_handlers.pull_messages(asked, self.state, self.task)
        for told, tree in zip(pulled.messages_list, pulled.message_object_trees, strict=True):
            self._asked.discard(told.metadata.reply_to_message_id)
            reply = pull_message(told.metadata.message_id, tree, self._object)
            self.state.object_store.delete(told.metadata.message_id)
            before = self.replies.setdefault(told.metadata.reply_to_message_id, [])
            before.append(reply)

    def _object(self, name):
        content = self.state.get_object(RUN, name)
        if not content:
            raise ObjectUnavailableError(name)
        assert not content.startswith(self.state.object_store.mark), "too large for this one"
        return content

    def __call__(self, request):
        """Answers a request, unless the connection breaks."""
        call = request.url.path.rsplit("/", 1)[1]
        self.calls.append(call)
        breaks = self.cut == len(self.calls)
        if breaks and not self.heard:
            raise httpx.WriteError("broken", request=request)
        answer = self._answer(call, request.content)
        if breaks:
            raise httpx.ReadError("broken", request=request)
        headers = {"content-type": "application/x-protobuf"}
        return httpx.Response(200, content=answer.SerializeToString(), headers=headers)

    def _answer(self, call, body):
        state, store = self.state, self.state.object_store
        if call == "pull-messages":
            request = fleet_pb2.PullMessagesRequest.FromString(body)
            return fleet_handlers.pull_messages(request, state, store)
        if call == "push-messages":
            request = fleet_pb2.PushMessagesRequest.FromString(body)
            return fleet_handlers.push_messages(request, state)
        if call == "push-object":
            request = message_pb2.PushObjectRequest.FromString(body)
            return fleet_handlers.push_object(request, state)
        if call == "pull-object":
            request = message_pb2.PullObjectRequest.FromString(body)
            return fleet_handlers.pull_object(request, state)
        if call == "confirm-message-received":
            request = message_pb2.ConfirmMessageReceivedRequest.FromString(body)
            return fleet_handlers.confirm_message_received(request, state, store)
        if call == "send-node-heartbeat":
            return heartbeat_pb2.SendNodeHeartbeatResponse(success=True)
        assert call == "deactivate-node", call
        return fleet_pb2.DeactivateNodeResponse()
