"""A long run under seeded faults: it ends with a model or a named failure, and the books are right.

By hand: ``LEPTON_CHAOS=200 LEPTON_CHAOS_SEED=7 scripts/test --system -s
tests/system/test_chaos.py`` does 200 faults; each is printed as it is done.
"""

import json
import os
import re
import shutil
import time

import numpy as np
import pytest
from faults import Faults
from federation import Federation
from relay import Relay, Weather
from safetensors.numpy import load_file

from lepton_client.site import Site
from lepton_common import errors
from lepton_common.audit import read_records
from lepton_common.chain import GENESIS

pytestmark = pytest.mark.system
FAULTS = int(os.environ.get("LEPTON_CHAOS", "30"))
SEED = int(os.environ.get("LEPTON_CHAOS_SEED", "20261121"))
RUN = (
    "task=breast_cancer rounds=12 privacy=record privacy.epsilon=0.9 privacy.spare_rounds=24 "
    "sites=4 secagg.stage_timeout_s=10 federation.round_timeout_s=20"
)

CALM = RUN.replace("_s=10", "_s=60").replace("_s=20", "_s=120")  # as long as it takes


@pytest.fixture(scope="module")
def chaos(tmp_path_factory):
    if os.geteuid() != 0 or shutil.which("cc") is None:
        pytest.skip("needs root, for disks that are full, and a C compiler, for clocks that jump")
    federation = Federation(tmp_path_factory.mktemp("chaos"))
    weather = {site: Weather() for site in federation.sites}
    relays = {
        site: Relay(lambda _, site=site: weather[site], seed=SEED + number)
        for number, site in enumerate(federation.sites)
    }
    faults = Faults(federation, weather, relays, np.random.default_rng([SEED, 1]))
    try:
        federation.make()
        for site, relay in relays.items():
            federation.environment[site] = {"https_proxy": f"http://127.0.0.1:{relay.port}"}
            file = federation.path / site / "site.yaml"
            # As many runs as it takes until all faults are done.
            text = re.sub(r"(?m)^(  max_epsilon: )\S+", r"\g<1>100.0", file.read_text())
            file.write_text(text)
        faults.mount_disks()
        faults.give_clocks()
        faults.deliver_twice()
        federation.start_all()
        assert all(relay.passed >= 2 for relay in relays.values())  # fleet API and notices
        yield federation, faults, relays
    finally:
        federation.stop()
        faults.unmount_disks()
        for relay in relays.values():
            relay.close()


def status(federation, run):
    path = federation.run(run) / "outcome.json"
    return json.loads(path.read_text()) if path.exists() else None


def test_a_run_under_faults_ends_well_or_by_name_and_the_books_are_right(chaos):
    federation, faults, relays = chaos
    chance, names = np.random.default_rng(SEED), []
    print(f"\nseed {SEED}, {FAULTS} faults")
    order = []
    for number in range(1, FAULTS + 1):
        if not names or status(federation, names[-1]):
            names.append(submit(federation))
        # Each kind once before any comes again.
        order = order or list(chance.permutation(faults.kinds))
        kind, site = str(order.pop()), str(chance.choice(federation.sites))
        seconds, before = float(chance.uniform(1, 5)), len(federation.rounds(names[-1]))
        print(f"{time.strftime('%H:%M:%S')} {number:3} {kind} {site} {seconds:.1f} s", flush=True)
        faults.do(kind, site, seconds)
        faults.keep_up()
        going_on(federation, names[-1], before, float(chance.uniform(2, 12)))
    for site, process in federation.processes.items():
        assert process.poll() is None, federation.log(site)[-2000:]
    federation.until(lambda: status(federation, names[-1]), timeout=600)
    names.append(submit(federation, CALM))  # all is as ever
    federation.until(lambda: status(federation, names[-1]), timeout=300)
    ends = {name: check_end(federation, name) for name in names}
    hurt = [(relay.broken, relay.corrupted) for relay in relays.values()]
    print(json.dumps(ends, indent=1), "broken and corrupted, by site:", hurt)
    assert ends[names[-1]] == "finished"
    assert len(faults.kinds) > FAULTS or all(sum(hits) for hits in zip(*hurt, strict=True))
    check_books(federation, names)
    for site in federation.sites:
        assert "Traceback" not in federation.log(site), site
    assert "ConnectError" not in re.findall(r"(?m)^\S+", federation.log("srv"))
    for name in (n for n, end in ends.items() if end == "finished"):
        check_evidence(federation, name)


