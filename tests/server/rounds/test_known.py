"""Tests of what the server remembers of sites: the same after a restart, in little memory."""

import tracemalloc

from lepton_common.audit import AuditLog
from lepton_common.chain import ChainRecord
from lepton_common.identity.keys import SigningKey
from lepton_server.rounds.known import KnownSites


def _record(kind, body):
    return ChainRecord(0, kind, body, 0.0, "0" * 64)


def test_the_newest_key_and_ledger_of_each_site_are_known():
    with KnownSites() as known:
        known.read(_record("introduced", {"keys": {"a": "1", "b": "2"}}))
        known.read(_record("collected", {"round": 1, "ledgers": {"a": "x"}, "heads": {"a": "h"}}))
        known.read(_record("collected", {"round": 2, "ledgers": {"a": "y", "c": "z"}}))
        assert known.keys(["a", "b", "c", "d"]) == {"a": "1", "b": "2"}
        assert known.ledgers(["a", "b", "c", "d"]) == {"a": "y", "c": "z"}
        assert known.ledgers([]) == {}
        assert known.config is None


def test_a_restart_knows_what_the_log_says(tmp_path):
    key, path = SigningKey.generate(), tmp_path / "audit.jsonl"
    with KnownSites() as known:
        log = AuditLog(path, key, "server", known.read)
        log.append("run", {"run": "r", "config": "c" * 64})
        log.append("introduced", {"keys": {"a": "1"}, "heads": {}, "failed": []})
        log.append("collected", {"round": 1, "ledgers": {"a": "x"}})
        log.append("run", {"run": "r", "config": "d" * 64})
        assert known.config == "c" * 64
    with KnownSites() as again:
        AuditLog(path, key, "server", again.read)
        assert (again.config, again.keys("a"), again.ledgers("a")) == (
            "c" * 64, {"a": "1"}, {"a": "x"}
        )  # fmt: skip


def test_memory_does_not_grow_with_the_sites():
    with KnownSites() as known:
        tracemalloc.start()
        try:
            for round_ in range(200):
                names = [f"site-{round_ * 100 + index}" for index in range(100)]
                known.read(_record("collected", {"ledgers": dict.fromkeys(names, "f" * 64)}))
            assert tracemalloc.get_traced_memory()[0] < 100_000
        finally:
            tracemalloc.stop()
        assert known.ledgers(["site-0", "site-19999"]).keys() == {"site-0", "site-19999"}
