"""Toy sites, and the schema of their tables."""

from table_site import toy_schema
from toy_site import make_site, toy_catalog

__all__ = ["make_site", "toy_catalog", "toy_schema"]
