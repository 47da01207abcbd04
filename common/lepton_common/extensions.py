"""Tasks and data sets of other installed packages: operators install them, no server ships them.

A package names each as an entry point, under the name by which it is asked for:

    [project.entry-points."lepton.tasks"]
    kidney = "kidney_tasks:task"          # a PackagedTask
    [project.entry-points."lepton.datasets"]
    kidney = "kidney_tasks:load"          # from data.root and data.prepare to a Dataset
"""

from functools import cache
from importlib.metadata import EntryPoint, entry_points

from lepton_common.errors import SettingsError

TASKS, DATASETS = "lepton.tasks", "lepton.datasets"


@cache
def extensions(group: str) -> dict[str, EntryPoint]:
    """Returns where installed packages keep what a group names; imports none of them."""
    return {entry.name: entry for entry in entry_points(group=group)}


@cache
def extension(group: str, name: str) -> object:
    """Imports what a package keeps under a name that there is.

    Raises:
        SettingsError: it cannot be imported.
    """
    entry = extensions(group)[name]
    try:
        found: object = entry.load()
    except Exception as error:
        raise SettingsError(
            f"{entry.value} cannot be imported ({type(error).__name__}), which should be the "
            f"'{name}' of {group}; mend or uninstall its package."
        ) from error
    return found
