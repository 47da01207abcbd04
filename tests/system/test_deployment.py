"""A coordinator and four sites as real processes: from empty folders to a model, and back up again.

Every call goes through the public port, as between machines.
"""

import contextlib
import json
import os
import shutil
import signal
import sys
import zipfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import httpx
import next_version
import numpy as np
import pytest
import yaml
from federation import plain_run, running
from safetensors.numpy import load_file

from lepton_client.attendance import connector
from lepton_client.proposals import Proposals
from lepton_client.site import Site
from lepton_common.audit import read_records
from lepton_common.control.control_pb2 import Attendance
from lepton_common.control.control_pb2_grpc import SitesStub
from lepton_common.identity.certificates import issue_leaf
from lepton_common.identity.heads import read_witnessed
from lepton_common.identity.keys import SigningKey, read_public
from lepton_common.privacy.ledger_file import read_ledger
from lepton_common.proposal import study_in
from lepton_server.trackers.tensorboard import rounds_in

pytestmark = pytest.mark.system
SITES = ("site-1", "site-2", "site-3", "site-4")
STUDY = {
    "name": "heart", "federation": "hospitals", "version": 1, "purpose": "Predict a disease.",
    "legal_basis": "Consent.", "ethics_reference": "EK 12/2026", "until": "2099-12-31",
    "sites": ["site-1", "site-2", "site-4"], "leads": ["dora"], "auditors": [],
    "tasks": ["breast_cancer"], "data": ["breast_cancer"], "max_epsilon": 3.0, "max_delta": 1e-5,
}  # fmt: skip


@pytest.fixture(scope="module")
def federation(tmp_path_factory):
    # One site is a version ahead, as in a federation whose operators update when they can.
    newer = {"site-4": [sys.executable, next_version.__file__]}
    with running(tmp_path_factory.mktemp("federation"), command=newer) as made:
        yield made


def test_a_private_run_ends_with_a_model_and_logs_that_verify(federation):
    name = federation.submit(
        "task=breast_cancer rounds=10 privacy=record privacy.epsilon=0.9 sites=4 "
        "tracker=tensorboard"
    )
    last = json.loads(federation.watch(name).stdout.splitlines()[-1])
    assert (last["status"], last["rounds"]) == ("finished", 10)
    assert last["metrics"]["accuracy"] > 0.7
    federation.do(f"run fetch {name} model.safetensors --as dora")
    fetched = load_file(federation.path / "model.safetensors")
    final = load_file(federation.run(name) / "model.safetensors")
    assert all(np.array_equal(fetched[key], final[key]) for key in final)
    assert rounds_in(federation.run(name) / "tensorboard") == set(range(1, 11))
    reported = federation.rounds(name)[-1]["epsilon"]
    for site in SITES:
        # As a site reads its own folder: log and ledger verify, and know of every round.
        opened = Site(federation.path / site)
        released = [r for r in opened.audit.records if r.kind == "release"]
        assert sum(r.body["charge"] is not None for r in released) == 10
        assert opened.ledger.epsilon(1e-5) == pytest.approx(reported[site])
        assert 0 < reported[site] <= 0.9
        allowed = {"site", "secagg", "masked", "header", "receipt"}
        assert {item["name"] for r in released for item in r.body["items"]} <= allowed
        (policy,) = (r.body for r in opened.audit.records if r.kind == "policy")
        assert policy["lepton"] == (next_version.NEXT if site == "site-4" else next_version.OURS)
    check_evidence(federation, name)


