"""What `/health` and `/metrics` say, over HTTP."""

from dataclasses import replace

import httpx
import pytest

from lepton_server.gateway.health import Health, serve_health

WELL = Health(
    parts={"superlink": True, "proxy": True, "executor": True},
    executor_silent_s=1.5,
    free_bytes=5 << 30,
    roster_version=3,
    roster_days_left=20,
    sites={"site-1": True, "site-2": False},
    runs={"finished": 2},
)


@pytest.fixture
def ask():
    """Returns the answer for a health that may change."""
    now = [WELL]
    server = serve_health(0, lambda: now[0])

    def get(path, health=WELL):
        now[0] = health
        return httpx.get(f"http://127.0.0.1:{server.server_port}{path}", trust_env=False)

    yield get
    server.shutdown()
    server.server_close()


def test_a_coordinator_that_is_well_says_so(ask):
    answer = ask("/health")
    assert answer.status_code == 200
    assert answer.json()["ok"]
    assert answer.json()["roster_days_left"] == 20
    lines = ask("/metrics").text.splitlines()
    assert "lepton_healthy 1.0" in lines
    assert 'lepton_site_attending{site="site-2"} 0.0' in lines
    assert 'lepton_runs{status="finished"} 2.0' in lines
    assert ask("/").status_code == 404


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"parts": {**WELL.parts, "proxy": False}}, "The proxy is not up."),
        ({"executor_silent_s": None}, "The executor gives no sign of life."),
        ({"executor_silent_s": 301.0}, "The executor gives no sign of life."),
        ({"free_bytes": 9 << 20}, "The disk has 9 MiB left."),
        ({"roster_days_left": -1}, "The roster is past its last day."),
    ],
)
def test_whatever_is_wrong_is_said(ask, change, said):
    ill = replace(WELL, **change)
    answer = ask("/health", ill)
    assert answer.status_code == 503
    assert answer.json()["faults"] == [said]
    assert "lepton_healthy 0.0" in ask("/metrics", ill).text.splitlines()


def test_a_roster_without_an_end_has_no_days_left(ask):
    endless = replace(WELL, roster_days_left=None)
    assert ask("/health", endless).json()["ok"]
    assert "roster_days_left" not in ask("/metrics", endless).text
