"""Whole runs of a million sites: work and files are those of the cohorts."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import lepton_cli
from lepton_cli import evidence as gathering
from lepton_cli.compose import compose_settings
from lepton_cli.run import find_run
from lepton_cli.simulation import resume, start
from lepton_client import site as opening
from lepton_common.errors import AuditError, Interrupted, SettingsError
from lepton_server.progress import Observer
from lepton_server.rounds.cohort import draw_nodes

CROWD = (
    "task=breast_cancer", "sites=1000000", "federation.cohort=4", "rounds=3", "secagg=none",
    "data.partition=drawn", "data.records_per_site=20",
)  # fmt: skip
PLAIN = (*CROWD, "privacy=none")


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def opened(monkeypatch):
    """Returns the names of sites that were opened, each time."""
    names, whole = [], opening.Site.__init__

    def noting(self, folder, passphrase=None):
        names.append(folder.name)
        whole(self, folder, passphrase)

    monkeypatch.setattr(opening.Site, "__init__", noting)
    return names


def drawn(seed=1, rounds=3):
    nodes = [draw_nodes(range(2, 10**6 + 2), 4, seed, round_) for round_ in range(1, rounds + 1)]
    return {f"site-{node - 1:07}" for chosen in nodes for node in chosen}


def asked(run):
    return {path.name for path in (run.folder.path / "sites").iterdir()}


@pytest.mark.parametrize("privacy", ["none", "record"])
def test_as_many_sites_are_made_opened_and_reported_as_were_asked(lepton, opened, privacy):
    ended = lepton("simulate", *CROWD, f"privacy={privacy}")
    assert ended.code == 0
    assert "over 1,000,000 sites" in ended.err
    run = find_run("last")
    assert asked(run) == set(opened) == set(run.evidence.sites) == drawn()
    assert len(opened) == 12
    assert run.evidence.totals.sites == 12
    assert run.evidence.witnessed == 24
    assert all(report.failed == {} for report in run.rounds)
    assert run.report.stat().st_size < 500_000
    assert lepton("audit", "verify").code == 0
    assert "secagg=none federation.cohort=4" in ended.out  # what to try next can be tried


@pytest.mark.slow
def test_the_run_of_a_million_sites_is_no_larger_than_that_of_five_thousand():
    def size(sites):
        run = lepton_cli.simulate(*PLAIN, f"sites={sites}")
        return sum(path.stat().st_size for path in run.folder.path.rglob("*"))

    few, many = size(5000), size(10**6)
    assert abs(many - few) < 0.1 * few  # names have seven digits instead of four


@pytest.mark.slow
def test_a_stopped_run_of_a_crowd_goes_on_to_the_same_model():
    class Stops(Observer):
        def on_round(self, report):
            self.stop_requested = True

    unbroken = start(compose_settings(list(PLAIN)))
    with pytest.raises(Interrupted):
        start(compose_settings(list(PLAIN)), Stops())
    stopped = find_run("last")
    assert asked(stopped) == drawn(rounds=1)
    finished = resume(stopped)
    assert asked(finished) == asked(unbroken) == drawn()
    one, other = (load_file(run.folder.final_model) for run in (unbroken, finished))
    assert all(np.array_equal(one[name], other[name]) for name in one)


def test_a_site_of_a_crowd_that_cannot_be_made_has_failed_in_its_round(monkeypatch):
    from lepton_cli.simulated_sites import SimulatedSites

    whole, broken = SimulatedSites._make, []

    def full(self, index, path):
        if not broken:
            broken.append(index + 2)
            raise OSError(5, "Input/output error")
        whole(self, index, path)

    monkeypatch.setattr(SimulatedSites, "_make", full)
    run = lepton_cli.simulate(*PLAIN, "engine.workers=1")
    assert run.rounds[0].failed == {f"node-{broken[0]}": "ClientAppCrashed"}
    assert run.rounds[1].failed == {}


def test_evidence_keeps_those_that_spent_most_and_the_totals_of_all(lepton, monkeypatch):
    lepton("simulate", "task=breast_cancer", "sites=6", "rounds=3", "federation.cohort=2",
           "secagg=none")  # fmt: skip
    run = find_run("last")
    whole = gathering.gather_evidence(run.folder)
    monkeypatch.setattr(gathering, "_MOST_KEPT", 2)
    few = gathering.gather_evidence(run.folder)
    assert few.totals == whole.totals
    assert whole.totals.sites == len(whole.sites) == 6
    spent = sorted((s.epsilon or 0.0, s.total_bytes, s.name) for s in whole.sites.values())
    assert set(few.sites) == {name for _, _, name in spent[-2:]}
    assert few.totals.spent == {1e-5: max(site.epsilon or 0.0 for site in whole.sites.values())}
    assert few.totals.records == sum(site.records for site in whole.sites.values())
    assert lepton("audit", "verify").out.count("site-") == 2
    out = lepton("report", "last").out
    assert "all 6" in out
    assert "the 2 sites that spent most" in out
    html = run.report.read_text()
    assert "The 2 sites that spent most, of\n6 that took part" in html
    assert html.partition("What each site spent")[2].count("<td>site-") == 2
    assert json.loads(lepton("report", "last", "--json").out)["sites_in_all"] == 6


def test_a_site_that_the_server_does_not_know_is_found_among_a_crowd():
    run = lepton_cli.simulate(*PLAIN)
    known = run.folder.site(next(iter(run.evidence.sites)))
    stranger = run.folder.site("site-0000000")
    stranger.mkdir()
    (stranger / "audit.jsonl").write_bytes((known / "audit.jsonl").read_bytes())
    with pytest.raises(AuditError, match="does not know this site"):
        gathering.gather_evidence(run.folder)


def test_what_a_crowd_cannot_have_is_said_before_anything_is_made():
    for words, said in (
        (("secagg=sa1",), "secagg=sa1 needs a roster of all sites"),
        (("baselines=true",), "baselines=true trains a model at each site"),
        (("data.records_per_site=null",), "data.partition=drawn needs"),
    ):
        with pytest.raises(SettingsError, match=said):
            lepton_cli.simulate(*PLAIN, *words)
    assert not Path("runs").exists()
