"""Sweeps: one run for each combination of settings, in parallel within the machine's memory."""
