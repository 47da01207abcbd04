"""A model package as a lead of the federation signs it: name, version and the wheel's digest."""

from typing import Annotated

from pydantic import Field

from lepton_common.errors import PackageForged
from lepton_common.identity.keys import SigningKey
from lepton_common.identity.roster import Roster
from lepton_common.identity.signed import Signed, sign, signers
from lepton_common.strict import Digest, Name, parse_json, record, to_json


@record
class Endorsed:
    """What a lead stands for.

    Attributes:
        federation: the federation's name.
        by: the lead, by the name in the roster.
        package: import name of the package.
        version: its version.
        sha256: of the wheel.
    """

    federation: Name
    by: Name
    package: Name
    version: Annotated[str, Field(max_length=64)]
    sha256: Digest


def endorse(key: SigningKey, endorsed: Endorsed) -> str:
    """Returns the text of the file that lies beside the wheel."""
    text = to_json(endorsed)
    return to_json(Signed(document=text, signatures={key.public_hex: sign(key, "model", text)}))


def check_endorsed(text: str, package: str, version: str, sha256: str, roster: Roster) -> Endorsed:
    """Returns what a lead has signed, which is this very wheel.

    Args:
        text: of the file beside the wheel.
        package: its import name, as the wheel has it.
        version: its version, as the wheel has it.
        sha256: the wheel's digest.
        roster: of the federation.

    Raises:
        PackageForged: it is not signed by a lead of the roster in their own name, or is about
            another wheel.
    """
    try:
        signed = parse_json(Signed, text)
        endorsed = parse_json(Endorsed, signed.document)
    except ValueError as error:
        raise PackageForged(f"The signature is {error}; have the wheel signed again.") from None
    if (endorsed.package, endorsed.version, endorsed.sha256) != (package, version, sha256):
        raise PackageForged("The signature is on another wheel than this one; it was exchanged.")
    if endorsed.federation != roster.federation:
        raise PackageForged("The wheel was signed for another federation.")
    lead = next((p for p in roster.people if p.name == endorsed.by and "lead" in p.roles), None)
    if lead is None or lead.public_key not in signers(signed, "model"):
        raise PackageForged(
            f"The wheel is not signed by {endorsed.by} as a lead of the roster, version "
            f"{roster.version}."
        )
    return endorsed
