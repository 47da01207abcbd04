"""The proposal in a pack of a run over a network: who asked for the run, and in which study."""

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from lepton_common.arrays import digest_of
from lepton_common.chain import ChainRecord
from lepton_common.errors import EvidenceContradicts, ProposalInvalid, StudyInvalid
from lepton_common.identity.roster import Roster
from lepton_common.identity.study import EARLIER, Study, read_study
from lepton_common.proposal import Proposal, read_proposal
from lepton_common.strict import to_json

PROPOSAL, STUDY = "proposal.json", "study.json"


def check_noted(
    where: Path, records: list[ChainRecord], members: Mapping[str, bytes], *, simulated: bool
) -> None:
    """Holds the proposal in a pack against what its log has of it.

    Args:
        where: the pack.
        records: of the run, in the log of the site or the coordinator.
        members: the pack's.
        simulated: whether the run may have had none.

    Raises:
        EvidenceContradicts: it is another, or log or pack have none.
    """
    noted = {r.body["proposal"] for r in records if r.body.get("proposal") is not None}
    held = {digest_of(members[PROPOSAL])} if PROPOSAL in members else set[str]()
    if noted != held:
        raise EvidenceContradicts(
            f"{where / PROPOSAL} is not the proposal that the signer's log took in."
        )
    if not held and not simulated:
        raise EvidenceContradicts(
            f"{where} lacks {PROPOSAL}: a run over a network has one, and its log says which."
        )


def proposal_in(
    where: Path, members: Mapping[str, bytes], versions: Sequence[Roster]
) -> Proposal | None:
    """Returns the proposal in a pack, signed by a lead of the roster, who may have left it since.

    Args:
        where: the pack.
        members: the pack's.
        versions: of the roster.

    Raises:
        EvidenceContradicts: it is none.
    """
    if PROPOSAL not in members:
        return None
    why = ""
    for version in reversed(versions):
        try:
            return read_proposal(members[PROPOSAL].decode(), version)
        except (ProposalInvalid, UnicodeDecodeError) as error:
            why = why or str(error)
    raise EvidenceContradicts(f"{where / PROPOSAL}: {why}")


def check_configuration(where: Path, proposal: Proposal | None, config: bytes) -> None:
    """Holds the proposal in the coordinator's pack against the configuration that it ran.

    Raises:
        EvidenceContradicts: it proposes another.
    """
    try:
        same = proposal is None or to_json(proposal.parsed()).encode() == config
    except ProposalInvalid:
        same = False
    if not same:
        raise EvidenceContradicts(f"{where / PROPOSAL} is not of the configuration that was run.")


def kept_study(
    folder: Path, versions: Sequence[Roster], facts: Mapping[str, Any], sites: Iterable[str]
) -> bytes | None:
    """Returns the newest version in a folder of the study that a run was proposed in.

    None where it was of none, or no version that is there covers the run today.
    """
    name = (facts.get("proposal") or {}).get("study")
    if name is None:
        return None
    kept = {
        int(version): path
        for path in (folder / EARLIER).glob(f"{name}-*.json")
        # Not those of another study, whose name begins alike.
        if (version := path.stem.removeprefix(f"{name}-")).isdecimal()
    }
    for path in (folder / f"{name}.json", *(kept[v] for v in sorted(kept, reverse=True))):
        with contextlib.suppress(OSError, EvidenceContradicts):
            text = path.read_bytes()
            study_in(folder, text, versions, facts, sites)
            return text
    return None


def study_in(
    where: Path,
    text: bytes,
    versions: Sequence[Roster],
    facts: Mapping[str, Any],
    sites: Iterable[str],
) -> Study:
    """Returns the study in a pack, having held it against what the pack says of the run.

    Args:
        where: the pack.
        text: of the study's file.
        versions: of the federation's roster.
        facts: what the pack's records come to.
        sites: that took part, as far as the pack tells.

    Raises:
        EvidenceContradicts: it is none, it does not cover the run, or the run is another study's.
    """
    at = where / STUDY
    try:
        study = read_study(text.decode(), versions[-1], date.fromisoformat(facts["last"][:10]))
    except (StudyInvalid, UnicodeDecodeError) as error:
        raise EvidenceContradicts(f"{at}: {error}") from None
    ever = {m.name for version in versions for m in version.members}
    ever |= {p.name for version in versions for p in version.people}
    if invented := sorted({*study.sites, *study.leads, *study.auditors} - ever):
        raise EvidenceContradicts(f"{at} names {invented[0]}, whom no version of the roster has.")
    asked = facts.get("proposal")
    if asked is not None and asked["study"] != study.name:
        of = f"the study {asked['study']}" if asked["study"] else "no study"
        raise EvidenceContradicts(f"{at} is {study.name}, and the run was proposed in {of}.")
    if asked is not None and asked["by"] not in study.leads:
        raise EvidenceContradicts(f"{at} does not name the lead {asked['by']}.")
    if "data" in facts and facts["data"]["id"] not in study.data:
        raise EvidenceContradicts(f"{at} does not cover the data {facts['data']['id']}.")
    if "task" in facts and facts["task"] not in study.tasks:
        raise EvidenceContradicts(f"{at} does not cover the task {facts['task']}.")
    if strangers := sorted(set(sites) - set(study.sites)):
        raise EvidenceContradicts(f"{at} does not name the site {strangers[0]}.")
    return study
