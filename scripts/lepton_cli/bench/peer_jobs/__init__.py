"""What a side of a comparison runs in an environment that Lepton is not installed in."""