def submit(federation, words=RUN):
    """Submits the next run, as a person does who tries again."""
    deadline = time.monotonic() + 90
    while True:
        try:
            return federation.submit(f"{words} seed={int(time.monotonic())}")
        except AssertionError as refused:
            if "ServerUnreachable" not in str(refused) or time.monotonic() > deadline:
                raise
            time.sleep(1)


def going_on(federation, run, before, seconds):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and not status(federation, run):
        if len(federation.rounds(run)) > before:
            return
        time.sleep(0.1)


def check_end(federation, run):
    """Returns how a run ended: with a model that is right, or with the name of an error."""
    ended = status(federation, run)
    if ended["status"] == "failed":
        kind = getattr(errors, ended["error"])
        assert issubclass(kind, errors.LeptonError)
        assert kind is not errors.RunError, federation.log("srv")[-4000:]
        return ended["error"]
    rounds = federation.rounds(run)
    assert (ended["status"], len(rounds)) == ("finished", 12)
    assert [row["round"] for row in rounds] == list(range(1, 13))
    assert rounds[-1]["metrics"]["accuracy"] > 0.7
    model = load_file(federation.run(run) / "model.safetensors")
    assert all(np.isfinite(values).all() for values in model.values())
    return "finished"


def check_books(federation, names):
    """Every chain verifies; whatever left was charged; whatever came is in its site's books."""
    logs = list(federation.path.glob("srv/runs/*/server/audit.jsonl"))
    assert {log.parents[1].name for log in logs} <= set(names)
    collected = [r for log in logs for r in read_records(log) if r.kind == "collected"]
    list(read_records(federation.path / "srv" / "audit.jsonl"))
    for site in federation.sites:
        opened = Site(federation.path / site)  # verifies log and ledger, and one by the other
        released = [r for r in opened.audit.records if r.kind == "release"]
        used = [r.body["charge"] for r in released if r.body["charge"] is not None]
        charged = [r.hash for r in opened.ledger.records if r.kind == "charge"]
        assert len(used) == len(set(used))
        assert set(used) <= set(charged)
        # An update leaves once for each message, however often that was delivered.
        updates = [r.body["reply_to"] for r in released if r.body["charge"] is not None]
        assert len(updates) == len(set(updates))
        heads = {r.hash for r in opened.audit.records}
        entries = {GENESIS, *(r.hash for r in opened.ledger.records)}
        # A site that dropped out of a round before its update left has shown a log, and no ledger.
        came = [r for r in collected if site in r.body["ledgers"]]
        # A coordinator that died with a sum on disk puts the same round on record once more.
        assert len({r.body["heads"][site] for r in came}) <= len(used)
        assert {r.body["ledgers"][site] for r in came} <= entries
        assert {r.body["heads"][site] for r in collected if site in r.body["heads"]} <= heads
        print(f"{site}: {len(charged)} charged, {len(used)} released, {len(came)} collected")


def check_evidence(federation, run):
    """What the coordinator has of a run is what the sites' doors let out, pack against pack."""
    packs = [f"{run}.srv.zip", *(f"{run}.{site}.zip" for site in federation.sites)]
    federation.here(f"evidence {run} --server srv --out {packs[0]}")
    for site, pack in zip(federation.sites, packs[1:], strict=True):
        federation.here(f"evidence {run} --site {site} --out {pack}")
    federation.here(f"evidence verify {' '.join(packs)} --root {federation.root} --json")
