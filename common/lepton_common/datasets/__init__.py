"""Data sets by name, and how a simulation splits one over sites."""
