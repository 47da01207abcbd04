"""YAML as people write it."""

import re
from typing import Any

import yaml


# The C version of the safe loader, where PyYAML was built with it: ten times faster.
class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Takes 1e-5 for a number, as everybody but YAML 1.1 does."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?[0-9]+e[-+]?[0-9]+$", re.IGNORECASE),
    [*"-+0123456789"],
)


def load_yaml(text: str) -> Any:  # noqa: ANN401
    """Returns the plain values in a text.

    Raises:
        yaml.YAMLError: it is no YAML.
    """
    return yaml.load(text, Loader=_Loader)  # noqa: S506


def yaml_fault(error: yaml.YAMLError) -> str:
    """Returns where a text stopped being YAML, and why, in one line."""
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return " ".join(str(error).split())
    problem = getattr(error, "problem", None) or "something else was expected"
    return f"line {mark.line + 1}, column {mark.column + 1}: {problem}"
