"""Heads of logs between sites and coordinator: witnessed, passed on, and missed when cut off."""

import json

import pytest

from lepton_client.site import Site
from lepton_client.witnessing import Witnessing
from lepton_common.audit import read_records
from lepton_common.errors import AuditRolledBack, HeadsInvalid, LedgerRolledBack
from lepton_common.identity.heads import Head, Heads, read_witnessed, sign_heads
from lepton_common.identity.keys import SigningKey

KEPT = "witnessed.json"


def kinds(site):
    return [record.kind for record in site.audit.records]


def restored(federation, name, **old):
    """The site's folder with older copies of some files put back, opened again."""
    folder = federation.sites[name].folder
    for file, data in old.items():
        path = folder / file.replace("_", ".")
        path.unlink(missing_ok=True)
        if data is not None:
            path.write_bytes(data)
    federation.sites[name] = Site(folder)


def test_what_a_site_released_is_witnessed_by_server_and_sites(federation, until):
    one, two = federation.attend("site-1"), federation.attend("site-2")
    site = federation.sites["site-1"]
    # Its log grows by itself once more, when it is told of the other.
    until(lambda: kinds(site).count("witnessed") == 1)
    site.audit.append("release", {"run": "r"})
    one.released()
    roster = federation.roster

    def seen(folder):
        path = folder / KEPT
        kept = json.loads(path.read_text())["statements"] if path.exists() else {}
        heads = read_witnessed(kept["site-1"], roster)[0] if "site-1" in kept else None
        return heads and heads.audit == Head(hash=site.audit.head, length=len(site.audit.records))

    for folder in (federation.folder, federation.sites["site-2"].folder, site.folder):
        until(lambda folder=folder: seen(folder))
    assert kinds(site)[-2:] == ["release", "heads"]
    # The other's log has one an hour, however often there is news.
    until(lambda: kinds(federation.sites["site-2"]).count("witnessed") == 1)
    until(lambda: [r.kind for r in federation.audit.records].count("witnessed") == 2)
    two.looking()


def test_reports_that_follow_each_other_grow_no_log(federation):
    witnessing = Witnessing(federation.sites["site-1"])
    assert witnessing.report({}) == witnessing.report({})
    assert kinds(federation.sites["site-1"]).count("heads") == 1


def test_a_log_that_was_put_back_is_refused_and_says_what_to_do(federation):
    site = federation.sites["site-1"]
    old = (site.folder / "audit.jsonl").read_bytes()
    federation.attend("site-1")
    federation.close()
    restored(federation, "site-1", audit_jsonl=old, witnessed_json=None)
    federation.attending.clear()
    federation.begin()
    with pytest.raises(AuditRolledBack, match="Restore the newest"):
        federation.attend("site-1")


def test_a_ledger_that_was_put_back_is_refused(federation):
    federation.sites["site-1"].ledger._file.append("charge", {})
    witnessing = Witnessing(federation.sites["site-1"])
    statement, new = federation.witness.see("site-1", witnessing.report({}))
    assert new
    federation.sites["site-1"].ledger.records.pop()
    with pytest.raises(LedgerRolledBack, match="older copy"):
        witnessing.take(statement)


def test_peers_remember_what_the_server_has_lost(federation, until):
    site = federation.sites["site-1"]
    old = (site.folder / "audit.jsonl").read_bytes()
    federation.attend("site-1")
    federation.attend("site-2")
    until(lambda: (federation.sites["site-2"].folder / KEPT).exists())
    federation.close()
    federation.attending.clear()
    (federation.folder / KEPT).unlink()
    federation.begin()
    restored(federation, "site-1", audit_jsonl=old, witnessed_json=None)
    federation.attend("site-2")
    with pytest.raises(AuditRolledBack):
        federation.attend("site-1")


def test_another_s_shorter_log_is_put_on_record_and_its_longer_one_kept(federation):
    two = Witnessing(federation.sites["site-2"])
    first = heads_of(federation, "site-1", audit=5)
    federation.witness.see("site-1", first)
    kept = federation.witness.statement("site-1")
    two.take(kept)
    for _ in range(3):
        with pytest.raises(AuditRolledBack):
            federation.witness.see("site-1", heads_of(federation, "site-1", audit=4))
    assert federation.witness.statement("site-1") == kept
    # However often it sends them.
    assert [r.kind for r in federation.audit.records].count("rolled back") == 1
    # Of a server that counter-signs it all the same.
    (federation.folder / KEPT).unlink()
    federation.end()
    federation.begin()
    short, _ = federation.witness.see("site-1", heads_of(federation, "site-1", audit=4))
    two.take(short)
    assert two.held() == [kept]
    assert kinds(federation.sites["site-2"])[-1] == "rolled back"


def heads_of(federation, site, audit=1, key=None, says=None):
    return sign_heads(
        key or federation.sites[site].key,
        Heads(
            federation="hospitals",
            site=says or site,
            audit=Head(hash=f"{audit:064x}", length=audit),
            ledger=Head(hash="0" * 64, length=0),
        ),
    )


@pytest.mark.parametrize("fault", ["another key", "another site", "junk", "too long"])
def test_heads_that_are_not_the_site_s_are_not_witnessed(federation, fault):
    text = {
        "another key": heads_of(federation, "site-1", key=SigningKey.generate()),
        "another site": heads_of(federation, "site-2"),
        "junk": "{}",
        "too long": heads_of(federation, "site-1") + " " * 5000 + "x",
    }[fault]
    with pytest.raises(HeadsInvalid):
        federation.witness.see("site-1", text)
    assert federation.witness.sites() == set()


def test_a_statement_of_another_witness_is_not_kept(federation):
    federation.witness._key = SigningKey.generate()
    two = Witnessing(federation.sites["site-2"])
    with pytest.raises(HeadsInvalid):
        federation.witness.see("site-1", heads_of(federation, "site-1"))
    two.take("junk")
    assert two.held() == []


def test_logs_verify_with_what_was_put_on_record(federation, until):
    federation.attend("site-1")
    federation.attend("site-2")
    until(lambda: "witnessed" in kinds(federation.sites["site-1"]))
    for site in federation.sites.values():
        list(read_records(site.folder / "audit.jsonl", site.key.public_hex))