def check_evidence(federation, name):
    """Everyone makes their pack of a run; another machine has the packs and the root alone."""
    federation.do(f"evidence {name} --server srv --out srv.zip")
    for site in SITES[:2]:
        federation.do(f"evidence {name} --site {site} --out {site}.zip")
    packs = ["srv.zip", *(f"{site}.zip" for site in SITES[:2])]
    elsewhere = federation.path / "auditor"
    elsewhere.mkdir()
    for pack in packs:
        shutil.copy(federation.path / pack, elsewhere)
    held = " ".join(f"auditor/{pack}" for pack in packs)
    line = f"evidence verify {held} --root {federation.root} --json"
    found = json.loads(federation.do(line).stdout)
    assert found["witnessed"] == len(SITES[:2]) * (1 + 10)
    assert not any(pack["simulated"] for pack in found["packs"])
    with zipfile.ZipFile(elsewhere / packs[0]) as pack:
        assert json.loads(pack.read("facts.json"))["proposal"] == {"by": "dora", "study": None}
    assert all(pack["epsilon"] <= 0.9 for pack in found["packs"][1:])
    data = (elsewhere / packs[1]).read_bytes()
    (elsewhere / packs[1]).write_bytes(data.replace(b'"charge":', b'"chargE":', 1))
    assert "EvidenceAltered" in federation.do(line, code=6).stdout


def test_what_a_site_s_policy_forbids_ends_with_its_name(federation):
    name = federation.submit("task=breast_cancer rounds=2 privacy=none sites=4")
    ended = federation.watch(name, code=4)
    assert "SitesRefused" in ended.stderr
    assert federation.rounds(name) == []


def test_without_noise_the_model_is_the_simulation_s(federation):
    with contextlib.ExitStack() as changed:
        for site in SITES:
            changed.enter_context(federation.decided(site, allow_without_dp="true"))
        name = federation.submit(plain_run(4))
        federation.watch(name)
    model = load_file(federation.run(name) / "model.safetensors")
    simulated = load_file(federation.simulated / "model.safetensors")
    for key, values in simulated.items():
        np.testing.assert_allclose(model[key], values, rtol=0, atol=1e-6)


def test_sites_are_asked_for_statistics_that_their_policies_allow(federation):
    words = "task=breast_cancer sites=4 privacy.epsilon=0.3 statistics.features=[0,3]"
    assert "SitesRefused" in federation.do(f"stats --as dora {words}", code=4).stderr
    with contextlib.ExitStack() as changed:
        rules = "{max_epsilon: 0.3, min_cohort: 3, max_bins: 10}"
        for site in SITES:
            changed.enter_context(federation.decided(site, statistics=rules))
        found = json.loads(federation.do(f"stats --as dora --json {words}").stdout)
        federation.do(f"run fetch {found['run']} statistics.json --as dora")
    assert json.loads((federation.path / "statistics.json").read_text()) == found
    assert found["sites"] == {"answered": 4, "failed": {}}
    people = found["people"]
    assert people["value"] == pytest.approx(455, abs=6 * people["error"])
    assert [row["name"] for row in found["features"]] == ["mean radius", "mean area"]
    assert found["privacy"]["epsilon"] <= 0.3
    (state,) = (
        run
        for run in json.loads(federation.do("run list --as dora --json").stdout)
        if run["name"] == found["run"]
    )
    assert (state["status"], state["rounds"], state["of_rounds"]) == ("finished", 1, 1)
    for site in SITES:
        key = read_public(federation.path / site / "signing.pem")
        charges = read_ledger(federation.path / site / "ledger.db", key).charges
        assert sum(charge.body["run"] == found["run"] for charge in charges) == 1


def test_operators_decide_and_take_their_word_back(federation):
    with federation.decided("site-2", approval="manual"):
        words = "task=breast_cancer rounds=30 privacy=record privacy.epsilon=0.2 sites=4 seed=3"
        name = federation.submit(words)
        waits = federation.path / "site-2" / "proposals" / f"{name}.json"
        federation.until(waits.exists)
        state = json.loads(federation.do("run list --as dora --json").stdout)[-1]
        assert (state["name"], state["status"]) == (name, "waiting")
        assert federation.rounds(name) == []
        proposals = Proposals(federation.path / "site-2", None)
        proposals.decide(name, "approved")
        federation.until(lambda: len(federation.rounds(name)) >= 1)
        proposals.decide(name, "refused")
        # The others are enough for a quorum, and go on without it.
        federation.until(
            lambda: federation.rounds(name)[-1]["failed"] == {"site-2": "ConsentRefused"}
        )
        federation.do(f"run stop {name} --as dora")
        federation.watch(name)


