"""Tests of what stays open and in memory of sites: one of each folder, and not too many."""

import weakref
from pathlib import Path

import numpy as np
import pytest
from toy_site import PERMISSIVE, synthetic, write_site

from lepton_client import data, site
from lepton_client.data import SiteRecords
from lepton_client.site import Site, forget_sites, open_site
from lepton_common.datasets.catalog import load_dataset


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """Returns the folders of five sites, of which two stay open."""
    monkeypatch.setattr(site, "_MOST_RECENT", 2)
    for index in range(5):
        write_site(tmp_path / f"site-{index}", PERMISSIVE, rows=10 + index)
    return [str(tmp_path / f"site-{index}") for index in range(5)]


def test_those_asked_last_stay_open_and_the_others_are_let_go(folders):
    opened = [weakref.ref(open_site(folder)) for folder in folders[:3]]
    assert [found() is not None for found in opened] == [False, True, True]
    assert open_site(folders[1]) is opened[1]()
    open_site(folders[3])  # site 2 was asked before site 1
    assert [found() is not None for found in opened] == [False, True, False]


def test_a_site_that_somebody_works_with_is_never_opened_twice(folders):
    working = open_site(folders[0])
    for folder in folders[1:]:
        open_site(folder)
    again = open_site(folders[0])
    assert again is working
    working.audit.append("note", {})
    again.audit.append("note", {})


def test_a_site_that_was_let_go_goes_on_where_it_was(folders):
    open_site(folders[0]).audit.append("note", {"n": 1})
    for folder in folders[1:]:
        open_site(folder)
    assert [record.kind for record in open_site(folders[0]).audit.records] == ["open", "note"]


def test_forgotten_sites_are_opened_anew_even_where_somebody_has_one(folders):
    before = open_site(folders[0])
    forget_sites()
    assert open_site(folders[0]) is not before


@pytest.fixture
def held(monkeypatch):
    """Returns a new, empty memory of records taken out of data sets."""
    memory = data._Held()
    monkeypatch.setattr(data, "_HELD", memory)
    return memory


def _records(folder):
    opened = Site(folder)
    return SiteRecords(opened.file.data, folder)


def test_records_that_were_read_last_are_not_taken_again(make_site, held):
    source = _records(make_site(rows=10).folder)
    first = source.read()
    assert source.read() is first
    assert len(first) == 10


def test_other_rows_or_another_data_set_are(make_site, held, toy_catalog):
    folder = make_site(rows=10).folder
    source = _records(folder)
    first = source.read()
    np.save(folder / "rows.npy", np.arange(5))
    assert len(source.read()) == 5
    np.save(folder / "rows.npy", np.arange(10))
    toy_catalog["train"] = synthetic(seed=7)
    load_dataset.cache_clear()
    again = source.read()
    assert not (again.features == first.features).all()
    assert len(held._held) == 1


def test_records_are_held_as_far_as_they_take_what_their_data_set_takes(folders, held, monkeypatch):
    monkeypatch.setattr(data, "_LEAST_HELD", 0)
    sources = [_records(Path(folder)) for folder in folders]
    # The sites' rows overlap, so that all of theirs are more than the data set has.
    whole = sources[0].dataset().train.features.nbytes
    read = [source.read() for source in sources * 3]
    assert sum(records.features.nbytes for records in read[: len(sources)]) > whole
    assert held._bytes <= whole < held._bytes + read[0].features.nbytes


def test_few_records_are_held_and_those_of_the_last_site_however_many(folders, held, monkeypatch):
    monkeypatch.setattr(data, "_MOST_HELD", 2 * 13 * 4 * 4)
    sources = [_records(Path(folder)) for folder in folders]
    for source in sources:
        source.read()
        assert held._bytes == sum(kept[2].features.nbytes for kept in held._held.values())
        assert held._bytes <= data._MOST_HELD
    assert [path.parent.name for path in held._held] == ["site-4"]
    monkeypatch.setattr(data, "_MOST_HELD", 1)
    last = sources[0].read()
    assert sources[0].read() is last
    assert len(held._held) == 1
