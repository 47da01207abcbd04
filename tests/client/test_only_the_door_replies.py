"""Law 2: only door.py constructs Flower replies (read off the syntax trees)."""

import ast
from pathlib import Path

import lepton_client

_BUILDERS = {
    "Message",
    "RecordDict",
    "ArrayRecord",
    "MetricRecord",
    "ConfigRecord",
    "Array",
    "Error",
}
_PACKAGE = Path(lepton_client.__file__).parent


def constructions(source: str) -> set[str]:
    """Returns which Flower builders a source calls, under whatever name it imports them."""
    tree = ast.parse(source)
    aliases = {name: name for name in _BUILDERS}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("flwr"):
            aliases |= {a.asname or a.name: a.name for a in node.names if a.name in _BUILDERS}
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = node.func
            name = called.id if isinstance(called, ast.Name) else getattr(called, "attr", "")
            if aliases.get(name) in _BUILDERS:
                found.add(aliases[name])
            if name in ("create_reply", "create_error_reply", "pack"):
                found.add(name)
    return found


def test_no_other_file_of_the_site_builds_what_could_leave():
    found = {
        path.name: constructions(path.read_text())
        for path in sorted(_PACKAGE.rglob("*.py"))
        if path.name != "door.py"
    }
    assert len(found) > 8
    assert {name: calls for name, calls in found.items() if calls} == {}


def test_the_reader_of_syntax_trees_sees_every_way_to_build_one():
    assert constructions((_PACKAGE / "door.py").read_text()) >= {"Message", "RecordDict", "Error"}
    assert constructions("from flwr.app import Message as M\nM(1, reply_to=2)") == {"Message"}
    assert constructions("import flwr.app as f\nf.Message(1, reply_to=2)") == {"Message"}
    assert constructions("message.create_reply(content)") == {"create_reply"}
