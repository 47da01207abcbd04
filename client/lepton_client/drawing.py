"""A site's part in drawing the groups of a round: commit, reveal, and check what came of it."""

from flwr.app import Message

from lepton_client import consent
from lepton_client.door import Outbound
from lepton_client.site import Site
from lepton_common.errors import PolicyViolation
from lepton_common.privacy.provenance import PROTOCOL
from lepton_common.secagg.grouping import Draw, Grouping, hash_commits, read_commits
from lepton_common.secagg.messages import Signed
from lepton_common.secagg.spec import RoundSpec
from lepton_common.stages import SecAggStage, StageRequest


def draw_groups(message: Message, asked: StageRequest, site: Site) -> Message:
    """Answers a stage of the draw: with a signed commitment, or with the secret behind it.

    Raises:
        SecAggError: the draw is not of the pinned sites, or was begun in another way before.
    """
    draw = Draw.from_bytes(asked.spec)
    consent.check_members(draw.federation, draw.roster, site.roster)
    index, secret = draw.index_of(site.file.name), _secret(draw, site)
    about: dict[str, str | int] = {"draw": draw.hash.hex()}
    if asked.stage is SecAggStage.COMMIT:
        body = draw.commitment(index, secret)
        answer = Signed.make(site.key, "commit-draw", draw, body).to_bytes()
    else:
        commits = hash_commits(read_commits(draw, asked.body))
        about |= site.spent.check_reveal(draw, commits)
        answer = secret
    return site.door.release(message, [Outbound("secagg", answer, PROTOCOL)], about)


def check_group(spec: RoundSpec, evidence: bytes, groups: int, round_: int, site: Site) -> None:
    """Checks that a round's cohort is one of the groups that were drawn for it.

    Args:
        spec: the round.
        evidence: the encoded grouping; empty where there is one group only.
        groups: how many groups were asked for.
        round_: number of the training round.
        site: whose record tells what it has revealed.

    Raises:
        SecAggError: the draw was another, or is not proven.
    """
    if groups == 1:
        if evidence:
            raise PolicyViolation("A round of one group has no draw.")
        return
    grouping = Grouping.from_bytes(evidence)
    draw = grouping.draw
    site.spent.check_drawn(draw, hash_commits(grouping.commits))
    said = (draw.federation, draw.run_id, draw.round, draw.groups, draw.model_hash)
    if said != (spec.federation, spec.run_id, round_, groups, spec.model_hash):
        raise PolicyViolation("The groups were drawn for another round.")
    if spec.roster not in grouping.groups:
        raise PolicyViolation("The round's cohort is not one of the groups that were drawn.")


def _secret(draw: Draw, site: Site) -> bytes:
    """Returns the same secret whenever this draw is asked about, so that nothing need be kept."""
    return site.key.derive(b"lepton/draw/v1" + draw.hash)
