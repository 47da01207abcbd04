"""A simulated federation: throwaway sites on disk, an engine, and the two apps of deployment."""

import json
import logging
import platform
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
import yaml
from flwr.app import Context, RecordDict

from lepton_cli.baselines import train_baselines
from lepton_cli.report import write_report
from lepton_cli.run import Run
from lepton_client.app import app as client_app
from lepton_client.data import SiteData
from lepton_client.site import KEY_FILE, ROOT_FILE, ROSTER_FILE, SITE_FILE, SiteFile
from lepton_common.datasets.catalog import load_dataset
from lepton_common.datasets.partition import partition
from lepton_common.datasets.records import Dataset, Rows
from lepton_common.durable import write_atomic
from lepton_common.errors import Interrupted, LeptonError, RunNotResumable
from lepton_common.identity.keys import SigningKey
from lepton_common.identity.roster import Coordinator, Member, Roster, root_of, sign_roster
from lepton_common.identity.signed import Partners
from lepton_common.privacy.plan import public_size_class
from lepton_common.settings import Settings
from lepton_common.strict import to_json
from lepton_common.tasks.catalog import find_task
from lepton_server.app import app as server_app
from lepton_server.engines.inprocess import InProcessGrid
from lepton_server.engines.serialising import SerialisingGrid
from lepton_server.progress import OBSERVER, Observer, Observers
from lepton_server.run_folder import RunFolder
from lepton_server.trackers.catalog import check_tracker, trackers_of

_ROWS = "rows.npy"
# The C version, where PyYAML was built with it, is ten times faster: it counts for many sites.
_DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
_FIRST_NODE = 2  # Flower speaks as node 1


def start(settings: Settings, observer: Observer | None = None) -> Run:
    """Creates the run folder and its sites, runs all rounds, and writes the report.

    Raises:
        Interrupted: the observer asked to stop; the run can be resumed.
        LeptonError: what went wrong; what was finished is kept.
    """
    check_tracker(settings.tracker)
    settings = settled(settings)
    return _execute(settings, create(settings), observer or Observer())


def settled(settings: Settings) -> Settings:
    """Returns settings that mean the same in any folder, where a run is resumed or reported."""
    data, tracker = settings.data, settings.tracker
    if data.root is not None:
        data = replace(data, root=str(Path(data.root).resolve()))
    if tracker.folder is not None:
        tracker = replace(tracker, folder=str(Path(tracker.folder).resolve()))
    return replace(settings, data=data, tracker=tracker)


def create(settings: Settings) -> RunFolder:
    """Creates the run folder with its configuration and its simulated sites.

    Raises:
        DataError: the data is missing, invalid or too little.
        SettingsError: the partition does not fit the data set.
    """
    dataset = _dataset(settings)
    parts = split_over_sites(settings, dataset)
    folder = _new_folder(settings)
    make_sites(settings, folder, dataset, parts)
    # The configuration comes last: a folder without one, as a crash may leave it, is not a run.
    _write_config(settings, folder)
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
    return _execute(run.settings, run.folder, observer or Observer())


def split_over_sites(settings: Settings, dataset: Dataset) -> dict[str, Rows]:
    """Returns the training rows of each simulated site, by site name.

    Raises:
        DataError: a site would stay empty, or there are too few records.
        SettingsError: the partition does not fit the data set.
    """
    parts = partition(
        dataset,
        partitioner=settings.data.partition,
        sites=settings.sites,
        seed=settings.seed,
        alpha=settings.data.alpha,
        shards_per_site=settings.data.shards_per_site,
        min_records=settings.data.min_records,
    )
    width = len(str(settings.sites))
    names = [f"site-{index + 1:0{width}}" for index in range(settings.sites)]
    if settings.data.partition == "natural":
        names = list(dataset.sites)
    return dict(zip(names, parts, strict=True))


def make_sites(
    settings: Settings, folder: RunFolder, dataset: Dataset, parts: dict[str, Rows]
) -> None:
    """Writes the folder of each simulated site: site file, throwaway key, roster, list of rows."""
    keys = {name: SigningKey.generate() for name in parts}
    partner = SigningKey.generate()  # thrown away: nobody can add a site to a simulation
    members = [Member(name=name, public_key=keys[name].public_hex) for name in sorted(keys)]
    partners = Partners(keys=[partner.public_hex], threshold=1)
    server = SigningKey.generate()
    roster = Roster(
        federation=settings.federation.name,
        version=1,
        partners=partners,
        coordinator=Coordinator(
            name="coordinator", public_key=server.public_hex, authority="", hosts=[], port=443
        ),
        members=members,
    )
    signed = sign_roster(roster, [partner])
    folder.roster.parent.mkdir(parents=True)
    server.save(folder.server_key)
    folder.roster.write_text(signed, encoding="utf-8")
    folder.roster_root.write_text(root_of(signed), encoding="utf-8")
    for name, rows in parts.items():
        path = folder.site(name)
        path.mkdir(parents=True)
        file = SiteFile(
            name=name,
            public_size=public_size_class(dataset.train.take(rows).unit_count),
            data=SiteData(
                id=dataset.name,
                dataset=dataset.name,
                root=settings.data.root,
                prepare=settings.data.prepare,
                unit=dataset.unit,
                rows=_ROWS,
            ),
            policy=settings.policy,
        )
        (path / SITE_FILE).write_text(yaml.dump(asdict(file), Dumper=_DUMPER, sort_keys=False))
        np.save(path / _ROWS, rows, allow_pickle=False)
        (path / ROSTER_FILE).write_text(signed, encoding="utf-8")
        (path / ROOT_FILE).write_text(root_of(signed), encoding="utf-8")
        keys[name].save(path / KEY_FILE)


