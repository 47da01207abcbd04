"""The `lepton` command, and the same for notebooks: ``run = lepton_cli.simulate(task=...)``."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lepton_cli.run import Run

__all__ = ["simulate"]


def simulate(*overrides: str, **settings: object) -> "Run":
    """Runs a simulation and returns its `lepton_cli.run.Run`.

    Args:
        *overrides: as on the command line, for example ``"privacy.epsilon=3"``.
        **settings: the same as keywords; sections take a dictionary:
            ``simulate(task="digits", privacy="record", data={"partition": "dirichlet"})``.

    Raises:
        SettingsError: with all faults of the settings.
        LeptonError: what else went wrong; see `lepton_common.errors`.
    """
    # Imported here, so that `lepton --help` does not wait for PyTorch.
    from lepton_cli.compose import as_overrides, compose_settings
    from lepton_cli.simulation import start

    return start(compose_settings([*overrides, *as_overrides(settings)]))
