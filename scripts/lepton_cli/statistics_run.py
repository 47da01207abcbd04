"""A run that asks simulated sites for statistics: its settings, and the run itself."""

from lepton_cli.compose import compose_settings
from lepton_cli.run import Run
from lepton_cli.simulation import start

# Before what the user says, who may choose another epsilon, and is told of all else that cannot be.
_FIRST = ("rounds=1", "privacy.spare_rounds=0", "privacy.epsilon=1.0")


def ask(words: list[str]) -> Run:
    """Asks the sites of a new simulation once.

    Args:
        words: overrides, as for `lepton simulate`.

    Raises:
        SettingsError: with all faults of the settings.
        LeptonError: what else went wrong; what was charged stays so.
    """
    return start(compose_settings(statistics_overrides(words)))


def statistics_overrides(words: list[str]) -> list[str]:
    """Returns the overrides of a run that asks for statistics, before and behind a user's own."""
    groups = {word.partition("=")[0] for word in words}
    mode = "record" if "secagg=none" in words else "distributed"
    privacy = [] if "privacy" in groups else [f"privacy={mode}"]
    return [*privacy, *_FIRST, *words, "statistics.asked=true"]
