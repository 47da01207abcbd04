"""Tests that Flower's private modules are imported in one place only."""

import ast

_PUBLIC = {
    "flwr.app",
    "flwr.clientapp",
    "flwr.clientapp.typing",  # where Flower's guide to mods imports from
    "flwr.serverapp",
    "flwr.serverapp.strategy",
}
_TYPE_ONLY = {
    ("server/lepton_server/engines/guest.py", "flwr.supercore.run"),
    ("server/lepton_server/engines/simulated.py", "flwr.supercore.run"),
    ("server/lepton_server/gateway/signed_grid.py", "flwr.supercore.run"),
}
# The benchmarks of Flower itself.
_PEERS = "scripts/lepton_cli/bench/"
_ROOMS = ("common", "client", "server", "conf", "scripts")


def _imports(tree, *, type_only=False):
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, type_only) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            # `from flwr import x` imports the module flwr.x.
            names = [node.module or ""]
            if node.module == "flwr":
                names = [f"flwr.{alias.name}" for alias in node.names]
            yield from ((name, type_only) for name in names)
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            for child in node.body:
                yield from _imports(ast.Module([child], []), type_only=True)
            for child in node.orelse:
                yield from _imports(ast.Module([child], []), type_only=type_only)
        else:
            yield from _imports(node, type_only=type_only)


def _secagg(name):
    return name.startswith(("flwr.common", "flwr.client.mod.secure_aggregation"))


def _private(text, place):
    return [
        name
        for name, type_only in _imports(ast.parse(text))
        if name.split(".")[0] == "flwr"
        and name not in _PUBLIC
        and not place.startswith(_PEERS)
        and not (type_only and (place, name) in _TYPE_ONLY)
    ]


def test_only_the_flower_room_imports_private_modules(repository):
    found, seen = {}, 0
    for room in _ROOMS:
        for path in (repository / room).rglob("*.py"):
            place = path.relative_to(repository).as_posix()
            seen += 1
            if not place.startswith("common/lepton_common/flower/") and (
                names := _private(path.read_text(encoding="utf-8"), place)
            ):
                found[place] = names
    assert seen > 50
    assert found == {}


def test_the_search_finds_every_way_to_import():
    place = "server/lepton_server/engines/simulated.py"
    for text in (
        "import flwr",
        "import flwr.common.serde",
        "from flwr.common import serde",
        "from flwr import common",
        "from flwr.supercore.run import Run",
        "def f():\n    from flwr.proto.message_pb2 import Message",
        "try:\n    import flwr.supercore.run\nexcept ImportError:\n    pass",
        "if TYPE_CHECKING:\n    from flwr.common import serde",
        "if TYPE_CHECKING:\n    pass\nelse:\n    from flwr.supercore.run import Run",
    ):
        assert _private(text, place), text
    allowed = "if TYPE_CHECKING:\n    from flwr.supercore.run import Run"
    assert _private(allowed, place) == []
    assert _private(allowed, "server/lepton_server/app.py") == ["flwr.supercore.run"]
    assert _private("from flwr.app import Message\nimport flwr.serverapp", place) == []
