"""The simulation benchmark: engines, protections, scaling and peers, on two jobs."""