def test_the_trainer_has_no_network_and_sees_no_key(federation):
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if b"lepton_client.trainer_process" in path.read_bytes().split(b"\0"):
                found.append(path.parent)
    ours = Path("/proc/self/ns/net").readlink()
    inside = [path for path in found if (path / "ns/net").readlink() != ours]
    assert len(inside) >= len(SITES)
    for process in inside[: len(SITES)]:
        assert len((process / "net/dev").read_text().splitlines()) == 3  # two of title, one of lo
        seen = [process / "root" / str(federation.path / site).lstrip("/") for site in SITES]
        # Of its own site's folder the rows; other sites are on other machines as a rule.
        assert sum({p.name for p in path.iterdir()} == {"rows.npy"} for path in seen) == 1


@pytest.mark.parametrize("victim", ["executor", "superlink", "nginx"])
def test_a_part_that_is_killed_comes_back_and_the_run_goes_on(federation, victim):
    name = federation.submit(
        "task=breast_cancer rounds=4 privacy=record privacy.epsilon=0.2 privacy.spare_rounds=8 "
        f"sites=4 seed={1 + len(victim)}"
    )
    federation.until(lambda: len(federation.rounds(name)) >= 1)
    killed = federation.children(victim)
    assert killed
    for process in killed:
        os.kill(process, signal.SIGKILL)
    last = json.loads(federation.watch(name).stdout.splitlines()[-1])
    assert (last["status"], last["rounds"]) == ("finished", 4)
    for site in SITES:
        Site(federation.path / site)


def test_a_superlink_that_is_killed_as_it_starts_is_started_again(federation):
    coordinator, dead = federation.processes["srv"], set()
    for _ in range(3):
        federation.until(lambda: set(federation.children("superlink_process")) - dead)
        for process in set(federation.children("superlink_process")) - dead:
            dead.add(process)
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
    federation.until(lambda: is_well(federation), timeout=120)
    assert coordinator.poll() is None


def test_the_whole_coordinator_is_killed_and_goes_on(federation):
    name = federation.submit(
        "task=breast_cancer rounds=4 privacy=record privacy.epsilon=0.2 privacy.spare_rounds=8 "
        "sites=4 seed=77"
    )
    federation.until(lambda: len(federation.rounds(name)) >= 1)
    federation.processes["srv"].kill()
    federation.processes["srv"].wait()
    federation.start("server", "srv")
    federation.until(lambda: len(federation.rounds(name)) == 4, timeout=180)
    last = json.loads(federation.watch(name).stdout.splitlines()[-1])
    assert last["status"] == "finished"


def test_a_run_is_stopped_by_whoever_may(federation):
    name = federation.submit(
        "task=breast_cancer rounds=50 privacy=record privacy.epsilon=0.2 sites=4 seed=5"
    )
    federation.until(lambda: len(federation.rounds(name)) >= 1)
    assert "NotAllowed" in federation.do(f"run stop {name} --as eve", code=5).stderr
    federation.do(f"run stop {name} --as dora")
    last = json.loads(federation.watch(name).stdout.splitlines()[-1])
    assert last["status"] == "stopped"
    assert 1 <= last["rounds"] < 50
    said = f"Someone stopped the run {name}."
    federation.until(lambda: all(said in federation.log(site) for site in SITES))


def test_an_auditor_lists_runs_and_starts_none(federation):
    assert "breast_cancer" in federation.do("run list --as eve --json").stdout
    refused = federation.do("submit --as eve task=breast_cancer", code=5)
    assert "NotAllowed" in refused.stderr
    calls = [
        r.body for r in read_records(federation.path / "srv" / "audit.jsonl") if r.kind == "call"
    ]
    assert any(c["by"] == "eve" and not c["allowed"] for c in calls)


