"""What runs inside a site; read `lepton_client.work` first."""
