"""Tests of simulated sites: each made when it is asked, the same by whoever makes it."""

import os
import threading
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from lepton_cli.compose import compose_settings
from lepton_cli.simulated_sites import SimulatedSites, clear_unfinished
from lepton_cli.simulation import create
from lepton_client.site import Site, read_site_file
from lepton_common.errors import DiskFull
from lepton_common.identity.keys import SigningKey
from lepton_common.identity.roster import read_roster_files

MILLION = 10**6
DRAWN = ("data.partition=drawn", "data.records_per_site=20")
CROWD = (f"sites={MILLION}", *DRAWN, "secagg=none", "privacy=none", "federation.cohort=4")


@pytest.fixture
def found(tmp_path):
    """Returns the sites of a new run."""

    def make(*words):
        settings = compose_settings(["task=breast_cancer", f"runs={tmp_path}", *words])
        return SimulatedSites(settings, create(settings))

    return make


def folders(sites):
    return sorted(path.name for path in (sites._folder.path / "sites").iterdir())


def test_a_site_is_made_when_its_node_is_asked_and_no_other(found):
    sites = found(*CROWD)
    assert folders(sites) == []
    assert len(sites) == len(sites.keys()) == MILLION
    assert 2 in sites
    assert MILLION + 1 in sites
    assert MILLION + 2 not in sites
    assert folders(sites) == []
    place = Path(sites[MILLION + 1]["site"])
    assert place.name == "site-1000000"
    assert folders(sites) == ["site-1000000"]
    sites[500_001]
    assert folders(sites) == ["site-0500000", "site-1000000"]
    with pytest.raises(KeyError):
        sites[1]
    site = Site(place)
    assert site.file.name == place.name
    assert site.file.public_size == 16
    assert len(np.load(place / "rows.npy")) == 20


def test_a_million_sites_take_no_memory_before_they_are_asked(found):
    sites = found(*CROWD)
    sites[2]  # what is loaded once
    tracemalloc.start()
    try:
        again = SimulatedSites(sites._settings, sites._folder)
        nodes = again.keys()
        assert len(nodes) == MILLION
        assert (nodes[0], nodes[-1]) == (2, MILLION + 1)
        assert [nodes[place] for place in (5, 999_999)] == [7, MILLION + 1]
        for place in range(20):
            again[nodes[place * 1000]]
        now, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert now < 200_000
    assert most < 1_000_000
    assert len(folders(sites)) == 20


def test_whoever_makes_a_site_makes_the_same(found):
    sites = found(*CROWD)
    first = Path(sites[77]["site"])
    kept = {path.name: path.read_bytes() for path in first.iterdir()}
    first.rename(first.with_name("moved"))
    again = Path(SimulatedSites(sites._settings, sites._folder)[77]["site"])
    assert again == first
    assert {path.name: path.read_bytes() for path in again.iterdir()} == kept


def test_every_site_has_a_key_of_its_own_which_follows_from_the_runs_secret(found):
    sites, other = found(*CROWD), found(*CROWD)
    keys = {SigningKey.load(Path(s[n]["site"]) / "signing.pem").public_hex
            for s in (sites, other) for n in range(2, 12)}  # fmt: skip
    assert len(keys) == 20
    for path in (sites._folder.path / "sites.pem", Path(sites[2]["site"]) / "signing.pem"):
        assert path.stat().st_mode & 0o077 == 0


def test_a_small_federation_pins_one_roster_that_all_its_sites_share(found):
    sites = found("sites=3")
    assert folders(sites) == []
    roster = read_roster_files(sites._folder.roster, sites._folder.roster_root)
    assert [member.name for member in roster.members] == ["site-1", "site-2", "site-3"]
    for member, config in zip(roster.members, sites.values(), strict=True):
        site = Site(Path(config["site"]))
        assert site.key.public_hex == member.public_key
        assert site.roster is roster  # read once
        inode = sites._folder.roster.stat().st_ino
        assert (site.folder / "roster.json").stat().st_ino == inode


def test_where_files_have_one_name_only_the_roster_is_copied(found, monkeypatch):
    def fails(*names):
        raise OSError

    monkeypatch.setattr(os, "link", fails)
    sites = found("sites=2")
    assert Site(Path(sites[3]["site"])).roster.version == 1


def test_a_crowd_pins_none(found):
    sites = found(*CROWD)
    assert not sites._folder.roster.exists()
    assert not (Path(sites[2]["site"]) / "roster.json").exists()


def test_natural_sites_keep_their_names(shared_data, tmp_path):
    settings = compose_settings(
        ["experiment=flamby_heart_disease", f"data.root={shared_data}", f"runs={tmp_path}"]
    )
    sites = SimulatedSites(settings, create(settings))
    assert Path(sites[2]["site"]).name == "cleveland"
    assert Path(sites[5]["site"]).name == "va"


def test_threads_that_ask_for_one_site_at_once_get_one_site(found):
    sites = found(*CROWD)
    start, seen = threading.Barrier(8), []

    def ask():
        start.wait()
        seen.append(sites[9]["site"])

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(seen)) == 1
    assert len(seen) == 8
    assert folders(sites) == ["site-0000008"]
    assert not list(sites._folder.path.glob(".site-*"))


def test_a_death_in_the_middle_leaves_no_half_site(found):
    sites = found(*CROWD)
    child = os.fork()
    if child == 0:
        np.save = lambda *args, **options: os._exit(7)  # in the child alone
        sites[9]
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert folders(sites) == []
    assert list(sites._folder.path.glob(".site-*"))
    clear_unfinished(sites._folder)
    assert not list(sites._folder.path.glob(".site-*"))
    assert read_site_file(Path(sites[9]["site"]) / "site.yaml").name == "site-0000008"


def test_a_site_that_cannot_be_made_is_an_error_and_leaves_nothing(found, monkeypatch):
    sites = found(*CROWD)

    def full(*args, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(DiskFull, match="No room"):
        sites[9]
    assert folders(sites) == []
    assert not list(sites._folder.path.glob(".site-*"))
