"""Model families by name; a run names a model and never ships one."""
