"""One round of a proposed run on the site's own data: nothing is sent, charged or logged.

The site works on a copy of its folder in a temporary one; its trainer is the real one, on the real
data. Coordinator and other sites run in this process, the same code as over a network.
"""

import contextlib
import re
import shutil
import sqlite3
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from flwr.app import RecordDict

from lepton_cli.desk.folder import Desk, trainer_of
from lepton_cli.desk.log import line
from lepton_cli.desk.rehearsed import Rehearsed
from lepton_cli.desk.requests import Asked
from lepton_cli.desk.stand_in import Watched, roster_with, stand_ins
from lepton_client.app import app
from lepton_client.approved_models import approvals_file
from lepton_client.connectors.report import REPORT_FILE
from lepton_client.people import people_secret
from lepton_client.proposals import FOLDER, STUDIES
from lepton_client.site import (
    AUDIT_FILE,
    KEY_FILE,
    LEDGER_FILE,
    SITE_FILE,
    Site,
    open_site,
)
from lepton_client.traces import ERROR_FILE
from lepton_client.trainer import Trainer, Wanted
from lepton_common import errors
from lepton_common.asking import privacy_request, shared_noise
from lepton_common.chain import ChainRecord
from lepton_common.errors import LeptonError, RehearsalFailed
from lepton_common.messages import (
    HELLO,
    HelloRequest,
    SiteFacts,
    TrainRequest,
    hello_content,
    read_facts,
)
from lepton_common.models.bases import BASES
from lepton_common.settings import Settings
from lepton_server.engines.inprocess import InProcessGrid
from lepton_server.rounds.checkpoint import Checkpoint
from lepton_server.rounds.clip_scale import ClipScale
from lepton_server.rounds.collect import collect
from lepton_server.rounds.exact_mean import ExactMean
from lepton_server.rounds.groups import gather_secure
from lepton_server.rounds.journal import SumJournal
from lepton_server.rounds.plain_round import gather_plain
from lepton_server.rounds.request import train_request

_FIRST_NODE = 2  # Flower speaks as node 1
_RAISED = re.compile(r"^lepton_common\.errors\.(\w+): (.*)$", re.MULTILINE)


def rehearse(desk: Desk, found: Asked, passphrase: str | None = None) -> Rehearsed:
    """Goes through one round of a proposed run.

    Args:
        desk: the site's.
        found: the run.
        passphrase: of the site's sealed key, or the PIN of its token.

    Raises:
        LeptonError: what would end the run at this site in its first round.
    """
    if found.settings is None:
        raise found.against[0]
    if found.settings.statistics.asked:
        raise RehearsalFailed(
            f"The run {found.run} asks for statistics, which is one sum and trains nothing to "
            "rehearse; 'lepton site requests' tells what it would cost."
        )
    if any(r.kind == "release" and r.body.get("round") for r in _of(desk, found.run)):
        raise RehearsalFailed(
            f"The run {found.run} has begun at this site, where no model is trained on twice; "
            "'lepton site log' tells what has left."
        )
    with tempfile.TemporaryDirectory(prefix="lepton-rehearsal-") as name:
        place = Path(name)
        site = _copy(desk, place, found.run, passphrase)
        with trainer_of(desk, people_secret(site.key)) as trainer:
            watched = Watched(trainer)
            site.trainer = watched
            try:
                return _one_round(found.run, found.text, found.settings, site, watched, place)
            except LeptonError as error:
                if (site.folder / REPORT_FILE).exists():
                    shutil.copy(site.folder / REPORT_FILE, desk.folder)
                raise _named(error, site) from None


def _of(desk: Desk, run: str) -> list[ChainRecord]:
    return [record for record in desk.records if record.body.get("run") == run]


def _copy(desk: Desk, place: Path, run: str, passphrase: str | None) -> Site:
    """Opens a copy of the site, which asks no operator and has no quiet hours."""
    folder = place / "own"
    folder.mkdir()
    # Not copied: the private key stays where it is.
    (folder / KEY_FILE).symlink_to(desk.folder / KEY_FILE)
    shutil.copy(desk.folder / SITE_FILE, folder / SITE_FILE)
    # The log first: an agent at work writes a charge before it logs what the charge was for.
    if (desk.folder / AUDIT_FILE).exists():
        shutil.copy(desk.folder / AUDIT_FILE, folder / AUDIT_FILE)
    if (desk.folder / LEDGER_FILE).exists():
        with (
            contextlib.closing(sqlite3.connect(desk.folder / LEDGER_FILE)) as source,
            contextlib.closing(sqlite3.connect(folder / LEDGER_FILE)) as target,
        ):
            source.backup(target)
    if approvals_file(desk.folder).exists():  # what they say; the code is the trainer's alone
        approvals_file(folder).parent.mkdir()
        shutil.copy(approvals_file(desk.folder), approvals_file(folder))
    if (desk.folder / BASES).is_dir():
        (folder / BASES).symlink_to(desk.folder / BASES)
    if (desk.folder / STUDIES).is_dir():
        shutil.copytree(desk.folder / STUDIES, folder / STUDIES)
    (folder / FOLDER).mkdir()
    for other in desk.proposals.names():
        if other != run:
            shutil.copy(desk.folder / FOLDER / f"{other}.json", folder / FOLDER)
    site = open_site(str(folder), passphrase)
    assert site.file.launch is not None, "the desk has asked for it"
    rules = replace(site.file.launch, approval="automatic", quiet_hours=[])
    site.file = replace(site.file, launch=rules)
    site.roster = desk.roster
    return site


