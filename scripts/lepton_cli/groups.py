"""The configuration groups and their choices, as the files of `lepton_conf` give them."""

from functools import cache
from importlib import resources


@cache
def groups() -> dict[str, list[str]]:
    """Returns the configuration groups and their choices."""
    root = resources.files("lepton_conf")
    return {
        folder.name: sorted(
            file.name.removesuffix(".yaml")
            for file in folder.iterdir()
            if file.name.endswith(".yaml")
        )
        for folder in sorted(root.iterdir(), key=lambda item: item.name)
        if folder.is_dir() and not folder.name.startswith("_")
    }
