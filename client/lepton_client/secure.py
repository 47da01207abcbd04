"""A site's part in a round of SA1, with the sealed file and the record around it.

Each new state is on disk before its answer leaves, and each answer is on record before it
leaves, so a site that is killed at any point answers no stage twice. An error ends the round.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from flwr.app import Message

from lepton_client.door import Outbound
from lepton_client.ledger import Charge
from lepton_client.participant import Participant, Stage
from lepton_client.site import Site
from lepton_common.arrays import Vector
from lepton_common.errors import StateError
from lepton_common.privacy.provenance import PROTOCOL, protected_by_secagg
from lepton_common.secagg.ring import Integers
from lepton_common.secagg.spec import RoundSpec
from lepton_common.stages import SecAggStage, StageRequest


def begin(spec: RoundSpec, site: Site) -> Participant:
    """Begins a round; one of the same run that was not finished is given up.

    Raises:
        SecAggError: the site was in this round, or an update on its model is spent.
    """
    site.spent.check_new(spec)
    part = Participant.begin(spec, site.file.name, site.key)
    site.vault.erase_run(spec.run_id)
    return part


@contextmanager
def resumed(asked: StageRequest, site: Site) -> Iterator[Participant]:
    """Gives the site's part in the round that a message names; an error inside ends it.

    Raises:
        StateError: it is in no such round.
    """
    part = site.vault.load(asked.spec)
    try:
        yield part
    except StateError:
        raise  # a message out of order, which changes nothing
    except BaseException:
        part.abort()
        site.vault.erase_run(part.spec.run_id)
        raise


def answer(part: Participant, asked: StageRequest) -> bytes:
    """Answers a stage that involves no vector.

    Raises:
        SecAggError: see `Participant`.
    """
    if asked.stage is SecAggStage.SHARE:
        return part.share(asked.body)
    if asked.stage is SecAggStage.SIGN:
        return part.sign(asked.body)
    if part.stage is Stage.UNMASKED:
        return part.unmask_again(asked.body)
    return part.unmask(asked.body)


def mask(
    part: Participant,
    values: Vector | Integers,
    weight: float,
    charge: Charge | None = None,
    *,
    stochastic: bool = False,
) -> list[Outbound]:
    """Masks a vector, float32 or int64, shape [d]; returns it with its header, for the door.

    Raises:
        SecAggError: see `Participant.mask`.
    """
    header, packed = part.mask(values, weight, stochastic=stochastic)
    provenance = protected_by_secagg(part.spec.hash.hex(), charge.event if charge else None)
    return [Outbound("secagg", header, PROTOCOL), Outbound("masked", packed, provenance)]


def release(
    message: Message,
    part: Participant,
    items: list[Outbound],
    site: Site,
    about: Mapping[str, str | int],
    charge: Charge | None = None,
) -> Message:
    """Seals the state that was reached, and lets the answer out.

    Raises:
        StateError: the stage was answered before.
        DoorRefused: see `Door.release`.
    """
    site.spent.check_stage(part.spec, part.stage)
    site.vault.save(part)
    return site.door.release(message, items, {**about, **site.spent.about(part)}, charge)