@pytest.mark.parametrize("path", ["/v1/fleet/pull-messages", "/health", "/v1/control/list-runs"])
@pytest.mark.parametrize("who", ["nobody", "a stranger", "an old certificate"])
def test_without_a_certificate_of_the_roster_there_is_no_way_in(federation, who, path):
    tls = {
        "nobody": lambda: federation.tls(None),
        "a stranger": lambda: federation.tls("site-1", key=SigningKey.generate()),
        "an old certificate": lambda: federation.tls(
            "site-1", at=datetime.now(UTC) - timedelta(days=3)
        ),
    }[who]()
    try:
        answer = httpx.post(f"https://localhost:{federation.port}{path}", verify=tls)
    except httpx.TransportError:
        return
    assert answer.status_code == 400  # nginx: no required certificate, or not a good one


@pytest.mark.parametrize(
    ("who", "path", "code"),
    [
        ("dora", "/v1/fleet/pull-messages", 403),
        ("site-1", "/v1/fleet/register-node", 403),
        ("site-1", "/v1/fleet/unregister-node", 403),
        ("site-1", "/v1/control/start-run", 404),
        ("site-1", "/v1/runtime/acquire-task", 404),
        ("site-1", "/v1/fleet/../control/start-run", 404),
        ("site-1", "/v1/fleet/%2e%2e/control/start-run", 404),
        ("site-1", "/lepton.control.v1.Control/Submit", 403),
        ("site-1", "/docs", 404),
        ("dora", "/lepton.control.v1.Sites/Attend", 403),
        ("site-1", "/lepton.control.v1.Inside/Wake", 404),
        ("dora", "/lepton.control.v1.Inside/Wake", 404),
    ],
)
def test_everyone_reaches_only_what_is_theirs(federation, who, path, code):
    answer = httpx.post(
        f"https://localhost:{federation.port}{path}", verify=federation.tls(who), content=b"x"
    )
    assert answer.status_code == code


def test_a_site_is_who_its_certificate_says_whatever_it_sends(federation):
    def attend(name, said):
        leaf = issue_leaf(SigningKey.load(federation.path / name / "signing.pem"), name)
        roster = federation.roster
        channel = connector(roster.coordinator, leaf)()
        with channel, contextlib.suppress(grpc.RpcError):
            call = SitesStub(channel).Attend(
                Attendance(), metadata=[("x-lepton-site", said)], timeout=10
            )
            return read_witnessed(next(call).witnessed, roster)[0].site

    # The first thing that a site is told is how far its own logs went.
    assert attend("site-1", "nobody") == "site-1"
    assert attend("site-2", "site-1") == "site-2"
    assert attend("dora", "site-1") is None


def is_well(federation):
    address = f"http://127.0.0.1:{federation.metrics_port}/health"
    return httpx.get(address, trust_env=False).json()["ok"]


def test_health_tells_of_every_part_and_site(federation):
    address = f"http://127.0.0.1:{federation.metrics_port}"
    federation.until(lambda: is_well(federation))

    def attends(site):
        metrics = httpx.get(f"{address}/metrics", trust_env=False).text.splitlines()
        return f'lepton_site_attending{{site="{site}"}} 1.0' in metrics

    federation.until(lambda: all(attends(site) for site in SITES))


