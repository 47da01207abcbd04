"""Grounds for simulation: Flower Grids that need no network."""
