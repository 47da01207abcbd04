"""The rounds of a run; read `loop` first."""
