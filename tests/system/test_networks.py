"""Sites and coordinator on machines of their own, over networks that are slow, lossy, or cut.

Each site has a network namespace and an address. What the sites know as the coordinator's address
is a relay's; one site has no way out but an HTTP proxy.

    site-1 10.77.0.11 --+
    site-2 10.77.0.12 --+-- relay 10.77.0.1 --- coordinator 10.78.0.2
    site-3 10.77.0.13 --+      |
    site-4 10.79.0.14 ----- proxy 10.79.0.1
"""

import json
import re
import time

import numpy as np
import pytest
from federation import LEPTON, Federation
from namespaces import Namespaces
from relay import Relay, Weather

from lepton_client.site import Site
from lepton_common.audit import read_records

pytestmark = pytest.mark.system
NAMES = ("QuorumNotMet", "TooFewSites", "RoundLost")
RELAY, COORDINATOR, PROXY = "10.77.0.1", "10.78.0.2", "10.79.0.1"
ADDRESSES = {f"site-{number}": f"10.77.0.1{number}" for number in (1, 2, 3)}
BEHIND = "site-4"
RUN = (
    "task=breast_cancer privacy=record privacy.epsilon=0.3 privacy.spare_rounds=10 sites=4 "
    "secagg.stage_timeout_s=20 federation.round_timeout_s=40"
)


class Networks:
    """A federation on machines of their own, and the weather of each site."""

    def __init__(self, path):
        self.machines = Namespaces()
        self.weather = {site: Weather() for site in (*ADDRESSES, BEHIND, "dora")}
        self.relays = []
        self.federation = federation = Federation(path, host=RELAY)
        machines, command = self.machines, federation.command
        for name in ("middle", "srv", "dora", *ADDRESSES, BEHIND):
            machines.add(name)
            command[name] = machines.inside(name, LEPTON)
        machines.bridge("middle", "sites", RELAY)
        machines.bridge("middle", "inner", "10.78.0.1")
        machines.bridge("middle", "ward", PROXY)
        machines.plug("srv", COORDINATOR, "middle", "inner")
        machines.plug("dora", "10.77.0.20", "middle", "sites")
        for site, address in ADDRESSES.items():
            machines.plug(site, address, "middle", "sites")
        machines.plug(BEHIND, "10.79.0.14", "middle", "ward")

    def start(self):
        self.federation.make()
        port, middle = self.federation.port, self.machines.name("middle")
        named = {address: self.weather[site] for site, address in ADDRESSES.items()}
        self.relays = [
            Relay(
                lambda peer: named.get(peer, self.weather["dora"]),
                target=(COORDINATOR, port), listen=(RELAY, port), namespace=middle,
            ),
            Relay(lambda _: self.weather[BEHIND], listen=(PROXY, 0), namespace=middle),
        ]  # fmt: skip
        proxy = f"http://{PROXY}:{self.relays[1].port}"
        self.federation.environment[BEHIND] = {"https_proxy": proxy}
        self.federation.start_all()

    def close(self):
        self.federation.stop()
        for relay in self.relays:
            relay.close()
        self.machines.close()


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    made = Networks(tmp_path_factory.mktemp("networks"))
    try:
        made.start()
        yield made
    finally:
        made.close()


def finished(federation, name, rounds):
    last = json.loads(federation.watch(name, timeout=600).stdout.splitlines()[-1])
    assert (last["status"], last["rounds"]) == ("finished", rounds)
    assert np.isfinite(last["metrics"]["loss"])
    for site in federation.sites:
        Site(federation.path / site)  # log and ledger verify


def trained(federation, name, round_):
    """The sites whose updates are in a round."""
    return set(federation.sites) - set(federation.rounds(name)[round_ - 1]["failed"])


def test_a_site_behind_a_proxy_trains_along_over_slow_lines(networks):
    federation = networks.federation
    for weather in networks.weather.values():
        weather.latency_s = 0.05
    name = federation.submit(f"{RUN} rounds=3 seed=1")
    finished(federation, name, 3)
    assert all(BEHIND in trained(federation, name, round_) for round_ in (1, 2, 3))
    assert networks.relays[1].passed >= 2  # the fleet API, and the stream of notices
    for weather in networks.weather.values():
        weather.latency_s = 0.0


def test_no_site_listens_and_the_one_behind_the_proxy_reaches_nobody_else(networks):
    for site in networks.federation.sites:
        assert networks.machines.out(site, "ss", "-Hltun") == ""
    assert "default" not in networks.machines.out(BEHIND, "ip", "route")
    assert RELAY not in networks.machines.out(BEHIND, "ip", "route")
    ended = networks.machines.out(
        BEHIND, "sh", "-c", f"timeout 2 bash -c '</dev/tcp/{RELAY}/{networks.federation.port}' "
        "2>/dev/null && echo reached || echo unreachable",
    )  # fmt: skip
    assert ended.strip() == "unreachable"


