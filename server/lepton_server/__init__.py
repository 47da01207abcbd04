"""What runs at the coordinator; read `lepton_server.rounds.loop` first."""
