"""Requests to join a federation: an entry for the roster, signed by the key that is in it."""

from typing import Literal

from lepton_common.errors import CertificateInvalid, JoinInvalid
from lepton_common.identity.certificates import check_authority
from lepton_common.identity.keys import SigningKey
from lepton_common.identity.roster import Coordinator, Member, Person
from lepton_common.identity.signed import Signed, sign, signers
from lepton_common.strict import parse_json, record, to_json

Entry = Member | Coordinator | Person
_Kind = Literal["site", "coordinator", "person"]
_KINDS: dict[_Kind, type[Entry]] = {"site": Member, "coordinator": Coordinator, "person": Person}


@record
class Join:
    """What a request to join says.

    Attributes:
        kind: what wants to join.
        entry: the JSON text of its roster entry.
    """

    kind: _Kind
    entry: str


def make_join(key: SigningKey, entry: Entry) -> str:
    """Returns the text of a request to join, with which the key's owner proves to hold it."""
    (kind,) = (name for name, cls in _KINDS.items() if type(entry) is cls)
    text = to_json(Join(kind=kind, entry=to_json(entry)))
    return to_json(Signed(document=text, signatures={key.public_hex: sign(key, "join", text)}))


def read_join(text: str) -> Entry:
    """Returns the roster entry in a request to join.

    Raises:
        JoinInvalid: it is damaged, not signed by its own key, or its certificate is another's.
    """
    try:
        signed = parse_json(Signed, text)
        join = parse_json(Join, signed.document)
        entry = parse_json(_KINDS[join.kind], join.entry)
    except ValueError as error:
        raise JoinInvalid(f"The request to join is {error}; have it made again.") from None
    if entry.public_key not in signers(signed, "join"):
        raise JoinInvalid(f"The request of {entry.name} is not signed by the key in it.")
    try:
        check_authority(entry.authority, entry.name, entry.public_key)
    except CertificateInvalid as error:
        raise JoinInvalid(str(error)) from None
    return entry
