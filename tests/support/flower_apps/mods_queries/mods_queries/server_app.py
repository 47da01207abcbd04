"""mods-queries: the server."""

import json
import time
from pathlib import Path

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    nodes = sorted(grid.get_node_ids())
    question = RecordDict({"question": ConfigRecord({"sample": context.run_config["sample"]})})
    found = {"nodes": len(nodes), "run": grid.run.run_id}

    # All nodes are sent one and the same content.
    for action in ("mean_of", "histogram"):
        messages = [Message(question, node, f"query.{action}") for node in nodes]
        replies = sorted(grid.send_and_receive(messages), key=lambda r: r.metadata.src_node_id)
        found[action] = [dict(reply.content["answer"]) for reply in replies]
        found[f"{action}_trace"] = [reply.content["trace"]["seen"] for reply in replies]
    found["question"] = dict(question["question"])

    # The older way, with ids in hand and polling.
    message = grid.create_message(question, "query", nodes[0], group_id="7", ttl=60.0)
    (message_id,) = grid.push_messages([message])
    replies = []
    while not replies:
        replies = list(grid.pull_messages([message_id]))
        time.sleep(0.01)
    found["who"] = dict(replies[0].content["answer"])
    found["group"] = replies[0].metadata.group_id
    (again,) = grid.pull_messages([message_id])
    found["again"] = again.error.code

    # Nobody there, nothing registered, and too late.
    found["nobody"] = list(grid.push_messages([Message(question, 99_999, "query")]))
    (unknown,) = grid.send_and_receive([Message(question, nodes[0], "query.nonsense")])
    found["unknown"] = [unknown.error.code, unknown.error.reason]
    late = Message(question, nodes[0], "query", ttl=0.001)
    time.sleep(0.01)
    found["late"] = list(grid.send_and_receive([late]))
    (message_id,) = grid.push_messages([Message(question, nodes[0], "query", ttl=0.5)])
    time.sleep(0.6)
    (expired,) = grid.pull_messages([message_id])
    error, told = expired.error, expired.metadata
    found["expired"] = [error.code, error.reason, told.src_node_id, told.message_type]
    Path("found.json").write_text(json.dumps(found))
