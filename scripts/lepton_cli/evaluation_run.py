"""A run that asks the sites of another for the figures of its model: settings, and the run."""

import json
import shutil
from pathlib import Path

from lepton_cli.compose import compose_values
from lepton_cli.run import Run, new_folder, stamp
from lepton_cli.simulation import execute, only_writer, write_config
from lepton_common.durable import link_atomic
from lepton_common.errors import RunNotFound, SettingsError
from lepton_common.settings import Settings
from lepton_common.settings_rules import parse_settings
from lepton_common.strict import to_json
from lepton_server.run_folder import RunFolder

# What an evaluation may choose for itself; all else is as the run left it at its sites.
_FREE = ("privacy", "secagg", "engine", "federation", "statistics.bins", "train.device")
_KEPT = ("task", "model", "sites", "seed", "runs", "data", "policy")
_FIRST = ("rounds=1", "train.local_steps=1", "train.local_epochs=null", "statistics.bins=20")
_WITH = ("privacy.spare_rounds=0", "privacy.epsilon=1.0")
# Sums of people, of whom a site has 65,536 at most; the fewer, the finer are those of losses.
_WITHOUT = ("federation=all_sites", "secagg.width=32", "secagg.clip=65536")


def evaluate(run: Run, words: list[str]) -> Run:
    """Asks the sites of a simulated run once for the figures of its last model.

    Args:
        run: the run; its sites' own logs and ledgers go on.
        words: overrides of privacy, secure aggregation, engine, and `statistics.bins`.

    Raises:
        RunNotFound: it has no model, or its sites have no folders of their own.
        SettingsError: with all faults of the settings.
        LeptonError: what else went wrong; what was charged stays so.
    """
    settings = evaluation_settings(run, words)
    if not run.folder.final_model.exists():
        raise RunNotFound(f"The run {run.name} has no finished round, and so no model yet.")
    if run.folder.host.exists() or not (run.folder.path / "sites").exists():
        raise RunNotFound(
            f"The run {run.name} has no sites here that could be asked: those of engine=vectorized "
            "have no folders of their own, and real sites are asked by 'lepton submit'."
        )
    with only_writer(run.folder):
        folder = _create(run, settings)
        return execute(settings, folder)


def evaluation_settings(run: Run, words: list[str]) -> Settings:
    """Returns the settings of a run that asks for the figures of another's model.

    Raises:
        SettingsError: with all faults, such as a setting that is the run's and not to be chosen.
    """
    names = [word.partition("=")[0] for word in words]
    faults = [
        f"{name} is as the run {run.name} has it: an evaluation chooses {', '.join(_FREE)}."
        for name in names
        if name not in _FREE and name.partition(".")[0] not in _FREE
    ]
    if not run.settings.data.held_back:
        faults.append(
            f"The sites of the run {run.name} hold nobody's records back: train with "
            "data.held_back=0.2, or another share of each site's people."
        )
    if faults:
        raise SettingsError(faults)
    own = json.loads(to_json(run.settings))
    mode = _mode(run.settings, words)
    values = compose_values([f"task={run.settings.task}", *_defaults(run.settings, mode, words),
                             *words, "statistics.asked=true",
                             f"statistics.evaluates={run.name}"])  # fmt: skip
    values |= {name: own[name] for name in _KEPT}
    values["federation"]["name"] = own["federation"]["name"]
    if "secagg.colluders" not in names:
        values["secagg"]["colluders"] = own["secagg"]["colluders"]
    return parse_settings(values)


def _mode(settings: Settings, words: list[str]) -> str:
    """Returns the kind of privacy: what is said, or what the run had."""
    said = [word.partition("=")[2] for word in words if word.startswith("privacy=")]
    if said:
        return said[-1]
    if not settings.private and not any(word.startswith("privacy.") for word in words):
        return "none"
    return "distributed" if _secagg(settings, words) != "none" else "record"


def _secagg(settings: Settings, words: list[str]) -> str:
    said = [word.partition("=")[2] for word in words if word.startswith("secagg=")]
    return said[-1] if said else settings.secagg.mode


def _defaults(settings: Settings, mode: str, words: list[str]) -> list[str]:
    given = {word.partition("=")[0] for word in words}
    first = [f"privacy={mode}", f"secagg={_secagg(settings, words)}", *_FIRST]
    first += _WITH if mode != "none" else _WITHOUT
    return [word for word in first if word.partition("=")[0] not in given]


def _create(run: Run, settings: Settings) -> RunFolder:
    """Makes the evaluation's folder beside the run's, with the same server and the same sites."""
    name = f"{stamp()}-{settings.task}-evaluation"
    folder = RunFolder(new_folder(run.folder.path.parent / name))
    folder.server_key.parent.mkdir()
    for path in (run.folder.server_key, run.folder.roster, run.folder.roster_root):
        if path.exists():
            shutil.copy2(path, folder.server_key.parent)
    shutil.copy2(run.folder.path / "sites.pem", folder.path)
    (folder.path / "sites").symlink_to(Path("..") / run.name / "sites")
    link_atomic(run.folder.final_model, folder.evaluated)
    write_config(settings, folder)
    return folder