def _one_round(
    run: str, text: str, settings: Settings, site: Site, watched: Watched, place: Path
) -> Rehearsed:
    began = time.monotonic()
    before, taken = len(site.audit.records), site.ledger.steps(run)
    names = _others(site, settings.cohort) if settings.secure else []
    others = stand_ins(place, names, site.file)
    site.roster = roster_with(site.roster, site, others)
    for other in others:
        other.roster = site.roster
    nodes = dict(enumerate([site, *others], start=_FIRST_NODE))
    grid = InProcessGrid(app, {node: {"site": str(at.folder)} for node, at in nodes.items()})
    try:
        request, size, summed = _coordinate(grid, run, text, settings, watched, place)
    finally:
        grid.close()
    assert watched.values is not None, "a round without training has raised"
    plan = None
    if request.privacy is not None:
        unit, public_size = site.file.data.unit, site.file.public_size
        plan = request.privacy.plan(unit, public_size, shared_noise(settings, size))
    return Rehearsed(
        run=run,
        left=[line(r) for r in site.audit.records[before:] if r.kind == "release"],
        plan=plan,
        charged=(site.ledger.steps(run) - taken) // (plan.steps_per_round if plan else 1),
        values=watched.values,
        clip=settings.secagg.clip if settings.secure and not settings.shares_noise else None,
        seconds=time.monotonic() - began,
        training=watched.seconds,
        others=len(others),
        summed=summed,
    )


def _others(site: Site, cohort: int) -> list[str]:
    """Returns the names of the other sites of a cohort: the roster's, and more if these are few."""
    names = [member.name for member in site.roster.members if member.name != site.file.name]
    made_up = (f"made-up-{index}" for index in range(1, cohort))
    return [*names, *made_up][: cohort - 1]


def _coordinate(
    grid: InProcessGrid, run: str, text: str, settings: Settings, trainer: Trainer, place: Path
) -> tuple[TrainRequest, int, bool]:
    """Does what a coordinator does in a run's first round.

    Returns its request, the number of weights, and whether a sum came out.
    """
    hello = hello_content(HelloRequest(run=run, proposal=text))
    sites: dict[int, SiteFacts] = {}
    contents = dict.fromkeys(grid.get_node_ids(), hello)
    for node, answer in collect(grid, contents, HELLO, settings.federation.round_timeout_s):
        sites[node] = read_facts(_good(answer))
    wanted = Wanted(task=settings.task, model=settings.model, seed=settings.seed)
    model = trainer.initial(wanted)
    size, values = len(model.vector), model.vector
    equal = settings.federation.weights == "equal"
    weights = {facts.name: 1 if equal else facts.public_size for facts in sites.values()}
    if not settings.secure:  # each site is asked alone, so the others are but names
        names = (f"other-{index}" for index in range(1, settings.cohort))
        weights |= dict.fromkeys(names, next(iter(weights.values())))
    request = train_request(
        settings,
        run,
        model.layout,
        Checkpoint(round=0, model=values),
        privacy_request(settings, size),
        weights,
        {},
        ClipScale(settings.privacy.clip_quantile).value,
    )
    if settings.secure:
        journal = SumJournal(place / "sums")
        gathered = gather_secure(grid, settings, sites, request, values, journal)
    else:
        mean = ExactMean(size, weights, keep_each=False)
        timeout_s = settings.federation.round_timeout_s
        gathered = gather_plain(grid, sites, request, values, mean, timeout_s)
    for name in gathered.failed.values():
        _good(name)
    return request, size, gathered.mean.count == len(sites)


def _good(answer: RecordDict | str) -> RecordDict:
    """Returns a site's answer.

    Raises:
        RehearsalFailed: it is an error's name.
    """
    if isinstance(answer, str):
        raise RehearsalFailed(f"The round ends with {answer}.")
    return answer


def _named(error: LeptonError, site: Site) -> LeptonError:
    """Returns what the site itself has said of an error, where it has, rather than its name."""
    path = site.folder / ERROR_FILE
    said = _RAISED.findall(path.read_text(encoding="utf-8")) if path.exists() else []
    if not said:
        return error
    name, sentence = said[0]  # the first cause; what it was turned into comes after it
    kind = getattr(errors, name, RehearsalFailed)
    found: LeptonError = kind(sentence)
    return found
