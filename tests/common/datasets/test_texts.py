"""Tests of texts as tokens, and of the data sets of messages and speeches."""

import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lepton_common.datasets.partition import _names
from lepton_common.datasets.records import check
from lepton_common.datasets.shakespeare import (
    MADE_UP_FOLLOWS,
    MADE_UP_LETTERS,
    WINDOW,
    read_speeches,
    shakespeare,
    windows,
)
from lepton_common.datasets.sms import _SPAM, LENGTH, read_messages, sms_spam
from lepton_common.datasets.source import MADE_UP
from lepton_common.datasets.tokens import (
    CHARACTERS,
    PADDING,
    VOCABULARY,
    character_tokens,
    word_tokens,
)
from lepton_common.errors import DataInvalid


def test_words_are_the_same_however_they_are_written_and_numbers_but_for_their_length():
    assert np.array_equal(word_tokens("Free  CASH!", 5), word_tokens("free cash !", 5))
    assert np.array_equal(word_tokens("call 08452810", 5), word_tokens("call 12345678", 5))
    assert not np.array_equal(word_tokens("call 0845", 5), word_tokens("call 08452810", 5))
    tokens = word_tokens("free cash", 5)
    assert (tokens[:2] > 0).all()
    assert (tokens[2:] == PADDING).all()


def test_tokens_are_known_answers():
    # A site that hashed otherwise would train another model under the same name.
    assert word_tokens("Win £100 now", 5).tolist() == [701, 2828, 3221, 142, 0]


@settings(max_examples=40)
@given(st.text(max_size=200), st.integers(1, 30))
def test_any_text_has_tokens_within_the_vocabulary(text, length):
    tokens = word_tokens(text, length)
    assert tokens.shape == (length,)
    assert tokens.dtype == np.float32
    assert ((tokens >= 0) & (tokens < VOCABULARY) & (tokens == tokens.round())).all()


@settings(max_examples=40)
@given(st.text(max_size=200))
def test_characters_are_told_apart_where_they_are_listed(text):
    tokens = character_tokens(text)
    back = "".join("?" if token == PADDING else CHARACTERS[token - 1] for token in tokens)
    assert back == "".join(letter if letter in CHARACTERS else "?" for letter in text)


@settings(max_examples=40)
@given(st.text(CHARACTERS, min_size=1, max_size=300))
def test_windows_hold_every_character_once_as_a_label_and_before_it_the_one_before(text):
    before, labels = windows(text)
    assert before.shape == labels.shape
    assert before.shape[1] == WINDOW
    kept = labels.reshape(-1)[: len(text)]
    assert kept.tolist() == character_tokens(text).tolist()
    assert (labels.reshape(-1)[len(text) :] == -1).all()
    assert before.reshape(-1)[: len(text)].tolist() == [PADDING, *kept[:-1].tolist()]


def test_messages_have_the_published_counts_and_none_is_on_both_sides(shared_data):
    messages = read_messages(shared_data / "sms-spam" / "SMSSpamCollection")
    assert np.bincount([label for label, _ in messages]).tolist() == [4827, 747]
    data = sms_spam(str(shared_data), "public_ranges")
    assert len(data.train) + len(data.test) == 5574
    assert 0.19 < len(data.test) / 5574 < 0.21
    sides = [set(map(bytes, part.features.numpy())) for part in (data.train, data.test)]
    assert not sides[0] & sides[1]
    assert 0.11 < float(data.test.labels.double().mean()) < 0.15
    check(data.train, data)


def test_made_up_spam_is_told_by_its_words():
    data = sms_spam(MADE_UP, "public_ranges")
    telling = {float(word_tokens(word, 1)[0]) for word in _SPAM.split()}
    for part in (check(data.train, data), check(data.test, data)):
        named = [int(bool(telling & set(message))) for message in part.features.tolist()]
        assert named == part.labels.tolist()
    assert data.input_shape == (LENGTH,)
    assert 0.2 < float(data.train.labels.double().mean()) < 0.3


@pytest.mark.parametrize(
    "text", [b"", b"eggs\tHello", b"ham Hello", b"ham\tHi\n\nspam\tBuy", b"\xff"]
)
def test_a_file_of_messages_of_another_form_is_invalid_and_not_quoted(tmp_path, text):
    path = tmp_path / "messages"
    path.write_bytes(text)
    with pytest.raises(DataInvalid, match="a tab and a message") as refused:
        read_messages(path)
    assert "Hello" not in str(refused.value)


def test_speeches_have_the_published_counts(shared_data):
    speeches = read_speeches(shared_data / "tiny-shakespeare" / "input.txt")
    # Of 309 names, ten stand over nothing but an empty line.
    assert len({speech.speaker for speech in speeches}) == 299
    data = shakespeare(str(shared_data), "public_ranges")
    assert len(data.sites) == 99
    called = _names(data)  # as sites, each by a name of its own
    assert all(re.fullmatch("[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name) for name in called)
    assert "BISHOP-OF-CARLISLE" in called
    assert set(data.train.origins) == set(data.test.origins) == set(range(99))
    assert (data.classes, data.unit, data.label_kind) == (97, "speech", "tokens")
    assert data.train.labels.max() < data.classes
    check(data.train, data)
    check(data.test, data)


def test_what_comes_next_in_made_up_speeches_can_be_known_as_often_as_said():
    data = shakespeare(MADE_UP, "public_ranges")
    letters = character_tokens(MADE_UP_LETTERS)
    after = torch.zeros(data.classes, dtype=torch.int64)
    after[letters] = torch.from_numpy(np.roll(letters, -1))
    right = []
    for part in (check(data.train, data), check(data.test, data)):
        known = (part.labels >= 0) & (part.features != PADDING)
        right.append((after[part.features.long()] == part.labels)[known])
    best = MADE_UP_FOLLOWS + (1 - MADE_UP_FOLLOWS) / len(MADE_UP_LETTERS)
    assert float(torch.cat(right).double().mean()) == pytest.approx(best, abs=0.01)


@pytest.mark.parametrize("text", ["no speaker", "A:\nto be\n\nor not", "\xff"])
def test_a_text_without_speakers_is_invalid(tmp_path, text):
    path = tmp_path / "input.txt"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(DataInvalid, match="speeches"):
        read_speeches(path)
