"""A small network with PyTorch that goes from node to node, under a strategy of its own."""
