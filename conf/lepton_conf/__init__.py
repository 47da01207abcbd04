"""Every setting of a run, as Hydra groups; `lepton config` prints what they compose to."""
