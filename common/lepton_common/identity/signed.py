"""A document that counts once k of n partners have signed it, to the byte."""

from typing import Annotated, Literal

from pydantic import Field

from lepton_common.identity.keys import SigningKey, verify
from lepton_common.strict import Count, Digest, record

Signature = Annotated[str, Field(pattern=r"^[0-9a-f]{128}$")]
Kind = Literal["roster", "study", "join", "proposal", "bundle", "evidence", "heads", "witness",
               "model"]  # fmt: skip


@record
class Signed:
    """A document with its signatures.

    Attributes:
        document: its JSON text.
        signatures: hexadecimal signatures, by the signer's key.
    """

    document: str
    signatures: dict[Digest, Signature]


@record
class Partners:
    """Who may sign for a federation.

    Attributes:
        keys: hexadecimal Ed25519 keys.
        threshold: how many of them must have signed.
    """

    keys: list[Digest]
    threshold: Count

    def signers(self, signed: Signed, kind: Kind) -> set[Digest]:
        """Returns the partners that have signed a document as being of one kind."""
        return set(self.keys) & signers(signed, kind)


def sign(key: SigningKey, kind: Kind, document: str) -> Signature:
    """Returns a hexadecimal signature on a document as being of one kind."""
    return key.sign(_message(kind, document)).hex()


def signers(signed: Signed, kind: Kind) -> set[Digest]:
    """Returns the keys whose signature on a document as being of one kind is good."""
    message = _message(kind, signed.document)
    return {
        key
        for key, signature in signed.signatures.items()
        if verify(key, bytes.fromhex(signature), message)
    }


def _message(kind: Kind, document: str) -> bytes:
    return f"lepton/{kind}/v2".encode() + b"\0" + document.encode()
