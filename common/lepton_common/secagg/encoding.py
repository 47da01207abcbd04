"""The one canonical encoding of SA1: length-prefixed items, big-endian integers, tagged hashes."""

import hashlib
import struct

from lepton_common.errors import MalformedMessage


def lp(*items: bytes) -> bytes:
    """Returns the items, each behind its length in 4 bytes."""
    return b"".join(len(item).to_bytes(4) + item for item in items)


def idx(index: int) -> bytes:
    """Returns a site's 1-based position in the sorted roster, in 2 bytes."""
    return index.to_bytes(2)


def i8(number: int) -> bytes:
    """Returns an integer in 8 bytes."""
    return number.to_bytes(8)


def tagged_hash(tag: str, *items: bytes) -> bytes:
    """Returns H(tag, items): SHA-256 of the tag and the items, each length-prefixed."""
    return hashlib.sha256(lp(f"SA1/{tag}".encode(), *items)).digest()


class Reader:
    """Reads length-prefixed items strictly: nothing short, nothing left over."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def item(self, length: int | None = None) -> bytes:
        """Returns the next item, of exactly ``length`` bytes where one is given.

        Raises:
            MalformedMessage: the data ends before it, or it has another length.
        """
        prefix = self._data[self._at : self._at + 4]
        size = int.from_bytes(prefix)
        start = self._at + 4
        item = self._data[start : start + size]
        if len(prefix) != 4 or len(item) != size or length not in (None, size):
            raise MalformedMessage("An SA1 message has an item of the wrong length.")
        self._at = start + size
        return item

    def number(self) -> int:
        """Returns the next item, an 8-byte integer.

        Raises:
            MalformedMessage: it is none.
        """
        return int.from_bytes(self.item(8))

    def double(self) -> float:
        """Returns the next item, an IEEE double.

        Raises:
            MalformedMessage: it is none.
        """
        value: float = struct.unpack(">d", self.item(8))[0]
        return value

    def text(self) -> str:
        """Returns the next item, UTF-8 text.

        Raises:
            MalformedMessage: it is none.
        """
        try:
            return self.item().decode()
        except UnicodeDecodeError:
            raise MalformedMessage("An SA1 message holds text that is not UTF-8.") from None

    def rest(self, length: int | None = None) -> list[bytes]:
        """Returns all items that are left, each of ``length`` bytes where one is given.

        Raises:
            MalformedMessage: one is cut short or has another length.
        """
        items = []
        while self._at < len(self._data):
            items.append(self.item(length))
        return items

    def end(self) -> None:
        """Makes sure that nothing is left.

        Raises:
            MalformedMessage: something is.
        """
        if self._at != len(self._data):
            raise MalformedMessage("An SA1 message goes on after its end.")
