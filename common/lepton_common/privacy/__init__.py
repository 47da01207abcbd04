"""Differential privacy: the plan, its accounting, its noise, and what may leave a site."""
