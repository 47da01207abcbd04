"""Nodes that remember: a counter and a model of their own in Context.state."""
