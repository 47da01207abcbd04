"""The folder of a sweep: its combinations, and which run belongs to which."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from lepton_cli.compose import as_overrides, compose_settings, expand_sweep
from lepton_cli.run import Run, new_folder, stamp
from lepton_cli.simulation import settled
from lepton_common.durable import write_atomic
from lepton_common.errors import LeptonError, RunNotFound, SettingsError
from lepton_common.settings import Settings
from lepton_common.strict import to_json
from lepton_server.run_folder import RunFolder
from lepton_server.trackers.catalog import check_tracker

_FILE = "sweep.json"
_WORKERS = "engine.workers"


@dataclass
class SweepFolder:
    """A sweep on disk.

    Attributes:
        path: the folder, which holds the runs' folders too.
        overrides: the words that the user gave.
        combinations: the words of each run.
    """

    path: Path
    overrides: list[str]
    combinations: list[list[str]]
    _settings: list[Settings] = field(default_factory=list)
    _runs: dict[int, Run] = field(default_factory=dict)
    _seen: set[Path] = field(default_factory=set)
    _wanted: dict[str, list[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for number in range(len(self.combinations)):
            settings = settled(compose_settings(self.words(number)))
            self._settings.append(settings)
            self._wanted.setdefault(self._key(settings), []).append(number)

    @property
    def knobs(self) -> list[dict[str, str]]:
        """The varied settings of each combination, by name, as text."""
        swept = [
            index
            for index, text in enumerate(self.overrides)
            if any(words[index] != text for words in self.combinations)
        ]
        return [dict(_split(words[index]) for index in swept) for words in self.combinations]

    @property
    def chooses_workers(self) -> bool:
        """Whether the user says how many workers a run has."""
        return any(text.startswith(f"{_WORKERS}=") for text in self.overrides)

    def settings(self, number: int) -> Settings:
        """Returns a combination's settings; only the number of workers may be another."""
        return self._settings[number]

    def words(self, number: int) -> list[str]:
        """Returns a combination's words, with the place of its run."""
        words = [word for word in self.combinations[number] if not word.startswith("runs=")]
        return [*words, *as_overrides({"runs": str(self.path)})]

    def command(self, number: int, workers: int) -> list[str]:
        """Returns the words after ``lepton simulate`` that run a combination, or go on with it."""
        run = self.run(number)
        if run is not None:
            return [f"resume={run.folder.path}"]
        # It changes the time of a run and not its result.
        more = [] if self.chooses_workers else [f"{_WORKERS}={workers}"]
        return [*self.words(number), *more]

    def outputs(self, number: int) -> tuple[Path, Path]:
        """Returns the files of what a run's process prints, and of what it complains about."""
        folder = self.path / "output"
        folder.mkdir(exist_ok=True)
        return folder / f"{number + 1}.out", folder / f"{number + 1}.err"

    def run(self, number: int) -> Run | None:
        """Returns a combination's run, which is known by its settings, where there is one."""
        if number not in self._runs:
            self._look()
        return self._runs.get(number)

    def rounds(self, number: int) -> int:
        """Returns how many rounds a combination's run has finished."""
        run = self.run(number)
        path = run.folder.metrics_jsonl if run else None
        return path.read_bytes().count(b"\n") if path is not None and path.exists() else 0

    def _look(self) -> None:
        for config in sorted(self.path.glob("*/config.yaml")):
            if config in self._seen:
                continue
            self._seen.add(config)
            run = Run(RunFolder(config.parent))
            for number in self._wanted.get(self._key(run.settings), []):
                if number not in self._runs:
                    self._runs[number] = run
                    break

    def _key(self, settings: Settings) -> str:
        if not self.chooses_workers:
            settings = replace(settings, engine=replace(settings.engine, workers=0))
        return to_json(settings)


def new_sweep(overrides: list[str]) -> SweepFolder:
    """Checks every combination, and creates the folder.

    Raises:
        SettingsError: with the faults of all combinations.
    """
    combinations = expand_sweep(overrides)
    faults: list[str] = []
    checked: list[Settings] = []
    for words in combinations:
        try:
            checked.append(compose_settings(words))
            check_tracker(checked[-1].tracker)
        except SettingsError as error:
            faults += [fault for fault in error.faults if fault not in faults]
    if len({settings.runs for settings in checked}) > 1:
        faults.append("runs is one folder for a whole sweep: give it one value.")
    if faults:
        raise SettingsError(faults)
    path = new_folder(Path(checked[0].runs).resolve() / f"sweep-{stamp()}")
    facts = {"overrides": overrides, "combinations": combinations}
    write_atomic(path / _FILE, json.dumps(facts, indent=1).encode())
    return SweepFolder(path, overrides, combinations)


def find_sweep(words: Sequence[str]) -> SweepFolder:
    """Returns the sweep that ``resume=FOLDER`` names.

    Raises:
        SettingsError: other words are there too.
        RunNotFound: it is no sweep's folder.
    """
    others = [word for word in words if not word.startswith(("resume=", "runs="))]
    if others:
        raise SettingsError(f"A resumed sweep keeps its settings: drop {', '.join(others)}.")
    named: Mapping[str, str] = dict(_split(word) for word in words)
    name, runs = named["resume"], Path(named.get("runs", "runs"))
    newest = sorted(runs.glob("sweep-*"), reverse=True)
    for path in newest if name == "last" else [Path(name), runs / name]:
        if (path / _FILE).is_file():
            break
    else:
        raise RunNotFound(f"No sweep '{name}' here or in '{runs}'.")
    try:
        facts = json.loads((path / _FILE).read_text(encoding="utf-8"))
        return SweepFolder(path.resolve(), facts["overrides"], facts["combinations"])
    except (ValueError, KeyError, LeptonError) as error:
        raise RunNotFound(f"{path / _FILE} is of no use here: {error}") from None


def _split(word: str) -> tuple[str, str]:
    name, _, value = word.partition("=")
    return name, value
