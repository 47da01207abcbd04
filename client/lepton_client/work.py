"""One request at a site, top to bottom: consent, ledger, data, training, masking, door."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from flwr.app import Message

from lepton_client import consent, secure
from lepton_client.door import Outbound
from lepton_client.drawing import check_group, draw_groups
from lepton_client.ledger import Charge
from lepton_client.participant import Participant
from lepton_client.site import Site
from lepton_client.training.trees import within
from lepton_common.arrays import Vector
from lepton_common.chain import GENESIS
from lepton_common.errors import EncodingError, PrivateWorkFailed
from lepton_common.messages import (
    Receipt,
    SiteFacts,
    TrainRequest,
    read_hello,
    read_model,
    read_train,
)
from lepton_common.models.tree_form import form_of
from lepton_common.privacy.plan import WHOLE_SITE, PrivacyPlan
from lepton_common.privacy.provenance import PROTOCOL, PUBLIC, UNPROTECTED, protected_by_dp
from lepton_common.secagg.ring import Integers
from lepton_common.secagg.spec import RoundSpec
from lepton_common.stages import DRAWING, SecAggStage, StageRequest, read_request, read_stage
from lepton_common.summing import SummedForm, most_of_a_cell


def introduce(message: Message, site: Site) -> Message:
    """Answers a hello with the site's public facts, if it takes part in the run.

    Raises:
        LeptonError: what forbids it.
    """
    request = read_hello(message.content)
    if site.file.launch is not None:
        site.proposals.admit(request.run, request.proposal, site.file, site.roster)
    facts = SiteFacts(
        name=site.file.name,
        public_key=site.key.public_hex,
        public_size=site.file.public_size,
        unit=site.file.data.unit,
        audit_head=GENESIS,  # the door stamps the true head
    )
    return site.door.release(message, [Outbound("site", facts, PUBLIC)], {"run": request.run})


def train(message: Message, site: Site) -> Message:
    """Trains for one round and releases the update, or takes its part in a masked sum.

    Raises:
        LeptonError: what forbids it.
    """
    if "secagg" in message.content:
        return take_part(message, site)
    request = read_train(message.content)
    received = read_model(message.content, request)
    _check_proposed(request, site, len(received))
    plan = consent.check(request, site.file)
    trained = _train(request, received, site, plan)
    if trained.charge is None:
        items = [
            Outbound("update", trained.update, UNPROTECTED),
            Outbound("loss", trained.loss, UNPROTECTED),
        ]
    else:
        items = [Outbound("update", trained.update, protected_by_dp(trained.charge.event))]
    items.append(Outbound("receipt", _receipt(request, site, plan), PROTOCOL))
    return site.door.release(message, items, _about(request), trained.charge)


def take_part(message: Message, site: Site) -> Message:
    """Answers one stage of secure aggregation; training happens in the one that masks.

    Raises:
        LeptonError: what forbids it; the round is over for this site.
    """
    asked = read_stage(message.content)
    if asked.stage in DRAWING:
        return draw_groups(message, asked, site)
    if asked.stage is SecAggStage.ADVERTISE:
        return _join(message, asked, site)
    with secure.resumed(asked, site) as part:
        if asked.stage is SecAggStage.MASK:
            return _train_masked(message, asked, part, site)
        items = [Outbound("secagg", secure.answer(part, asked), PROTOCOL)]
        return secure.release(message, part, items, site, {})


def _join(message: Message, asked: StageRequest, site: Site) -> Message:
    request = read_request(message.content)
    spec = RoundSpec.from_bytes(asked.spec)
    _check_proposed(request, site)
    consent.check(request, site.file, spec)
    consent.check_round(spec, request, site.file, site.roster)
    groups = request.masked.groups if request.masked else 1
    check_group(spec, asked.body, groups, request.round, site)
    part = secure.begin(spec, site)
    items = [Outbound("secagg", part.advertise(), PROTOCOL)]
    return secure.release(message, part, items, site, _about(request))


def _train_masked(message: Message, asked: StageRequest, part: Participant, site: Site) -> Message:
    request = read_request(message.content)
    consent.check_round(part.spec, request, site.file, site.roster)
    plan = consent.check(request, site.file, part.spec)
    received = read_model(message.content, request)
    _check_proposed(request, site, len(received))
    site.spent.check_masking(part.spec)
    part.open(asked.body)  # before anything is spent on a round that cannot be
    trained = _train(request, received, site, plan)
    try:
        items = _masked(trained, request, part, site)
    except EncodingError as error:
        if plan is None:
            raise
        # Whether the values could be encoded may depend on the records.
        site.keep_trace(error)
        raise PrivateWorkFailed("The update could not be encoded; see errors.log.") from None
    items.append(Outbound("receipt", _receipt(request, site, plan), PROTOCOL))
    return secure.release(message, part, items, site, _about(request), trained.charge)


def _masked(
    trained: "_Result", request: TrainRequest, part: Participant, site: Site
) -> list[Outbound]:
    """Returns the masked update; what the round does not sum of it stays for a later one."""
    form, spec, update = request.masked, part.spec, trained.update
    assert form is not None, "consent refuses masked rounds without it"
    if trained.noised is not None:
        return secure.mask(part, trained.noised, 1.0, trained.charge)
    if request.statistics is not None and np.abs(update).max(initial=0.0) > spec.clip:
        raise EncodingError(
            f"What people add up to is beyond {spec.clip:g}, where a masked sum would be cut off: "
            "raise secagg.clip."
        )
    summed = SummedForm(request, form, len(update))
    if form.coordinates < 1:
        before = site.residuals.before(request, len(update))
        update = update + before
        site.residuals.keep(request, before, summed.unsent(spec, update))
    metrics = [trained.loss][: len(summed.metrics)]
    values = summed.vector(spec, update, metrics, site.file.name)
    weight = min(trained.records / form.weight_cap, 1.0) if form.weight_cap else 1.0
    stochastic = form.rounding == "stochastic"
    return secure.mask(part, values, weight, trained.charge, stochastic=stochastic)


@dataclass(frozen=True)
class _Result:
    update: Vector
    loss: float = 0.0
    records: int = 0
    charge: Charge | None = None
    noised: Integers | None = None  # in the place of the update, where the noise is shared


def _train(
    request: TrainRequest, received: Vector, site: Site, plan: PrivacyPlan | None
) -> _Result:
    if plan is None:
        with site.training(request.run) as trainer:
            trained = trainer.train(request, received)
        update = trained.update
        if request.grows_trees:
            update = within(update, most_of_a_cell(site.file.public_size))
        return _Result(update, trained.loss, trained.records)
    if form_of(request.model) is None:  # trees multiply nothing, and count levels beyond 100
        consent.check_model(received)
    consent.check_device(site.trainer.device(request), site.file.policy)
    site.ledger.refresh()
    site.ledger.check_head(request.ledger_heads.get(site.file.name))
    study = site.proposals.budget(request.run, site.roster) if site.file.launch else None
    site.ledger.check(plan, request, site.file.policy, study)  # before any record is read
    with _one_name(site), site.training(request.run) as trainer:
        # From here on a failure may tell whether people are in earlier data too.
        site.ledger.use_data(site.file.data.unit, trainer.people())
        charge = site.ledger.reserve(plan, request, site.file.policy, study)
        by_gradients = request.statistics is None and not request.grows_trees
        if plan.unit != WHOLE_SITE and by_gradients:
            site.note_engine(request.run, trainer.conformance(request))
        if plan.shared is None:
            update = trainer.train_privately(request, received, plan)
            return _Result(update, charge=charge)
        noised = trainer.noised_sum(request, received, plan)
        return _Result(received, charge=charge, noised=noised)


def _check_proposed(request: TrainRequest, site: Site, size: int | None = None) -> None:
    if site.file.launch is not None:
        site.proposals.check(request, size, site.file, site.roster)


def _about(request: TrainRequest) -> dict[str, str | int]:
    about: dict[str, str | int] = {"run": request.run, "round": request.round}
    return about if request.statistics is None else {**about, "of": "statistics"}


def _receipt(request: TrainRequest, site: Site, plan: PrivacyPlan | None) -> Receipt:
    return Receipt(
        run=request.run,
        round=request.round,
        plan=plan.digest if plan else None,
        steps=site.ledger.steps(request.run),
        epsilon=site.ledger.epsilon_of_run(request.run, plan.delta) if plan else 0.0,
        audit_head=GENESIS,  # the door stamps the true heads
        ledger_head=GENESIS,
    )


@contextmanager
def _one_name(site: Site) -> Iterator[None]:
    """Lets whatever goes wrong leave under one name, because it may depend on the records."""
    try:
        yield
    except Exception as error:
        site.keep_trace(error)
        raise PrivateWorkFailed("Private training failed; see errors.log at the site.") from None
