"""Benchmarks: ``./scripts/bench NAME``."""

import typer

app = typer.Typer()
