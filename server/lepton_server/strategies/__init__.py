"""How updates become the next model: Flower's own strategies, by name."""
