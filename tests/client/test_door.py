"""The door lets out what is listed, protected and charged for, and nothing else."""

from dataclasses import replace

import numpy as np
import pytest
from toy_site import PERMISSIVE, PRIVACY, request, train_message

from lepton_client import consent
from lepton_client.door import Outbound
from lepton_common.errors import DoorRefused
from lepton_common.privacy.accounting import GaussianEvent
from lepton_common.privacy.provenance import (
    PROTOCOL,
    PUBLIC,
    UNPROTECTED,
    Protection,
    Provenance,
    protected_by_dp,
)

UPDATE = np.arange(4, dtype=np.float32)
SECAGG = Provenance(Protection.SECAGG, spec="ab")
ABOUT = {"run": "run-1", "round": 1}


def charged(site):
    asked = request(privacy=PRIVACY)
    plan = consent.check(asked, site.file)
    return site.ledger.reserve(plan, asked, site.file.policy)


def kinds(site):
    return [record.kind for record in site.audit.records]


@pytest.mark.parametrize(
    "item",
    [
        Outbound("gradient", UPDATE, UNPROTECTED),
        Outbound("update", [1.0, 2.0], UNPROTECTED),
        Outbound("update", UPDATE.astype(np.float64), UNPROTECTED),
        Outbound("update", UPDATE.reshape(2, 2), UNPROTECTED),
        Outbound("update", UPDATE, PUBLIC),
        Outbound("update", UPDATE, PROTOCOL),
        Outbound("loss", 0.5, PUBLIC),
        Outbound("loss", 1, UNPROTECTED),
        Outbound("receipt", "text", PROTOCOL),
        Outbound("site", "text", PUBLIC),
        Outbound("update", UPDATE, protected_by_dp(GaussianEvent(1.0, 1.0, 1))),
    ],
    ids=lambda item: f"{item.name}-{type(item.value).__name__}-{item.provenance.protection.value}",
)
def test_what_is_not_listed_with_its_type_and_protection_stays(make_site, item):
    site = make_site()
    with pytest.raises(DoorRefused):
        site.door.release(train_message(), [item], ABOUT)
    assert kinds(site) == ["open"]


@pytest.mark.parametrize("provenance", [UNPROTECTED, SECAGG])
@pytest.mark.parametrize("name", ["update", "loss"])
def test_with_dp_on_only_the_charged_event_protects_and_a_sum_is_not_enough(
    make_site, name, provenance
):
    site = make_site()
    charge = charged(site)
    value = UPDATE if name == "update" else 0.5
    with pytest.raises(DoorRefused, match=r"needs the event charged for it|may not leave as"):
        site.door.release(train_message(), [Outbound(name, value, provenance)], ABOUT, charge)
    assert kinds(site) == ["open"]
    assert site.ledger.steps("run-1") == PRIVACY.steps_per_round


def test_an_event_other_than_the_charged_one_protects_nothing(make_site):
    site = make_site()
    charge = charged(site)
    smaller = replace(charge.event, steps=charge.event.steps + 1)
    item = Outbound("update", UPDATE, protected_by_dp(smaller))
    with pytest.raises(DoorRefused):
        site.door.release(train_message(), [item], ABOUT, charge)


def test_one_charge_covers_one_release_also_after_a_restart(make_site):
    site = make_site()
    charge = charged(site)
    item = Outbound("update", UPDATE, protected_by_dp(charge.event))
    site.door.release(train_message(), [item], ABOUT, charge)
    for again in (site, make_site()):
        with pytest.raises(DoorRefused, match="used up"):
            again.door.release(train_message(), [item], ABOUT, charge)


def test_a_charge_from_elsewhere_is_worth_nothing(make_site):
    charge = charged(make_site(name="site-2"))
    item = Outbound("update", UPDATE, protected_by_dp(charge.event))
    with pytest.raises(DoorRefused):
        make_site().door.release(train_message(), [item], ABOUT, charge)


def test_unprotected_needs_the_sites_policy(make_site):
    site = make_site(replace(PERMISSIVE, allow_without_secagg=False))
    with pytest.raises(DoorRefused, match="policy"):
        site.door.release(train_message(), [Outbound("update", UPDATE, UNPROTECTED)], ABOUT)


def test_a_release_is_logged_with_digest_size_and_provenance_before_it_exists(make_site):
    site = make_site()
    charge = charged(site)
    item = Outbound("update", UPDATE, protected_by_dp(charge.event))
    site.door.release(train_message(), [item], ABOUT, charge)
    body = site.audit.records[-1].body
    assert body["charge"] == charge.id
    assert body["items"][0]["bytes"] == UPDATE.nbytes
    assert body["items"][0]["provenance"] == {"dp": charge.event.record()}


def test_nothing_leaves_when_the_log_cannot_be_written(make_site, monkeypatch):
    site = make_site()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lepton_common.audit.append_synced", full)
    with pytest.raises(OSError, match="No space"):
        site.door.release(train_message(), [Outbound("update", UPDATE, UNPROTECTED)], ABOUT)
    refusal = site.door.refuse(train_message(), ValueError("secret 42"))
    assert refusal.error.reason == "OSError"
    monkeypatch.undo()
    site.door.release(train_message(), [Outbound("update", UPDATE, UNPROTECTED)], ABOUT)
    assert kinds(make_site()) == ["open", "release"]


def test_a_refusal_carries_the_errors_name_and_not_its_text(make_site):
    site = make_site()
    reply = site.door.refuse(train_message(), ValueError("patient 42"))
    assert reply.error.reason == "ValueError"
    assert not reply.has_content()
    assert "patient" not in (site.folder / "audit.jsonl").read_text()
    assert kinds(site) == ["open", "refusal"]
