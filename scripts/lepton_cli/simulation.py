"""A simulated federation: throwaway sites, an engine, and the two apps of deployment."""

import json
import logging
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import yaml
from flwr.app import Context, RecordDict

from lepton_cli.about import machine_facts
from lepton_cli.grounds import open_grid
from lepton_cli.run import Run, new_folder, stamp
from lepton_cli.simulated_host import found_host, host_nodes, resolve_vectorize
from lepton_cli.simulated_sites import (
    SimulatedSites,
    clear_unfinished,
    dataset_of,
    kept_for_evaluation,
    split,
)
from lepton_common.datasets.source import MADE_UP
from lepton_common.durable import needs_room, write_atomic
from lepton_common.errors import DiskFull, Interrupted, LeptonError, RunNotResumable
from lepton_common.settings import Settings
from lepton_common.strict import to_json
from lepton_server.app import app as server_app
from lepton_server.engines.simulated import NodeConfig
from lepton_server.progress import OBSERVER, Observer, Observers
from lepton_server.run_folder import RunFolder
from lepton_server.trackers.catalog import check_tracker, trackers_of


def start(settings: Settings, observer: Observer | None = None) -> Run:
    """Creates the run folder and its sites, runs all rounds, and writes the report.

    Raises:
        Interrupted: the observer asked to stop; the run can be resumed.
        LeptonError: what went wrong; what was finished is kept.
    """
    check_tracker(settings.tracker)
    settings = settled(settings)
    return execute(settings, create(settings), observer)


def settled(settings: Settings) -> Settings:
    """Returns settings that mean the same in any folder, where a run is resumed or reported."""
    data, tracker = settings.data, settings.tracker
    if data.root not in (None, MADE_UP):
        data = replace(data, root=str(Path(data.root).resolve()))
    if tracker.folder is not None:
        tracker = replace(tracker, folder=str(Path(tracker.folder).resolve()))
    return replace(settings, data=data, tracker=tracker)


def create(settings: Settings) -> RunFolder:
    """Creates the run folder with its configuration, for sites that are made as they are asked.

    Raises:
        DataError: the data is missing, invalid or too little.
        SettingsError: the partition does not fit the data set.
    """
    split(settings)  # or the faults that it names, before anything is written
    settings = resolve_vectorize(settings)
    what = "statistics" if settings.statistics.asked else settings.privacy.mode
    name = f"{stamp()}-{settings.task}-{what}"
    folder = RunFolder(new_folder(Path(settings.runs).resolve() / name))
    if settings.engine.vectorize == "none":
        SimulatedSites(settings, folder).found()
    else:
        found_host(settings, folder)
    # The configuration comes last: a folder without one, as a crash may leave it, is not a run.
    write_config(settings, folder)
    return folder


def resume(run: Run, observer: Observer | None = None) -> Run:
    """Continues a run from its last finished round.

    Raises:
        RunNotResumable: it is finished.
        LeptonError: as `start`.
    """
    if run.status == "finished":
        raise RunNotResumable(f"The run {run.name} is finished; start a new one.")
    check_tracker(run.settings.tracker)
    return execute(run.settings, run.folder, observer)


@contextmanager
def only_writer(folder: RunFolder) -> Iterator[None]:
    """Keeps other processes off a run; the system lets go of the lock when this one dies."""
    lock = sqlite3.connect(folder.path / "run.lock", timeout=0.0, isolation_level=None)
    try:
        try:
            lock.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError as error:
            raise RunNotResumable(
                f"Another process works on the run {folder.path.name}; wait for it, or end it."
            ) from error
        yield
    finally:
        lock.close()


def execute(settings: Settings, folder: RunFolder, observer: Observer | None = None) -> Run:
    """Runs what is left of a run whose folder is there; as `start`."""
    observer = observer or Observer()
    with only_writer(folder):
        trackers = trackers_of(settings, folder, store=folder.path.parent)
        watched = Observers([observer, *trackers])
        try:
            return _work(settings, folder, watched)
        finally:
            card = folder.path / "model_card.md"
            watched.on_end(Run(folder).status, [card] if card.exists() else [])


