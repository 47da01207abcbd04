"""Under a new key nobody is known again, and nobody's budget begins anew."""

from dataclasses import replace

import pytest
from toy_federation import Federation
from toy_site import PERMISSIVE, PRIVACY, context, synthetic, train_message, write_site

from lepton_client.app import app
from lepton_client.site import Site, forget_sites
from lepton_client.succession import carry_over
from lepton_common.datasets.catalog import load_dataset
from lepton_common.errors import (
    AuditError,
    DoorRefused,
    LedgerInvalid,
    LedgerRolledBack,
    UpdateAlreadySpent,
)
from lepton_common.identity.keys import SigningKey
from lepton_common.stages import SecAggStage


def trained(make_site, rounds=2, **changes):
    site = make_site(**changes)
    for round_ in range(1, rounds + 1):
        reply = app(train_message(privacy=PRIVACY, round=round_), context(site.folder))
        assert not reply.has_error()
    forget_sites()
    return Site(site.folder)


def successor(old, folder, policy=PERMISSIVE, rows=40):
    write_site(folder, policy, rows)
    key = SigningKey.load(folder / "signing.pem")
    assert key.public_hex != old.key.public_hex
    assert carry_over(old.folder, old.key.public_hex, folder, key, old.file.name) > 0
    return Site(folder)


def test_everyone_in_the_data_has_spent_what_the_old_key_charged(make_site, tmp_path, toy_catalog):
    old = trained(make_site)
    (old.folder / "signing.pem").unlink()  # lost
    new = successor(old, tmp_path / "new")
    assert events(new) == events(old) != []
    new.ledger.use_data("row", new.trainer.people())
    assert events(new) == events(old)
    # Nobody can tell any more who the old data's people were: others are charged, too.
    toy_catalog["train"] = synthetic(40, seed=9)
    load_dataset.cache_clear()
    forget_sites()
    other = Site(new.folder)
    other.ledger.use_data("row", other.trainer.people())
    assert other.ledger._version != new.ledger._version
    assert events(other) == events(old)


def events(site):
    return [charge.event for charge in site.ledger._counted()]


def test_a_budget_that_was_spent_stays_spent(make_site, tmp_path):
    old = trained(make_site)
    policy = replace(PERMISSIVE, max_epsilon=old.ledger.epsilon(1e-5) * 1.01)
    new = successor(old, tmp_path / "new", policy)
    asked = train_message(privacy=PRIVACY, run="run-2")
    assert app(asked, context(new.folder)).error.reason == "BudgetSpent"


def test_charges_keep_their_day_and_go_over_from_key_to_key(make_site, tmp_path):
    old = trained(make_site)
    newer = successor(old, tmp_path / "new")
    newest = successor(newer, tmp_path / "newest")
    days = [[charge.time for charge in site.ledger._charges] for site in (old, newest)]
    assert days[0] == days[1]
    assert events(newest) == events(old)


def test_what_went_over_covers_no_release(make_site, tmp_path):
    old = trained(make_site)
    new = successor(old, tmp_path / "new")
    with pytest.raises(DoorRefused, match="covers one release only"):
        new.ledger.redeem(new.ledger._charges[0])


def test_a_ledger_that_is_gone_or_was_swapped_is_refused(make_site, tmp_path):
    old = trained(make_site)
    new = successor(old, tmp_path / "new")
    (new.folder / "ledger.db").unlink()
    with pytest.raises(LedgerRolledBack, match="tells of 2 charges"):
        Site(new.folder)
    write_site(tmp_path / "third", PERMISSIVE, 40)
    key = SigningKey.load(tmp_path / "third" / "signing.pem")
    third, name = tmp_path / "third", old.file.name
    with pytest.raises(LedgerRolledBack):
        carry_over(new.folder, new.key.public_hex, third, key, name)
    with pytest.raises(AuditError, match="expected key"):
        carry_over(old.folder, new.key.public_hex, third, key, name)
    (old.folder / "ledger.db").unlink()
    with pytest.raises(LedgerRolledBack):
        carry_over(old.folder, old.key.public_hex, third, key, name)
    assert not (third / "audit.jsonl").exists()


def test_a_folder_with_records_of_its_own_is_left_alone(make_site, tmp_path):
    old = trained(make_site)
    other = trained(make_site, name="site-2")
    with pytest.raises(LedgerInvalid, match="records of its own"):
        carry_over(old.folder, old.key.public_hex, other.folder, other.key, "site-2")


def test_an_update_that_has_left_does_not_leave_again_under_the_new_key(make_site, tmp_path):
    server = Federation(make_site).server()
    server.up_to(SecAggStage.SIGN, [1, 2, 3, 4])
    forget_sites()
    old, again = Site(server.folders[0]), replace(server.spec, round=2)
    with pytest.raises(UpdateAlreadySpent):
        old.spent.check_new(again)
    write_site(tmp_path / "new", PERMISSIVE, 40)
    key = SigningKey.load(tmp_path / "new" / "signing.pem")
    carry_over(old.folder, old.key.public_hex, tmp_path / "new", key, "site-1")
    with pytest.raises(UpdateAlreadySpent):
        Site(tmp_path / "new").spent.check_new(again)
