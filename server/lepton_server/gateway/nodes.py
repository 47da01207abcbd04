"""Which of Flower's nodes is which site: written where nodes are let in, by their rostered keys."""

from pathlib import Path

from lepton_common.durable import write_atomic
from lepton_common.strict import Digest, Name, parse_json, record, to_json

_FILE = "nodes.json"


@record
class KnownNode:
    """A site as a node of the fleet.

    Attributes:
        node: Flower's number for it.
        name: the site's name.
        public_key: its hexadecimal Ed25519 key.
    """

    node: int
    name: Name
    public_key: Digest


@record
class _Nodes:
    nodes: list[KnownNode]


def write_nodes(folder: Path, nodes: list[KnownNode]) -> None:
    """Keeps the nodes that were let in."""
    write_atomic(folder / "gateway" / _FILE, to_json(_Nodes(nodes=nodes)).encode())


def read_nodes(folder: Path) -> dict[int, KnownNode]:
    """Returns the nodes that were let in, by Flower's number."""
    text = (folder / "gateway" / _FILE).read_text(encoding="utf-8")
    return {known.node: known for known in parse_json(_Nodes, text).nodes}
