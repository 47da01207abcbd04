"""One request for many sites, top to bottom: consent, ledger, training together, door."""

from dataclasses import dataclass

import numpy as np
import torch
from flwr.app import Message

from lepton_client import consent
from lepton_client.door import Outbound
from lepton_client.hosted.host import Host, Member
from lepton_client.ledger import Charge
from lepton_client.trainer import site_seed
from lepton_client.training.many import ManyTrained, train_plain_many, train_private_many
from lepton_client.training.resident import ResidentModel, resident_model
from lepton_common.arrays import Vector
from lepton_common.chain import GENESIS
from lepton_common.device import pick_device
from lepton_common.errors import (
    ConsentRefused,
    EmptySite,
    ModelMismatch,
    PlanError,
    PrivateWorkFailed,
    UpdateInvalid,
)
from lepton_common.hosting import (
    Enrolled,
    HostFacts,
    ManyReceipts,
    Vectors,
    read_enrol,
    read_train_many,
)
from lepton_common.messages import Receipt, TrainRequest, read_hello, read_model
from lepton_common.privacy.plan import PrivacyPlan
from lepton_common.privacy.provenance import PUBLIC, UNPROTECTED, protected_by_dp
from lepton_common.tasks.catalog import find_task


def introduce(message: Message, host: Host) -> Message:
    """Answers a hello with the host's public facts.

    Raises:
        LeptonError: what forbids it.
    """
    request = read_hello(message.content)
    facts = HostFacts(
        sites=host.sites,
        unit=host.file.data.unit,
        public_key=host.key.public_hex,
        audit_head=GENESIS,  # the door stamps the true head
    )
    return host.door.release(message, [Outbound("host", facts, PUBLIC)], {"run": request.run})


def enrol(message: Message, host: Host) -> Message:
    """Answers with the names and public sizes of some sites.

    Raises:
        LeptonError: what forbids it.
    """
    request = read_enrol(message.content)
    members = [host.member(place) for place in request.places]
    enrolled = Enrolled(
        names=[member.name for member in members],
        public_sizes=[member.public_size for member in members],
    )
    about = {"run": request.run}
    return host.door.release(message, [Outbound("enrolled", enrolled, PUBLIC)], about)


def train(message: Message, host: Host) -> Message:
    """Trains some sites for one round and releases their updates.

    Raises:
        LeptonError: what forbids it to all of them.
    """
    request, places = read_train_many(message.content)
    if request.statistics is not None:
        raise ConsentRefused("A host trains its sites together, and answers no statistics.")
    if request.grows_trees:
        raise ConsentRefused("A host trains its sites together, and grows no trees.")
    received = read_model(message.content, request)
    members = {member.name: member for member in map(host.member, places)}
    failed: dict[str, str] = {}
    plans = _consents(request, host, members, failed)
    if request.privacy is None:
        trained = _train(request, received, host, members, failed)
    else:
        host.ledger.check_heads(request.ledger_heads.values())
        consent.check_model(received)
        consent.check_device(pick_device(request.recipe.device).type, host.file.policy)
        trained = _train_privately(request, received, host, members, plans, failed)
    provenance = protected_by_dp(trained.charge.event) if trained.charge else UNPROTECTED
    receipts = _receipts(request, host, plans, trained, failed)
    about: dict[str, str | int] = {"run": request.run, "round": request.round}
    return host.door.release_many(
        message, trained.updates, trained.losses, receipts, provenance, about, trained.charge,
        host.leaves, host.ledger,
    )  # fmt: skip


@dataclass
class _Result:
    names: list[str]
    updates: Vectors
    losses: list[float] | None = None
    charge: Charge | None = None


def _consents(
    request: TrainRequest, host: Host, members: dict[str, Member], failed: dict[str, str]
) -> dict[str, PrivacyPlan]:
    """Asks each site for its consent; returns the plans, and drops who refuses.

    What a site's own file says besides its name is its public size, so that sites of one size say
    the same.
    """
    plans: dict[str, PrivacyPlan] = {}
    said: dict[int, PrivacyPlan | ConsentRefused | PlanError | None] = {}
    for name, member in list(members.items()):
        if member.public_size not in said:
            try:
                said[member.public_size] = consent.check(request, host.site_file(member))
            except (ConsentRefused, PlanError) as error:
                host.keep_trace(error)
                said[member.public_size] = error
        answer = said[member.public_size]
        if isinstance(answer, Exception):
            failed[name] = type(answer).__name__
            del members[name]
        elif answer is not None:
            plans[name] = answer
    return plans


