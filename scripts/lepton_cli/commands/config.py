"""``lepton config``: the composed configuration."""

import json
from typing import Annotated

import typer
import yaml


def command(
    overrides: Annotated[list[str] | None, typer.Argument(help="As for simulate.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of YAML.")] = False,
) -> None:
    """Print the configuration that overrides compose to, checked."""
    from lepton_cli.compose import compose_settings
    from lepton_common.strict import to_json

    values = json.loads(to_json(compose_settings(overrides or [])))
    print(json.dumps(values) if as_json else yaml.safe_dump(values, sort_keys=False), end="")
