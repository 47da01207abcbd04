"""Tests of drawn characters of eight alphabets."""

import io
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from lepton_common.datasets.made_up_images import class_patterns
from lepton_common.datasets.omniglot import ALPHABETS, omniglot, read_drawings
from lepton_common.datasets.records import check
from lepton_common.datasets.source import MADE_UP
from lepton_common.errors import DataInvalid


def _png(size=105, value=255):
    held = io.BytesIO()
    Image.fromarray(np.full((size, size), value, np.uint8)).save(held, "PNG")
    return held.getvalue()


def _archive(path, drawings):
    with zipfile.ZipFile(path, "w") as opened:
        for name, content in drawings.items():
            opened.writestr(name, content)
    return path


def _name(alphabet="Greek", drawer=1, top="small1"):
    return f"{top}/{alphabet}/character01/0001_{drawer:02}.png"


def test_the_published_counts_and_no_drawer_on_both_sides(shared_data):
    data = omniglot(str(shared_data), "public_ranges")
    assert (len(data.train), len(data.test)) == (16 * 242, 4 * 242)
    characters = [24, 22, 24, 47, 40, 26, 42, 17]
    assert (np.bincount(data.train.labels) / 16).tolist() == characters
    assert np.bincount(data.train.origins).tolist() == [242] * 16
    assert (data.unit, len(data.sites), data.train.unit_count) == ("drawer", 16, 128)
    assert not set(data.train.units) & set(data.test.units)
    # Little ink on a dark ground.
    assert -1 <= float(data.train.features.mean()) < -0.7
    check(data.train, data)


def test_who_knows_how_they_are_made_names_every_made_up_drawing():
    data = omniglot(MADE_UP, "public_ranges")
    patterns = torch.from_numpy(class_patterns(8, (1, 28, 28), 13)).float().flatten(1)
    for part in (check(data.train, data), check(data.test, data)):
        assert torch.equal((part.features.flatten(1) @ patterns.T).argmax(1), part.labels)
    assert np.bincount(data.train.origins).tolist() == [32] * 16
    assert not set(data.train.units) & set(data.test.units)


def test_drawings_are_reduced_and_inverted_and_an_alphabet_is_read_once(tmp_path):
    first = _archive(
        tmp_path / "a.zip",
        {_name(): _png(), _name(drawer=20): _png(value=0), "small1/": b"", "small1/x.txt": b""},
    )
    second = _archive(
        tmp_path / "b.zip", {_name(top="small2"): _png(), _name("Tagalog", 3): _png()}
    )
    images, alphabets, drawers = read_drawings([first, second])
    assert images.shape == (3, 1, 28, 28)
    assert [int(image.mean()) for image in images] == [0, 255, 0]
    assert [ALPHABETS[alphabet] for alphabet in alphabets] == ["Greek", "Greek", "Tagalog"]
    assert drawers.tolist() == [0, 19, 2]


@pytest.mark.parametrize(
    "drawings",
    [
        {},
        {_name("Klingon"): _png()},
        {_name(drawer=21): _png()},
        {_name(drawer=0): _png()},
        {_name(): _png(104)},
        {_name(): b"no image"},
        {_name(): _png()[:60]},
    ],
)
def test_archives_of_another_form_are_invalid(tmp_path, drawings):
    with pytest.raises(DataInvalid, match="archives of drawings"):
        read_drawings([_archive(tmp_path / "a.zip", drawings)])


def test_a_file_that_is_no_archive_is_invalid(tmp_path):
    (tmp_path / "a.zip").write_text("no archive")
    with pytest.raises(DataInvalid, match="archives of drawings"):
        read_drawings([tmp_path / "a.zip"])
