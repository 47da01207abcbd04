"""The signed messages of SA1 and their one encoding; parsing is strict.

Every list is in ascending order of the sites' indices, so each content has one encoding.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from lepton_common.errors import MalformedMessage
from lepton_common.identity.keys import SigningKey
from lepton_common.secagg.encoding import Reader, i8, idx, lp
from lepton_common.secagg.keys import check_signature, sign

SHARE_BYTES = 33
SHARES_BYTES = 2 * SHARE_BYTES  # of b, then of s
_BOX_BYTES = SHARES_BYTES + 16
_SIGNATURE_BYTES = 64


class Signable(Protocol):
    """What messages are signed for: a round, or the draw of its groups."""

    @property
    def hash(self) -> bytes:
        """32 bytes that name it."""

    def key_of(self, index: int) -> bytes:
        """Returns a site's public key, 32 bytes."""


@dataclass(frozen=True)
class Advertisement:
    """A site's fresh keys for one round (SA1 R0).

    Attributes:
        index: the site.
        channel_key: C, X25519; seals shares.
        mask_key: S, X25519; makes pair masks.
        commitment: B, commits to the seed of the site's own mask.
    """

    index: int
    channel_key: bytes
    mask_key: bytes
    commitment: bytes

    LENGTH = 98

    def to_bytes(self) -> bytes:
        """Returns the 98-byte encoding."""
        return idx(self.index) + self.channel_key + self.mask_key + self.commitment

    @classmethod
    def from_bytes(cls, data: bytes) -> "Advertisement":
        """Parses 98 bytes."""
        return cls(int.from_bytes(data[:2]), data[2:34], data[34:66], data[66:98])


@dataclass(frozen=True)
class Header:
    """What a site says about its masked vector (SA1 R2).

    Attributes:
        index: the site.
        t2: its view of who shared.
        length: D, number of elements.
        width: bits of the ring.
        digest: of the masked vector.
    """

    index: int
    t2: bytes
    length: int
    width: int
    digest: bytes

    LENGTH = 75

    def to_bytes(self) -> bytes:
        """Returns the 75-byte encoding."""
        return idx(self.index) + self.t2 + i8(self.length) + bytes([self.width]) + self.digest

    @classmethod
    def from_bytes(cls, data: bytes) -> "Header":
        """Parses 75 bytes."""
        return cls(
            int.from_bytes(data[:2]),
            data[2:34],
            int.from_bytes(data[34:42]),
            data[42],
            data[43:75],
        )


@dataclass(frozen=True)
class Signed:
    """A message body of one site with its signature.

    Attributes:
        body: begins with the site's index.
        signature: Ed25519, 64 bytes.
    """

    body: bytes
    signature: bytes

    @property
    def index(self) -> int:
        """The site that claims to have signed."""
        return int.from_bytes(self.body[:2])

    @classmethod
    def make(cls, key: SigningKey, tag: str, what: Signable, body: bytes) -> "Signed":
        """Signs ``body`` for one stage of one round."""
        return cls(body, sign(key, tag, what.hash, body))

    def check(self, tag: str, what: Signable) -> None:
        """Checks the signature under the key that the round's roster gives.

        Raises:
            RosterMismatch: there is no such site.
            BadSignature: the signature is not that site's.
        """
        key = what.key_of(self.index)
        check_signature(key, self.signature, tag, what.hash, self.body, self.index)

    def to_bytes(self) -> bytes:
        """Returns the encoding."""
        return lp(self.body, self.signature)

    @classmethod
    def from_bytes(cls, data: bytes, length: int | None = None) -> "Signed":
        """Parses one message, whose body has ``length`` bytes where that is given.

        Raises:
            MalformedMessage: anything but exactly that.
        """
        reader = Reader(data)
        signed = cls(reader.item(length), reader.item(_SIGNATURE_BYTES))
        reader.end()
        if len(signed.body) < 2:
            raise MalformedMessage("A signed SA1 message begins with its site's index.")
        return signed


def join_signed(messages: Iterable[Signed]) -> bytes:
    """Returns the encoding of many signed messages, in order of the sites."""
    ordered = sorted(messages, key=lambda message: message.index)
    return lp(*(message.to_bytes() for message in ordered))


def split_signed(data: bytes, length: int) -> dict[int, Signed]:
    """Parses signed messages with bodies of ``length`` bytes, by site, in ascending order.

    Raises:
        MalformedMessage: anything but that; a site twice or out of order.
    """
    found: dict[int, Signed] = {}
    for item in Reader(data).rest():
        message = Signed.from_bytes(item, length)
        found[_above(found, message.index)] = message
    return found


def join_by_site(values: Mapping[int, bytes]) -> bytes:
    """Returns the encoding of one value a site, in order of the sites."""
    return lp(*(idx(index) + value for index, value in sorted(values.items())))


def split_by_site(data: bytes, length: int) -> dict[int, bytes]:
    """Parses values of ``length`` bytes, by site, in ascending order.

    Raises:
        MalformedMessage: anything but that; a site twice or out of order.
    """
    found: dict[int, bytes] = {}
    for item in Reader(data).rest(2 + length):
        found[_above(found, int.from_bytes(item[:2]))] = item[2:]
    return found


def join_boxes(boxes: Mapping[int, bytes]) -> bytes:
    """Returns the encoding of sealed shares by the other site's index."""
    return join_by_site(boxes)


def split_boxes(data: bytes) -> dict[int, bytes]:
    """Parses what `join_boxes` made.

    Raises:
        MalformedMessage: anything but that.
    """
    return split_by_site(data, _BOX_BYTES)


def _above(found: dict[int, Any], index: int) -> int:
    if index <= next(reversed(found), 0):
        raise MalformedMessage("An SA1 message lists its sites twice or out of order.")
    return index
