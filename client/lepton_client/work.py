"""One request at a site, top to bottom: consent, ledger, data, training, door."""

import hashlib

from flwr.app import Message

from lepton_client import consent
from lepton_client.door import Outbound
from lepton_client.site import Site
from lepton_client.training.plain import train_plain
from lepton_client.training.private import train_private
from lepton_client.training.resident import ResidentModel, resident_model
from lepton_common.arrays import Vector
from lepton_common.audit import GENESIS
from lepton_common.datasets.records import Records
from lepton_common.device import pick_device
from lepton_common.errors import EmptySite, ModelMismatch, PrivateWorkFailed
from lepton_common.messages import (
    Receipt,
    SiteFacts,
    TrainRequest,
    read_hello,
    read_model,
    read_train,
)
from lepton_common.privacy.plan import PrivacyPlan
from lepton_common.privacy.provenance import PROTOCOL, PUBLIC, UNPROTECTED, protected_by_dp
from lepton_common.tasks.catalog import find_task


def introduce(message: Message, site: Site) -> Message:
    """Answers a hello with the site's public facts."""
    request = read_hello(message.content)
    facts = SiteFacts(
        name=site.file.name,
        public_key=site.key.public_hex,
        public_size=site.file.public_size,
        unit=site.file.data.unit,
        audit_head=GENESIS,  # the door stamps the true head
    )
    return site.door.release(message, [Outbound("site", facts, PUBLIC)], {"run": request.run})


def train(message: Message, site: Site) -> Message:
    """Trains for one round and releases the update, or raises what forbids it."""
    request = read_train(message.content)
    plan = consent.check(request, site.file)
    received = read_model(message.content, request)
    if plan is None:
        update, loss = _train_plain(request, received, site)
        items = [Outbound("update", update, UNPROTECTED), Outbound("loss", loss, UNPROTECTED)]
        charge = None
    else:
        consent.check_model(received)
        charge = site.ledger.reserve(plan, request, site.file.policy)
        update = _train_private(request, received, site, plan)
        items = [Outbound("update", update, protected_by_dp(charge.event))]
    receipt = Receipt(
        run=request.run,
        round=request.round,
        plan=plan.digest if plan else None,
        steps=site.ledger.steps(request.run),
        epsilon=site.ledger.epsilon(plan.delta) if plan else 0.0,
        audit_head=GENESIS,  # the door stamps the true head
    )
    items.append(Outbound("receipt", receipt, PROTOCOL))
    about: dict[str, str | int] = {"run": request.run, "round": request.round}
    return site.door.release(message, items, about, charge)


def _train_plain(request: TrainRequest, received: Vector, site: Site) -> tuple[Vector, float]:
    model, records = _prepare(request, received, site, channels_last=True)
    seed = _site_seed(request.recipe.seed, site.file.name)
    return train_plain(model, find_task(request.task), records, received, request.recipe, seed)


def _train_private(
    request: TrainRequest, received: Vector, site: Site, plan: PrivacyPlan
) -> Vector:
    # What goes wrong from here on may depend on the records, so it leaves under one name.
    try:
        model, records = _prepare(request, received, site, channels_last=False)
        task = find_task(request.task)
        return train_private(model, task, records, received, request.recipe, plan)
    except Exception as error:
        site.keep_trace(error)
        raise PrivateWorkFailed("Private training failed; see errors.log at the site.") from None


def _prepare(
    request: TrainRequest, received: Vector, site: Site, *, channels_last: bool
) -> tuple[ResidentModel, Records]:
    records = site.records()
    if len(records) == 0:
        raise EmptySite("This site holds no record; check the data in its site file.")
    dataset = site.dataset()
    outputs = find_task(request.task).outputs(dataset.classes)
    model = resident_model(
        request.model,
        dataset.input_shape,
        outputs,
        pick_device(request.recipe.device),
        channels_last=channels_last,
    )
    if model.layout.digest != request.layout or model.layout.size != len(received):
        raise ModelMismatch("The server's model has another layout than this site's catalog.")
    return model, records


def _site_seed(seed: int, site: str) -> int:
    """Returns a seed of its own for each site, so that one request can serve them all."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{site}".encode()).digest()[:7])
