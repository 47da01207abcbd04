"""Tasks of other installed packages."""

from dataclasses import dataclass

from lepton_common.errors import SettingsError
from lepton_common.extensions import TASKS, extension
from lepton_common.tasks.catalog import Task


@dataclass(frozen=True)
class PackagedTask:
    """A task with what a built-in one has in files of the configuration.

    Attributes:
        task: what is learned, on a data set of the same name, which the package gives too.
        settings: what suits it, as on the command line, such as ``model=mlp``; a user's own
            words go before.
    """

    task: Task
    settings: tuple[str, ...] = ()


def packaged_task(name: str) -> PackagedTask:
    """Returns an installed package's task of that name, which there must be.

    Raises:
        SettingsError: it cannot be imported, or is none of that name.
    """
    found = extension(TASKS, name)
    if not isinstance(found, PackagedTask) or {found.task.name, found.task.dataset} != {name}:
        raise SettingsError(
            f"What a package calls the task '{name}' is no PackagedTask of that name, on a data "
            "set of that name; mend the package."
        )
    return found
