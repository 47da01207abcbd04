"""The subcommands of `lepton`, one file each."""
