"""Tells Flower which run this process speaks for; ``Message()`` cannot be made without it."""


def speak_for(run_id: int, node_id: int) -> None:
    """Sets the process-wide identity from which Flower fills the metadata of new messages."""
    from flwr.supercore.task_identity import TaskIdentity

    TaskIdentity.task_id = 1
    TaskIdentity.run_id = run_id
    TaskIdentity.node_id = node_id
