"""Federated analytics: queries with names, mods, and a grid used by hand."""
