"""Fixtures of this room."""

from toy_site import make_site, toy_catalog

__all__ = ["make_site", "toy_catalog"]
