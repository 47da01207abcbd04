"""Lets ``python -m lepton_cli`` stand for ``lepton``."""

from lepton_cli.main import main

main()
