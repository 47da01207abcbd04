"""`lepton`, one version on: what is installed says of itself that it is a newer package."""

from importlib import metadata

OURS = metadata.version("lepton-fl")
NEXT = f"{int(OURS.split('.')[0]) + 1}.0.0"
_version = metadata.version


def version(name):
    return NEXT if name == "lepton-fl" else _version(name)


if __name__ == "__main__":
    metadata.version = version
    from lepton_cli.main import main

    main()
