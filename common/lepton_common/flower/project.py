"""A Flower app's own folder, read and loaded as Flower does: `pyproject.toml` and components."""

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

from lepton_common.errors import AppInvalid, AppMissing

FILE = "pyproject.toml"
ConfigValue = bool | float | int | str
_ONE_WORD = re.compile(r"'[^']*'|\"[^\"]*\"|\S+")
_SIMPLE = "Flower's configs hold numbers, texts, true and false only."
_App = TypeVar("_App", ServerApp, ClientApp)


@dataclass(frozen=True)
class Project:
    """What ``pyproject.toml`` says of a Flower app.

    Attributes:
        folder: the app's folder, absolute.
        name: the project's name.
        version: the project's version.
        serverapp: reference to the ServerApp, ``module:attribute``.
        clientapp: reference to the ClientApp.
        config: ``[tool.flwr.app.config]``, flat: nested names are joined with dots.
    """

    folder: Path
    name: str
    version: str
    serverapp: str
    clientapp: str
    config: Mapping[str, ConfigValue]


def read_project(folder: Path) -> Project:
    """Reads and checks a Flower app's ``pyproject.toml``.

    Raises:
        AppMissing: there is no such folder, or no ``pyproject.toml`` in it.
        AppInvalid: Flower would not take it, or it names no ServerApp and ClientApp.
    """
    from flwr.common.config import flatten_dict, get_project_config

    folder = folder.expanduser().resolve()
    if not folder.is_dir():
        raise AppMissing(f"There is no folder {folder}; app= takes a Flower app's folder.")
    if not (folder / FILE).is_file():
        raise AppMissing(f"Expected {FILE} in {folder}; app= takes a Flower app's folder.")
    try:
        told = get_project_config(folder)
        app = told["tool"]["flwr"]["app"]
        config = flatten_dict(app.get("config"))
    except (ValueError, TypeError) as error:
        faults = " ".join(str(error).split())
        raise AppInvalid(f"Flower does not take {folder / FILE}: {faults}") from error
    components = app["components"]
    if "serverapp" not in components or "clientapp" not in components:
        raise AppInvalid(
            f"{folder / FILE} names an AgentApp, and a simulation needs a serverapp and a "
            "clientapp in [tool.flwr.app.components]."
        )
    return Project(
        folder=folder,
        name=str(told["project"]["name"]),
        version=str(told["project"]["version"]),
        serverapp=str(components["serverapp"]),
        clientapp=str(components["clientapp"]),
        config=config,
    )


def config_value(text: str) -> ConfigValue:
    """Returns what Flower's ``--run-config`` makes of one value, as TOML has it.

    Raises:
        ValueError: it is no value, or none that a run's config holds.
    """
    import click
    from flwr.common.config import parse_config_args

    if not _ONE_WORD.fullmatch(text):
        raise ValueError("a text of several words needs quotes, as in 'two words'.")
    try:
        parsed = parse_config_args([f"value={text}"])
    except click.ClickException:
        raise ValueError("expected a TOML value: 5, 0.1, true or \"'text'\".") from None
    except ValueError:
        raise ValueError(_SIMPLE) from None
    if "value" not in parsed:
        raise ValueError(_SIMPLE)  # a table, which Flower made flat
    value: ConfigValue = parsed["value"]
    return value


def load_server_app(reference: str, folder: Path) -> ServerApp:
    """Returns an app's ServerApp; its folder comes onto the import path.

    Raises:
        AppInvalid: the reference leads to no ServerApp.
        BaseException: whatever the app's own code raises while it is imported.
    """
    return _load(reference, folder, ServerApp)


def load_client_app(reference: str, folder: Path) -> ClientApp:
    """Returns an app's ClientApp; as `load_server_app`."""
    return _load(reference, folder, ClientApp)


def _load(reference: str, folder: Path, kind: type[_App]) -> _App:
    from flwr.supercore.object_ref import load_app

    first = [str(folder), *(path for path in sys.path if path != str(folder))]
    # The app's own modules come before others of the same name, also where it is on the path.
    sys.path[:] = first
    module = reference.partition(":")[0]
    try:
        found = load_app(reference, AppInvalid, folder)
    except AppInvalid as error:
        raise AppInvalid(" ".join(str(error).split())) from error
    except ModuleNotFoundError as error:
        what = f"Cannot import '{module}', which {FILE} names: {error}"
        if error.name and (module == error.name or module.startswith(f"{error.name}.")):
            raise AppInvalid(f"{what}; it is looked for in {folder}.") from error
        raise AppInvalid(f"{what}; install what the app depends on, as its {FILE} says.") from error
    if not isinstance(found, kind):
        raise AppInvalid(
            f"'{reference}' should be a {kind.__name__} of Flower's, and is a "
            f"{type(found).__name__}."
        )
    return found
