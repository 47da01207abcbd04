"""The in-process Grid with Flower's wire format in between, as in deployment."""

from collections.abc import Mapping

from flwr.app import Context, Message

from lepton_common.flower.wire import from_wire, to_wire
from lepton_server.engines.inprocess import ClientApp, InProcessGrid
from lepton_server.engines.simulated import NodeConfig


class SerialisingGrid(InProcessGrid):
    """Turns every message into the bytes that Flower would send, and back.

    Attributes:
        left_sites: the bytes of every reply, in order; what an eavesdropper on the server's
            side would have.
    """

    def __init__(
        self,
        client_app: ClientApp,
        nodes: Mapping[int, NodeConfig],
        *,
        workers: int = 1,
        threads_per_site: int = 1,
    ) -> None:
        self.left_sites: list[bytes] = []
        super().__init__(client_app, nodes, workers=workers, threads_per_site=threads_per_site)

    def _answer(self, message: Message, context: Context) -> Message:
        sent = to_wire(super()._answer(from_wire(to_wire(message)), context))
        self.left_sites.append(sent)
        return from_wire(sent)
