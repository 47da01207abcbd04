"""From words such as ``app=PATH nodes=10 config.lr=0.1`` to what is to be run."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lepton_common.errors import SettingsError
from lepton_common.flower.project import ConfigValue, Project, config_value, read_project
from lepton_common.names import did_you_mean

_CONFIG = "config."
_DEFAULTS = {"nodes": "10", "engine.workers": "1", "engine.threads_per_site": "", "runs": "runs"}
_LEAST = {"nodes": 1, "engine.workers": 0, "engine.threads_per_site": 1}


@dataclass(frozen=True)
class AppRequest:
    """A Flower app and how to run it.

    Attributes:
        project: the app.
        nodes: simulated nodes.
        config: what the app finds as its run's config: its own under the overrides.
        overridden: the names in ``config`` that the command line gave.
        workers: nodes answered at the same time.
        threads_per_site: threads inside one node's tensor operations.
        runs: folder of run folders, absolute.
    """

    project: Project
    nodes: int
    config: Mapping[str, ConfigValue]
    overridden: tuple[str, ...]
    workers: int
    threads_per_site: int
    runs: Path


def read_request(words: list[str]) -> AppRequest:
    """Returns what the words ask for.

    Raises:
        AppMissing, AppInvalid: there is no app, or none that Flower would take.
        SettingsError: with every fault: unknown names, wrong values, settings of other runs.
    """
    faults: list[str] = []
    given, overrides = dict(_DEFAULTS), {}
    path = ""
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            faults.append(f"Expected name=value, got '{word}'.")
        elif name == "app":
            path = value
        elif name in given:
            given[name] = value
        elif name.startswith(_CONFIG):
            overrides[name.removeprefix(_CONFIG)] = value
        else:
            faults.append(_does_not_apply(name))
    numbers = {name: _number(name, given[name], faults) for name in _LEAST}
    if not path:
        faults.append("app= is empty; it takes a Flower app's folder.")
    if faults:
        raise SettingsError(faults)
    project = read_project(Path(path))
    cores = os.cpu_count() or 1
    workers = numbers["engine.workers"] or cores
    return AppRequest(
        project=project,
        nodes=numbers["nodes"],
        config=_fuse(project.config, overrides),
        overridden=tuple(overrides),
        workers=workers,
        threads_per_site=numbers["engine.threads_per_site"] or max(1, cores // workers),
        runs=Path(given["runs"]).expanduser().resolve(),
    )


def _does_not_apply(name: str) -> str:
    hint = did_you_mean(name, _DEFAULTS)
    if hint:
        return f"Unknown setting '{name}' of a Flower app{hint}"
    return (
        f"'{name}' does not apply to a Flower app: with app= there are {', '.join(_DEFAULTS)} and "
        "config.NAME for the app's own [tool.flwr.app.config]."
    )


def _number(name: str, text: str, faults: list[str]) -> int:
    """Returns a setting's number; 0 where it was left out."""
    if text == _DEFAULTS[name] == "":
        return 0
    if not text.isdecimal() or int(text) < _LEAST[name]:
        faults.append(f"{name}={text}: expected a whole number of at least {_LEAST[name]}.")
        return 0
    return int(text)


def _fuse(
    defaults: Mapping[str, ConfigValue], overrides: Mapping[str, str]
) -> dict[str, ConfigValue]:
    """Returns the app's config under the overrides, which hold values as TOML has them."""
    faults, fused = [], dict(defaults)
    for name, text in overrides.items():
        if name not in defaults:
            hint = did_you_mean(name, defaults) or "."
            faults.append(f"The app has no '{name}' in [tool.flwr.app.config]{hint}")
            continue
        try:
            fused[name] = config_value(text)
        except ValueError as error:
            # A shell eats the quotes that Flower wants around a text.
            if isinstance(defaults[name], str) and text[:1] not in ("'", '"'):
                fused[name] = text
            else:
                faults.append(f"config.{name}={text}: {error}")
    if faults:
        raise SettingsError(faults)
    return fused
