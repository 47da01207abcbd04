"""The proposal in a pack of a run over a network: who asked for the run, and in which study."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from lepton_common.arrays import digest_of
from lepton_common.chain import ChainRecord
from lepton_common.errors import EvidenceContradicts, ProposalInvalid, StudyInvalid
from lepton_common.identity.roster import Roster
from lepton_common.identity.study import Study, read_study
from lepton_common.proposal import Proposal, read_proposal
from lepton_common.strict import to_json

PROPOSAL, STUDY = "proposal.json", "study.json"


def check_taken_in(where: Path, records: list[ChainRecord], members: Mapping[str, bytes]) -> None:
    """Holds the proposal in a site's pack against what its log says was taken in.

    Args:
        where: the pack.
        records: of the run, in the site's audit log.
        members: the pack's.

    Raises:
        EvidenceContradicts: it is another, or only one of the two is there.
    """
    noted = {record.body["proposal"] for record in records if record.kind == "proposed"}
    held = {digest_of(members[PROPOSAL])} if PROPOSAL in members else set[str]()
    if noted != held:
        raise EvidenceContradicts(
            f"{where / PROPOSAL} is not the proposal that the site's log took in."
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


def kept_study(folder: Path, proposal: Proposal | None, roster: Roster, day: date) -> str | None:
    """Returns the text of the study that a proposal names, where a folder has a good one."""
    if proposal is None or proposal.study is None:
        return None
    try:
        text = (folder / f"{proposal.study}.json").read_text(encoding="utf-8")
        read_study(text, roster, day)
    except (OSError, StudyInvalid, UnicodeDecodeError):
        return None
    return text


def study_in(
    where: Path, text: bytes, roster: Roster, facts: Mapping[str, Any], sites: Iterable[str]
) -> Study:
    """Returns the study in a pack, having held it against what the pack says of the run.

    Args:
        where: the pack.
        text: of the study's file.
        roster: the federation's.
        facts: what the pack's records come to.
        sites: that took part, as far as the pack tells.

    Raises:
        EvidenceContradicts: it is none, it does not cover the run, or the run is another study's.
    """
    at = where / STUDY
    try:
        study = read_study(text.decode(), roster, date.fromisoformat(facts["last"][:10]))
    except (StudyInvalid, UnicodeDecodeError) as error:
        raise EvidenceContradicts(f"{at}: {error}") from None
    asked = facts["proposal"]
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
