"""A strategy that hands the model from one node to the next."""

from collections.abc import Iterable
from logging import INFO
from statistics import mean

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.common.logger import log
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy


class Cyclic(Strategy):
    """Trains at one node in each round and evaluates at all."""

    def summary(self) -> None:
        log(INFO, "\t└──> Cyclic: one node a round")

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        nodes = sorted(grid.get_node_ids())
        node = nodes[(server_round - 1) % len(nodes)]
        content = RecordDict({"arrays": arrays, "config": config})
        yield Message(content, dst_node_id=node, message_type=MessageType.TRAIN)

    def aggregate_train(self, server_round: int, replies: Iterable[Message]):
        for reply in replies:
            if reply.has_content():
                return reply.content["arrays"], reply.content["metrics"]
        return None, None

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        content = RecordDict({"arrays": arrays, "config": config})
        return [
            Message(
                content,
                dst_node_id=node,
                message_type=MessageType.EVALUATE,
                group_id=str(server_round),
            )
            for node in grid.get_node_ids()
        ]

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]):
        found = [r.content["metrics"]["accuracy"] for r in replies if r.has_content()]
        return MetricRecord({"accuracy": mean(found)}) if found else None
