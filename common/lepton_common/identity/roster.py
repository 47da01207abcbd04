"""The roster: which sites belong to a federation, under which keys, signed by k of n partners.

A site pins the partners' keys in its site file. The server's operator holds none of them, so the
server cannot add, drop or swap a site unnoticed.
"""

from typing import Annotated

from pydantic import Field

from lepton_common.errors import RosterMismatch
from lepton_common.identity.keys import SigningKey, verify
from lepton_common.strict import Count, Digest, Name, parse_json, record, to_json

_DOMAIN = b"lepton/roster/v1"


@record
class Member:
    """A site of the federation.

    Attributes:
        name: the site's name.
        public_key: its hexadecimal Ed25519 key.
    """

    name: Name
    public_key: Digest


@record
class Roster:
    """All sites of a federation.

    Attributes:
        federation: its name.
        version: grows with each change.
        members: the sites, by name in ascending order.
    """

    federation: Name
    version: Count
    members: list[Member]


@record
class Pin:
    """Whom a site believes about the roster.

    Attributes:
        partners: hexadecimal Ed25519 keys of those who may sign a roster.
        threshold: how many of them must have signed it.
    """

    partners: list[Digest]
    threshold: Count


@record
class SignedRoster:
    """A roster with its signatures.

    Attributes:
        roster: the JSON text of a `Roster`.
        signatures: hexadecimal signatures, by the partner's key.
    """

    roster: str
    signatures: dict[Digest, Annotated[str, Field(pattern=r"^[0-9a-f]{128}$")]]


def sign_roster(roster: Roster, partners: list[SigningKey]) -> str:
    """Returns the roster signed by ``partners``, as the text of a file."""
    text = to_json(roster)
    signatures = {key.public_hex: key.sign(_DOMAIN + text.encode()).hex() for key in partners}
    return to_json(SignedRoster(roster=text, signatures=signatures))


def read_roster(text: str, pin: Pin) -> Roster:
    """Returns the roster in the text of a file.

    Raises:
        RosterMismatch: it is none, or too few of the pinned partners have signed it.
    """
    try:
        signed = parse_json(SignedRoster, text)
        roster = parse_json(Roster, signed.roster)
    except ValueError as error:
        raise RosterMismatch(f"The roster is {error}; ask a partner for it again.") from None
    message = _DOMAIN + signed.roster.encode()
    good = {
        key
        for key, signature in signed.signatures.items()
        if key in pin.partners and verify(key, bytes.fromhex(signature), message)
    }
    if len(good) < pin.threshold:
        raise RosterMismatch(
            f"{len(good)} of the pinned partners have signed the roster and {pin.threshold} must."
        )
    names = [member.name for member in roster.members]
    if names != sorted(set(names)) or len({m.public_key for m in roster.members}) != len(names):
        raise RosterMismatch("The roster lists a site or a key twice, or out of order.")
    return roster
