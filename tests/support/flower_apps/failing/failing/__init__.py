"""Nodes that fail in every way, under a strategy that goes on."""
