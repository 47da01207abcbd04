"""The next character of what Shakespeare's people say, each speaker a site: Tiny Shakespeare."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from lepton_common.datasets.preparation import check_offered
from lepton_common.datasets.records import Dataset, Records
from lepton_common.datasets.source import MADE_UP, Source
from lepton_common.datasets.tokens import CHARACTERS, PADDING, character_tokens
from lepton_common.errors import DataInvalid

WINDOW = 80
"""Characters of a record, as in LEAF."""
LEAST_SAID = 2000
"""Characters a speaker must say in all to be a site."""
NO_LABEL = -1
_SOURCE = Source(
    "tiny-shakespeare",
    "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/",
    {"input.txt": "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"},
)
MADE_UP_LETTERS = "abcdefg "
MADE_UP_FOLLOWS = 0.8
_MADE_UP_SPEAKERS, _MADE_UP_SPEECHES = 5, 40


class Speech(NamedTuple):
    """What somebody says until the next does."""

    speaker: str
    text: str


def shakespeare(root: str | None, prepare: str) -> Dataset:
    """Windows of 80 characters of a speech; each character's label is the one after it.

    Natural sites are the 99 speakers with at least 2,000 characters; the others are left out. The
    privacy unit is a speech; privacy of the speaker is that of a site (``privacy=site``). Of each
    speaker the last fifth of the speeches is the test set. There are 97 characters: printable
    ASCII, the line's end, and one for all others, which also stands before a speech begins.
    (Karpathy, char-rnn, 2015; split by role as in LEAF, Caldas et al. 2018; public domain.)
    Made up: each letter but for chance has a fixed successor; no more than 0.825 can be reached.
    """
    check_offered("shakespeare", prepare, {"public_ranges"})
    speeches = _made_up() if root == MADE_UP else read_speeches(_SOURCE.fetch(root)["input.txt"])
    said: dict[str, int] = {}
    for speech in speeches:
        said[speech.speaker] = said.get(speech.speaker, 0) + len(speech.text)
    speakers = sorted(speaker for speaker, length in said.items() if length >= LEAST_SAID)
    train: list[tuple[Speech, int]] = []
    test: list[tuple[Speech, int]] = []
    for origin, speaker in enumerate(speakers):
        own = [(speech, origin) for speech in speeches if speech.speaker == speaker]
        held_out = max(1, len(own) // 5)
        train += own[:-held_out]
        test += own[-held_out:]
    return Dataset(
        name="shakespeare",
        train=_records(train),
        test=_records(test),
        input_shape=(WINDOW,),
        classes=len(CHARACTERS) + 1,
        unit="speech",
        sites=tuple(speakers),
        label_kind="tokens",
    )


def read_speeches(path: Path) -> list[Speech]:
    """Returns the speeches of a play: a line ``NAME:``, lines of text, an empty line.

    Raises:
        DataInvalid: not such a text.
    """
    try:
        parts = path.read_text(encoding="utf-8").split("\n\n")
        pairs = [part.strip("\n").partition("\n") for part in parts]
        if not all(name.endswith(":") for name, _, _ in pairs):
            raise ValueError
    except (OSError, ValueError) as error:
        raise DataInvalid(
            f"{path} should hold speeches, each under a line with its speaker and a colon, with "
            "an empty line between them; fetch it again."
        ) from error
    return [Speech(name.removesuffix(":"), text) for name, _, text in pairs if text]


def windows(text: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns the windows of a text and the character after each place, int64, [n, 80] each.

    Every character is a label once; `PADDING` stands before the first, and in the last window
    after the end, where labels are -1.
    """
    tokens = character_tokens(text)
    filled = -len(tokens) % WINDOW
    before = np.concatenate([[PADDING], tokens[:-1], np.full(filled, PADDING)])
    labels = np.concatenate([tokens, np.full(filled, NO_LABEL)])
    return before.reshape(-1, WINDOW), labels.reshape(-1, WINDOW)


def _records(speeches: list[tuple[Speech, int]]) -> Records:
    parts = [windows(speech.text) for speech, _ in speeches]
    counts = [len(labels) for _, labels in parts]
    return Records(
        torch.from_numpy(np.concatenate([before for before, _ in parts]).astype(np.float32)),
        torch.from_numpy(np.concatenate([labels for _, labels in parts])),
        units=np.repeat(np.arange(len(parts)), counts),
        origins=np.repeat([origin for _, origin in speeches], counts),
    )


def _made_up() -> list[Speech]:
    generator = np.random.default_rng(15)
    speeches = []
    for speaker in range(_MADE_UP_SPEAKERS):
        for length in generator.integers(60, 121, _MADE_UP_SPEECHES).tolist():
            follows = generator.random(length) < MADE_UP_FOLLOWS
            drawn = generator.integers(0, len(MADE_UP_LETTERS), length)
            letters = [int(drawn[0])]
            for at in range(1, length):
                after = (letters[-1] + 1) % len(MADE_UP_LETTERS)
                letters.append(after if follows[at] else int(drawn[at]))
            text = "".join(MADE_UP_LETTERS[letter] for letter in letters)
            speeches.append(Speech(f"speaker-{speaker + 1}", text))
    return speeches
