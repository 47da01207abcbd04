"""Finds the name somebody probably meant."""

import difflib
from collections.abc import Iterable
from typing import TypeVar

from lepton_common.errors import UnknownName

T = TypeVar("T")


def did_you_mean(wrong: str, known: Iterable[str]) -> str:
    """Returns ``; did you mean 'x'?`` for the nearest known name, or an empty string."""
    nearest = difflib.get_close_matches(wrong, sorted(known), n=1, cutoff=0.5)
    return f"; did you mean '{nearest[0]}'?" if nearest else ""


def look_up(catalog: dict[str, T], name: str, kind: str) -> T:
    """Returns ``catalog[name]``.

    Raises:
        UnknownName: there is no such name; the message lists what there is.
    """
    if name not in catalog:
        raise UnknownName(unknown(kind, name, catalog))
    return catalog[name]


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """Returns one sentence for an unknown name: what it is, what was meant, what there is."""
    names = sorted(known)
    return f"Unknown {kind} '{name}'{did_you_mean(name, names) or '.'} Known: {', '.join(names)}."