def _dataset(settings: Settings) -> Dataset:
    data = settings.data
    return load_dataset(find_task(settings.task).dataset, data.root, data.prepare)


@contextmanager
def _only_writer(folder: RunFolder) -> Iterator[None]:
    """Keeps other processes off a run; the system lets go of the lock when this one dies."""
    lock = sqlite3.connect(folder.path / "run.lock", timeout=0.0, isolation_level=None)
    try:
        lock.execute("BEGIN EXCLUSIVE")
        yield
    except sqlite3.OperationalError as error:
        raise RunNotResumable(
            f"Another process works on the run {folder.path.name}; wait for it, or end it."
        ) from error
    finally:
        lock.close()


def _execute(settings: Settings, folder: RunFolder, observer: Observer) -> Run:
    with _only_writer(folder):
        trackers = trackers_of(settings, folder, store=folder.path.parent)
        watched = Observers([observer, *trackers])
        try:
            return _work(settings, folder, watched)
        finally:
            card = folder.path / "model_card.md"
            watched.on_end(Run(folder).status, [card] if card.exists() else [])


def _work(settings: Settings, folder: RunFolder, observer: Observer) -> Run:
    run = Run(folder)
    folder.outcome.unlink(missing_ok=True)
    # Flower's own lines on each aggregation would drown the progress.
    logging.getLogger("flwr").setLevel(logging.WARNING)
    try:
        if settings.baselines and not run.baselines:
            rows = {site: _rows(folder, site) for site in _site_names(folder)}
            result = train_baselines(settings, _dataset(settings), rows)
            write_atomic(folder.path / "baselines.json", json.dumps(result, indent=1).encode())
        run_apps(settings, folder, observer)
    except LeptonError as error:
        _end(folder, "failed", error=type(error).__name__, message=str(error))
        error.add_note(f"What failed at a site is in {folder.path / 'sites'}/*/errors.log.")
        raise
    run = Run(folder)
    finished = len(run.rounds) == settings.rounds
    _end(folder, "finished" if finished else "stopped")
    if run.rounds:
        write_report(run)
    if not finished:
        raise Interrupted(
            f"Stopped after round {len(run.rounds)} of {settings.rounds}, which is kept. "
            f"Go on with: lepton simulate resume={folder.path}"
        )
    return run


def run_apps(settings: Settings, folder: RunFolder, observer: Observer) -> None:
    """Runs the ServerApp against the ClientApp on the engine that the settings name."""
    nodes = {
        node: {"site": str(folder.site(name))}
        for node, name in enumerate(_site_names(folder), start=_FIRST_NODE)
    }
    engine = settings.engine
    kind = SerialisingGrid if engine.serialise else InProcessGrid
    grid = kind(client_app, nodes, workers=engine.workers, threads_per_site=engine.threads_per_site)
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


def _site_names(folder: RunFolder) -> list[str]:
    return sorted(path.parent.name for path in (folder.path / "sites").glob(f"*/{SITE_FILE}"))


def _rows(folder: RunFolder, site: str) -> Rows:
    rows: Rows = np.load(folder.site(site) / _ROWS, allow_pickle=False)
    return rows


def _new_folder(settings: Settings) -> RunFolder:
    stamp = time.strftime("%Y%m%d-%H%M%S")
    base = Path(settings.runs).resolve() / f"{stamp}-{settings.task}-{settings.privacy.mode}"
    for suffix in ("", *(f"-{index}" for index in range(2, 1000))):
        path = base.with_name(base.name + suffix)
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            continue
        return RunFolder(path)
    raise RunNotResumable(f"Cannot find a free name for a run like {base}.")


def _write_config(settings: Settings, folder: RunFolder) -> None:
    write_atomic(folder.about, json.dumps(_about(settings), indent=1).encode())
    text = yaml.safe_dump(json.loads(to_json(settings)), sort_keys=False)
    write_atomic(folder.config, text.encode())


def _about(settings: Settings) -> dict[str, object]:
    packages = ("lepton-fl", "flwr", "torch", "opacus", "dp-accounting", "cryptography", "numpy")
    return {
        "command": " ".join(sys.argv),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "seed": settings.seed,
        "threads_per_site": settings.engine.threads_per_site,
        "git": _git_hash(),
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "versions": {name: metadata.version(name) for name in packages},
    }


def _git_hash() -> str | None:
    here = Path(__file__).parent
    try:
        answer = subprocess.run(
            ["git", "describe", "--always", "--dirty"],  # noqa: S607
            cwd=here,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()


def _end(folder: RunFolder, status: str, **facts: str) -> None:
    write_atomic(folder.outcome, json.dumps({"status": status, **facts}).encode())