def test_a_newer_roster_lets_people_in_and_reaches_the_sites(federation):
    federation.here("person init frank --name frank --role lead")
    federation.here("federation propose hosp --add frank/join.json")
    for partner in ("alice", "bob"):
        federation.here(f"federation sign hosp --key {partner}.pem --yes")
    federation.here("federation publish hosp")
    (federation.path / "study.yaml").write_text(yaml.safe_dump(STUDY))
    federation.here("federation study hosp study.yaml")
    for partner in ("alice", "bob"):
        federation.here(f"federation sign hosp --key {partner}.pem --yes")
    federation.here("federation publish hosp")
    for kind, folder in (("server", "srv"), ("person", "frank")):
        federation.here(f"{kind} join {folder} hosp --root {federation.root}")
    federation.until(
        lambda: all("Version 2 of the roster is taken over" in federation.log(s) for s in SITES)
    )
    held = lambda site: (federation.path / site / "studies" / "heart.json").exists()  # noqa: E731
    federation.until(lambda: held("site-1") and held("site-2"))
    assert not held("site-3")
    # Its runs are asked of its sites alone, and nobody else learns that there are any.
    words = "task=breast_cancer rounds=1 privacy=record privacy.epsilon=0.3 sites=3"
    name = federation.submit(f"{words} secagg.colluders=1 seed=29 --study heart")
    federation.watch(name)
    assert federation.rounds(name)[-1]["failed"] == {}
    asked = [s for s in SITES if name in Proposals(federation.path / s, None).names()]
    assert asked == STUDY["sites"]
    listed = lambda who: federation.do(f"run list --as {who} --json").stdout  # noqa: E731
    assert name in listed("dora")
    assert name not in listed("frank")
    assert "RunNotFound" in federation.do(f"run stop {name} --as frank", code=5).stderr
    for where in ("--server srv", "--site site-1"):
        federation.do(f"evidence {name} {where} --out heart.zip")
        with zipfile.ZipFile(federation.path / "heart.zip") as pack:
            assert STUDY["purpose"] in pack.read("study.json").decode()


def test_a_site_without_its_node_key_is_nobody_to_the_fleet(federation):
    answer = httpx.post(
        f"https://localhost:{federation.port}/v1/fleet/pull-messages",
        verify=federation.tls("site-1"),
        content=b"",
        headers={"content-type": "application/protobuf"},
    )
    assert answer.status_code in (401, 403)


def test_a_site_whose_log_was_put_back_refuses_to_work(federation):
    site = federation.path / "site-3"
    log = site / "audit.jsonl"
    federation.processes["site-3"].terminate()
    federation.processes["site-3"].wait(30)
    whole = log.read_bytes()
    lines = whole.splitlines(keepends=True)
    seen = next(i for i, line in enumerate(lines) if b'"kind":"heads"' in line)
    log.write_bytes(b"".join(lines[:seen]))
    federation.start("site", "site-3")
    assert federation.processes["site-3"].wait(60) == 6
    assert "AuditRolledBack" in federation.log("site-3")
    before = federation.log("site-3").count("Connected")
    log.write_bytes(whole)
    federation.start("site", "site-3")
    federation.until(lambda: federation.log("site-3").count("Connected") > before)


def test_a_site_that_the_partners_removed_is_out_and_says_so(federation):
    federation.here("federation propose hosp --remove site-4")
    for partner in ("alice", "bob"):
        federation.here(f"federation sign hosp --key {partner}.pem --yes")
    federation.here("federation publish hosp")
    federation.here(f"server join srv hosp --root {federation.root}")
    assert federation.processes["site-4"].wait(60) == 8
    assert "does not name site-4" in federation.log("site-4")
    reach = federation.tls("site-4")

    def is_out():
        try:
            address = f"https://localhost:{federation.port}/v1/fleet/pull-messages"
            return httpx.post(address, verify=reach, content=b"x").status_code == 400
        except httpx.TransportError:
            return True

    federation.until(is_out)
    # The study that names it goes on among the others, and evidence of its run keeps it.
    proposals = Proposals(federation.path / "site-1", None)
    run = next(name for name in proposals.names() if study_in(proposals.text(name)) == "heart")
    federation.do(f"evidence {run} --site site-1 --out after.zip")
    with zipfile.ZipFile(federation.path / "after.zip") as pack:
        assert "study.json" in pack.namelist()
    words = "--as dora --study heart task=breast_cancer privacy=record privacy.epsilon=0.3 sites=5"
    said = federation.do(f"submit {words}", code=2).stderr
    assert "sites at least, and there are 2" in said
