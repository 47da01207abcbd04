"""The only place that touches Flower's private names: one file per interface, imported lazily."""
