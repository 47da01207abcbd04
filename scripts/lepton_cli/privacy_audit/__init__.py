"""What `lepton privacy audit` does: attacks on our own training, with made-up records only."""
