"""A run as a person proposes it to the sites of a federation: signed, to the byte."""

import json
import secrets
from collections.abc import Iterator

from lepton_common.errors import ProposalInvalid, SettingsError
from lepton_common.identity.keys import SigningKey
from lepton_common.identity.roster import Roster
from lepton_common.identity.signed import Signed, sign, signers
from lepton_common.identity.study import Study
from lepton_common.settings import Settings
from lepton_common.settings_rules import parse_settings
from lepton_common.strict import Digest, Name, parse_json, record, to_json


@record
class Proposal:
    """What a person asks for.

    Attributes:
        federation: the federation's name.
        by: who asks, a lead of the roster.
        study: the study that it is part of; None: of none.
        nonce: random, so that no two proposals are the same.
        settings: the whole configuration as JSON.
    """

    federation: Name
    by: Name
    study: Name | None
    nonce: Digest
    settings: str

    def parsed(self) -> Settings:
        """Returns the configuration.

        Raises:
            ProposalInvalid: it is none, or another federation's.
        """
        try:
            settings = parse_settings(json.loads(self.settings))
        except (SettingsError, ValueError) as error:
            raise ProposalInvalid(
                f"The configuration in the proposal has faults: {error}"
            ) from None
        if settings.federation.name != self.federation:
            raise ProposalInvalid("The proposal's configuration is for another federation.")
        return settings


def make_proposal(
    key: SigningKey, by: str, study: str | None, federation: str, settings: Settings
) -> str:
    """Returns the text of a proposal, signed with the key of who asks."""
    text = to_json(
        Proposal(
            federation=federation,
            by=by,
            study=study,
            nonce=secrets.token_hex(32),
            settings=to_json(settings),
        )
    )
    signed = Signed(document=text, signatures={key.public_hex: sign(key, "proposal", text)})
    return to_json(signed)


def read_proposal(text: str, roster: Roster) -> Proposal:
    """Returns the proposal in a text.

    Raises:
        ProposalInvalid: it is damaged, of another federation, or no lead of the roster has signed
            it in their own name.
    """
    signed, proposal = _read(text)
    if proposal.federation != roster.federation:
        raise ProposalInvalid("The proposal is for another federation.")
    person = next((p for p in roster.people if p.name == proposal.by), None)
    if person is None or "lead" not in person.roles:
        raise ProposalInvalid(f"The roster has no lead named {proposal.by}.")
    if person.public_key not in signers(signed, "proposal"):
        raise ProposalInvalid(f"The proposal is not signed by {proposal.by}.")
    return proposal


def study_in(text: str) -> str | None:
    """Returns the study that a proposal names, whoever has signed it; None where it is of none.

    Raises:
        ProposalInvalid: it is damaged.
    """
    return _read(text)[1].study


def beyond_study(study: Study, proposal: Proposal, settings: Settings) -> Iterator[str]:
    """Yields, in a sentence each, what of a run its study does not cover.

    Args:
        study: in which it is proposed.
        proposal: of the run.
        settings: what it parses to.
    """
    for what, one, named in (
        ("lead", proposal.by, study.leads),
        ("task", settings.task, study.tasks),
    ):
        if one not in named:
            yield uncovered(study, what, one, named)
    privacy, says = settings.privacy, f"The study {study.name} does not cover"
    if privacy.epsilon is None:
        yield f"{says} a run without privacy."
    elif privacy.epsilon > study.max_epsilon:
        yield f"{says} the run's epsilon, {privacy.epsilon}: it allows {study.max_epsilon}."
    delta = privacy.delta or 1.0
    if privacy.epsilon is not None and delta > study.max_delta:
        yield f"{says} the run's delta, {delta}: it allows {study.max_delta}."


def uncovered(study: Study, what: str, one: str, named: list[str]) -> str:
    """Returns that something of a run is not among what its study names."""
    names = ", ".join(named)
    return f"The study {study.name} does not cover the run's {what}, {one}: it names {names}."


def _read(text: str) -> tuple[Signed, Proposal]:
    try:
        signed = parse_json(Signed, text)
        return signed, parse_json(Proposal, signed.document)
    except ValueError as error:
        raise ProposalInvalid(f"The proposal is {error}; have it submitted again.") from None
