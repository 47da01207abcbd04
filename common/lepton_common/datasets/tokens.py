"""Texts as numbers by public rules: words by their hash, characters by a fixed list.

No vocabulary is gathered from anybody's texts, so that there is nothing of them in it.
"""

import hashlib
import re
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

VOCABULARY = 4096
"""Tokens of hashed words, with `PADDING`."""
PADDING = 0
"""Fills a short text up; for characters it also stands before the first and for any unlisted."""
CHARACTERS = "\n" + "".join(map(chr, range(32, 127)))
"""The characters that have a token, from 1: the line's end and printable ASCII."""

# A word, a number or a single mark. Numbers are told apart by their length alone: a telephone
# number says what kind of message it stands in, and whose it is would only be learnt by heart.
_PIECES = re.compile(r"[^\W\d_]+|\d+|[^\w\s]|_")
_NUMBERS = {character: at + 1 for at, character in enumerate(CHARACTERS)}


def word_tokens(text: str, length: int) -> NDArray[np.float32]:
    """Returns a text's first words, numbers and marks as tokens, float32, shape [length].

    Each is a hash (BLAKE2b) of the word in small letters, from 1 to `VOCABULARY` - 1; two words
    may share a token. Texts are cut off, or filled up with `PADDING`.
    """
    tokens = np.full(length, PADDING, np.float32)
    for at, piece in enumerate(_PIECES.findall(text.lower())[:length]):
        tokens[at] = _hashed("#" * len(piece) if piece.isdecimal() else piece)
    return tokens


def character_tokens(text: str) -> NDArray[np.int64]:
    """Returns the token of each character, int64, shape [len(text)], up to len(CHARACTERS)."""
    return np.array([_NUMBERS.get(character, PADDING) for character in text], np.int64)


@lru_cache(maxsize=1 << 16)
def _hashed(piece: str) -> int:
    digest = hashlib.blake2b(piece.encode(errors="surrogatepass"), digest_size=8).digest()
    return 1 + int.from_bytes(digest) % (VOCABULARY - 1)
