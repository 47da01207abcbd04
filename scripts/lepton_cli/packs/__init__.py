"""Evidence packs: signed archives that prove one run, made at a site or at the coordinator."""
