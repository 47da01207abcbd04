"""A run that asks sites for statistics, simulated or real: its settings, and the run itself."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lepton_cli.compose import compose_settings
from lepton_cli.control import control, fetch, proposal_of
from lepton_cli.run import Run
from lepton_cli.simulation import start
from lepton_common.control.control_pb2 import SubmitRequest
from lepton_common.control.control_pb2_grpc import ControlStub

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


def ask_sites(
    words: list[str],
    folder: Path,
    study: str | None,
    passphrase: str | None,
    watch: Callable[[ControlStub, str], None],
) -> dict[str, Any]:
    """Asks the real sites of a federation once, and returns what they answered.

    Args:
        words: overrides, as for `lepton submit`.
        folder: of the lead who asks.
        study: that it is part of.
        passphrase: of the lead's key.
        watch: waits for the end of a run, given the control service and the run's name.

    Raises:
        SettingsError: with all faults of the settings.
        LeptonError: what else went wrong; what was charged stays so.
    """
    settings = compose_settings(statistics_overrides(words))
    proposal = proposal_of(folder, settings, study, passphrase)
    with control(folder, passphrase) as service:
        run = service.Submit(SubmitRequest(proposal=proposal))
        watch(service, run.name)
        return dict(json.loads(fetch(service, run.name)))


def statistics_overrides(words: list[str]) -> list[str]:
    """Returns the overrides of a run that asks for statistics, before and behind a user's own."""
    groups = {word.partition("=")[0] for word in words}
    mode = "record" if "secagg=none" in words else "distributed"
    privacy = [] if "privacy" in groups else [f"privacy={mode}"]
    return [*privacy, *_FIRST, *words, "statistics.asked=true"]