def _work(settings: Settings, folder: RunFolder, observer: Observer) -> Run:
    try:
        with needs_room(folder.path):
            return _finish(settings, folder, observer)
    except DiskFull as error:
        # Also where all rounds are done and the report finds no room: then that is to be resumed.
        folder.outcome.unlink(missing_ok=True)
        raise DiskFull(
            f"{error} What was finished is kept; then go on with: "
            f"lepton simulate resume={folder.path}"
        ) from error


def _finish(settings: Settings, folder: RunFolder, observer: Observer) -> Run:
    run = Run(folder)
    folder.outcome.unlink(missing_ok=True)
    # Flower's own lines on each aggregation would drown the progress.
    logging.getLogger("flwr").setLevel(logging.WARNING)
    try:
        if settings.baselines and not (run.baselines or settings.statistics.asked):
            from lepton_cli.baselines import train_baselines

            sites, kept = SimulatedSites(settings, folder), ~kept_for_evaluation(settings)
            rows = {sites.name(index): part[kept[part]] for index, part in enumerate(sites.parts)}
            everyone, data = np.flatnonzero(kept), dataset_of(settings)
            with suppress(Interrupted):  # told below, as of any round
                result = train_baselines(settings, data, rows, everyone, observer)
                write_atomic(folder.path / "baselines.json", json.dumps(result, indent=1).encode())
        run_apps(settings, folder, observer)
    except DiskFull:
        raise  # nothing can be written of it
    except LeptonError as error:
        _end(folder, "failed", error=type(error).__name__, message=str(error))
        logs = folder.host if folder.host.exists() else folder.path / "sites" / "*"
        error.add_note(f"What failed at a site is in {logs}/errors.log.")
        raise
    run = Run(folder)
    # What draws is imported when there is something to draw: the first round need not wait for it.
    if settings.statistics.asked:
        from lepton_cli.statistics import draw_statistics

        _end(folder, "finished")
        if settings.statistics.evaluates is None:
            draw_statistics(run)
        return run
    finished = len(run.rounds) == settings.rounds
    _end(folder, "finished" if finished else "stopped")
    if run.rounds:
        from lepton_cli.report import write_report

        write_report(run)
    if not finished:
        last = f"after round {len(run.rounds)} of {settings.rounds}, which is kept"
        raise Interrupted(
            f"Stopped {last if run.rounds else 'before the first round'}. "
            f"Go on with: lepton simulate resume={folder.path}"
        )
    return run


def run_apps(settings: Settings, folder: RunFolder, observer: Observer) -> None:
    """Runs the ServerApp against the ClientApp on the engine that the settings name."""
    clear_unfinished(folder)
    settings = resolve_vectorize(settings)
    engine = settings.engine
    nodes: Mapping[int, NodeConfig] = (
        SimulatedSites(settings, folder)
        if engine.vectorize == "none"
        else host_nodes(settings, folder)
    )
    grid = open_grid(engine, nodes)
    context = Context(
        run_id=grid.run.run_id,
        node_id=1,
        node_config={},
        state=RecordDict(),
        run_config={"settings": to_json(settings), "run_folder": str(folder.path)},
    )
    watched = OBSERVER.set(observer)
    try:
        server_app(grid, context)
    finally:
        OBSERVER.reset(watched)
        grid.close()


def write_config(settings: Settings, folder: RunFolder) -> None:
    """Writes a run's configuration, and on which machine it began."""
    write_atomic(folder.about, json.dumps(_about(settings), indent=1).encode())
    text = yaml.safe_dump(json.loads(to_json(settings)), sort_keys=False)
    write_atomic(folder.config, text.encode())


def _about(settings: Settings) -> dict[str, object]:
    return {
        **machine_facts(),
        "seed": settings.seed,
        "threads_per_site": settings.engine.threads_per_site,
    }


def _end(folder: RunFolder, status: str, **facts: str) -> None:
    write_atomic(folder.outcome, json.dumps({"status": status, **facts}).encode())