def _train(
    request: TrainRequest,
    received: Vector,
    host: Host,
    members: dict[str, Member],
    failed: dict[str, str],
) -> _Result:
    empty = [name for name, member in members.items() if len(member.rows) == 0]
    names = _drop(members, failed, EmptySite, empty)
    if not names:
        return _nothing(received)
    found = train_plain_many(
        _model(request, received, host),
        find_task(request.task),
        host.dataset.train,
        [members[name].rows for name in names],
        received,
        request.recipe,
        [site_seed(request.recipe.seed, name) for name in names],
    )
    losses = [] if found.losses is None else found.losses[~found.diverged].tolist()
    names, updates = _finite(found, names, members, failed, UpdateInvalid)
    return _Result(names, updates, losses)


def _train_privately(
    request: TrainRequest,
    received: Vector,
    host: Host,
    members: dict[str, Member],
    plans: dict[str, PrivacyPlan],
    failed: dict[str, str],
) -> _Result:
    charge, refused = host.ledger.reserve(list(members), plans, request)
    for name, error in refused.items():
        host.keep_trace(error)
        failed[name] = type(error).__name__
        del members[name]
    if charge is None:
        return _nothing(received)
    names = list(members)
    try:
        found = train_private_many(
            _model(request, received, host),
            find_task(request.task),
            host.dataset.train,
            [members[name].rows for name in names],
            received,
            request.recipe,
            [plans[name] for name in names],
        )
    except Exception as error:
        # Which error it was may depend on the records, and the charge stays spent.
        host.keep_trace(error)
        raise PrivateWorkFailed("Private training failed; see errors.log at the host.") from None
    host.note_engine(request.run)
    names, updates = _finite(found, names, members, failed, PrivateWorkFailed)
    return _Result(names, updates, charge=charge)


def _nothing(received: Vector) -> _Result:
    return _Result([], np.empty((0, len(received)), np.float32))


def _finite(
    found: ManyTrained,
    names: list[str],
    members: dict[str, Member],
    failed: dict[str, str],
    why: type[Exception],
) -> tuple[list[str], Vectors]:
    """Drops the sites whose training diverged; returns the others and their updates."""
    if not found.diverged.any():
        return names, found.updates
    lost = [name for name, bad in zip(names, found.diverged, strict=True) if bad]
    return _drop(members, failed, why, lost), found.updates[~found.diverged]


def _drop(
    members: dict[str, Member], failed: dict[str, str], why: type[Exception], names: list[str]
) -> list[str]:
    """Drops some sites; returns the names of the others."""
    for name in names:
        failed[name] = why.__name__
        del members[name]
    return list(members)


def _receipts(
    request: TrainRequest,
    host: Host,
    plans: dict[str, PrivacyPlan],
    trained: _Result,
    failed: dict[str, str],
) -> ManyReceipts:
    unlike: dict[tuple[PrivacyPlan | None, int], int] = {}
    receipts: list[Receipt] = []
    of: list[int] = []
    for name in trained.names:
        plan, rounds = plans.get(name), host.ledger.rounds(name)
        if (plan, rounds) not in unlike:
            unlike[plan, rounds] = len(receipts)
            receipts.append(
                Receipt(
                    run=request.run,
                    round=request.round,
                    plan=plan.digest if plan else None,
                    steps=rounds * plan.steps_per_round if plan else 0,
                    epsilon=plan.epsilon(rounds) if plan else 0.0,
                    audit_head=GENESIS,  # the door stamps the true heads
                    ledger_head=GENESIS,
                )
            )
        of.append(unlike[plan, rounds])
    return ManyReceipts(names=trained.names, receipts=receipts, of=of, failed=failed)


def _model(request: TrainRequest, received: Vector, host: Host) -> ResidentModel:
    dataset = host.dataset
    outputs = find_task(request.task).outputs(dataset.classes, dataset.input_shape)
    device: torch.device = pick_device(request.recipe.device)
    model = resident_model(request.model, dataset.input_shape, outputs, device, channels_last=False)
    if (model.layout.digest, model.layout.size) != (request.layout, len(received)):
        raise ModelMismatch("The server's model has another layout than the sites' catalog.")
    return model
