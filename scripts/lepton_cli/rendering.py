"""Fills the templates in ``templates/``; what a template names must be given."""

from functools import cache
from importlib import resources

import jinja2


def render(name: str, **facts: object) -> str:
    """Returns a template, filled; what goes into HTML is escaped."""
    return _templates().get_template(name).render(**facts)


@cache
def _templates() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FunctionLoader(_template),
        autoescape=jinja2.select_autoescape(enabled_extensions=("html.j2",)),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def _template(name: str) -> str:
    return resources.files("lepton_cli").joinpath("templates", name).read_text(encoding="utf-8")