def test_broken_and_stalling_connections_end_a_run_well_or_by_name(networks):
    federation = networks.federation
    for site in federation.sites:
        networks.weather[site].reset, networks.weather[site].stall = 0.01, 0.03
    name = federation.submit(f"{RUN} rounds=6 seed=2")
    outcome = federation.run(name) / "outcome.json"
    federation.until(outcome.exists, timeout=400)
    for site in federation.sites:
        networks.weather[site].reset = networks.weather[site].stall = 0.0
    ended = json.loads(outcome.read_text())
    assert ended["status"] == "finished" or ended["error"] in NAMES, ended
    assert sum(relay.broken for relay in networks.relays) >= 1
    federation.until(lambda: all_attend(federation), timeout=120)
    name = federation.submit(f"{RUN} rounds=2 seed=4")
    finished(federation, name, 2)


# 132,000 weights: half a megabyte to each site, and as much back, in one piece each.
LARGE = re.sub(r"_s=\d+", "_s=300", f"{RUN} model=layers layers=[linear4000,relu]")  # as it takes
HALF = 250_000


def masked(federation, site):
    """The messages that a site has answered with a masked update."""
    records = read_records(federation.path / site / "audit.jsonl")
    return [r.body["reply_to"] for r in records if r.body.get("stage") == "MASKED"]


def test_what_a_broken_connection_cuts_off_is_sent_again_and_counts_once(networks):
    federation, weather = networks.federation, networks.weather
    federation.until(lambda: all_attend(federation), timeout=120)
    before = {site: len(masked(federation, site)) for site in federation.sites}
    broken = sum(relay.broken for relay in networks.relays)
    for site, way, times in (
        ("site-1", "in", 3), ("site-2", "out", 3), ("site-3", "in", 1), ("site-3", "out", 1),
        (BEHIND, "in", 2), (BEHIND, "out", 2),
    ):  # fmt: skip
        weather[site].break_after[way] += [HALF] * times
    name = federation.submit(f"{LARGE} rounds=2 seed=5")
    finished(federation, name, 2)
    assert not any(sizes for w in weather.values() for sizes in w.break_after.values())
    assert sum(relay.broken for relay in networks.relays) == broken + 12
    assert [row["failed"] for row in federation.rounds(name)] == [{}, {}]
    for site in federation.sites:
        answered = masked(federation, site)[before[site] :]
        assert len(answered) == len(set(answered)) == 2


def test_an_answer_outlives_the_agent_that_could_not_send_it(networks):
    federation, weather = networks.federation, networks.weather
    federation.until(lambda: all_attend(federation), timeout=120)
    before = len(masked(federation, "site-2"))
    weather["site-2"].break_after["out"] += [HALF] * 10_000  # nothing large leaves
    name = federation.submit(f"{LARGE} rounds=1 seed=6")
    outbox, broken = federation.path / "site-2" / "outbox", networks.relays[0].broken
    federation.until(
        lambda: len(masked(federation, "site-2")) > before and networks.relays[0].broken > broken
    )
    federation.processes["site-2"].kill()
    federation.processes["site-2"].wait()
    assert outbox.stat().st_size > HALF
    weather["site-2"].break_after["out"].clear()
    federation.start("site", "site-2")
    finished(federation, name, 1)
    assert federation.rounds(name)[0]["failed"] == {}
    assert len(masked(federation, "site-2")) == before + 1
    assert not outbox.exists()


def test_a_site_that_is_cut_off_for_thirty_seconds_comes_back(networks):
    federation = networks.federation
    federation.until(lambda: all_attend(federation), timeout=120)
    name = federation.submit(f"{RUN} rounds=7 privacy.spare_rounds=20 seed=3")
    federation.until(lambda: len(federation.rounds(name)) >= 1, timeout=180)
    networks.weather["site-2"].cut = True
    time.sleep(30)
    without = len(federation.rounds(name))
    networks.weather["site-2"].cut = False
    finished(federation, name, 7)
    rounds = [trained(federation, name, round_) for round_ in range(1, 8)]
    assert any("site-2" not in took_part for took_part in rounds[: without + 1])
    assert "site-2" in rounds[-1]
    assert {"site-1", "site-3", BEHIND} <= set.intersection(*rounds)


def all_attend(federation):
    """Whether each site's newest word is that it has a connection."""
    logs = (federation.log(site) for site in federation.sites)
    return all(log.rfind("Connected") > log.rfind("no connection") for log in logs)
