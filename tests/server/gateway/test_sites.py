"""The sites' half of the control service over its socket, with the agents' own attendance."""

import threading
from dataclasses import replace

import grpc
import pytest
from attending import connect_as
from studies import heart, publish, signed
from toy_site import PARTNER

from lepton_client.witnessing import Witnessing
from lepton_common.control import control_pb2 as wire
from lepton_common.control.control_pb2_grpc import SitesStub
from lepton_common.errors import RosterInvalid
from lepton_common.identity.certificates import make_authority
from lepton_common.identity.keys import SigningKey
from lepton_common.identity.roster import Member, Person, sign_roster
from lepton_common.proposal import make_proposal
from lepton_common.settings_rules import parse_settings
from lepton_server.gateway.executor import waker
from lepton_server.gateway.sites import Mail, Mailbox


def waits(attendance):
    """Whether nothing wakes an attendance for a while."""
    asked = []

    def stopped():
        asked.append(1)
        return len(asked) > 2

    attendance.wait(stopped)
    return len(asked) > 2


def test_the_executor_wakes_the_sites_that_it_asked(federation):
    one, two = federation.attend("site-1"), federation.attend("site-2")
    assert federation.service.attending() == ["site-1", "site-2"]
    with grpc.insecure_channel(f"unix:{federation.socket}") as channel:
        waker(channel)(["site-1"])
    assert not waits(one)
    assert waits(two)


def test_the_executor_gives_signs_of_life_now_and_again(federation):
    assert federation.executor.silent_s() is None
    with grpc.insecure_channel(f"unix:{federation.socket}") as channel:
        wake = waker(channel)
        wake([])
        assert federation.executor.silent_s() < 10
        federation.executor._at -= 100
        wake([])
    assert federation.executor.silent_s() >= 100


def test_an_executor_without_a_control_service_goes_on(federation):
    federation.end()
    with grpc.insecure_channel(f"unix:{federation.socket}") as channel:
        waker(channel)(["site-1"])


def test_whoever_attends_is_told_what_was_stopped(with_lead, setting_values, until):
    settings, key = parse_settings(setting_values({})), SigningKey.generate()
    with_lead.published.newest["heart"] = heart(sites=["site-2", "site-3"])

    def stopped(study=None):
        proposal = make_proposal(key, "dora", study, "hospitals", settings)
        name = with_lead.runs.add(settings, proposal, "dora", "", "")
        with_lead.runs.stop(name)
        return name

    before, others = stopped(), stopped("heart")
    told, told_two = [], []
    with_lead.attend(on_stop=told.append)
    with_lead.attend("site-2", told_two.append)
    assert (told, told_two) == ([before], [before, others])
    # Nor does a site that is there already hear of another study's run.
    now = [stopped("heart"), stopped()]
    for name in now:
        with_lead.service.stop(name)
    until(lambda: told_two == [before, others, *now])
    until(lambda: told == [before, now[1]])


def test_after_a_restart_a_site_attends_again_and_looks_for_work(federation, until):
    one = federation.attend()
    federation.end()
    until(lambda: not one._attending)
    federation.begin()
    assert one._work.wait(10)  # looks once it attends again
    one.looking()
    federation.service.wake(["site-1"])
    assert not waits(one)


def test_without_a_coordinator_nobody_begins(federation):
    federation.end()
    with pytest.raises(OSError, match="does not answer"):
        federation.attend()


@pytest.mark.parametrize("name", ["site-3", "", "dora"])
def test_only_sites_of_the_roster_attend(federation, name):
    with connect_as(name, federation.socket)() as channel, pytest.raises(grpc.RpcError) as error:
        next(SitesStub(channel).Attend(wire.Attendance()))
    assert error.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert federation.service.attending() == []


def test_a_site_holds_one_stream_however_often_it_asks(federation, until):
    with connect_as("site-1", federation.socket)() as channel:
        heads = Witnessing(federation.sites["site-1"]).report({})
        held = wire.Attendance(roster=1, heads=heads)
        first = SitesStub(channel).Attend(held)
        assert next(first).WhichOneof("what") == "alive"
        second = SitesStub(channel).Attend(held)
        assert [next(second).WhichOneof("what") for _ in range(2)] == ["witnessed", "alive"]
        assert list(first) == []
        second.cancel()
    until(lambda: federation.service.attending() == [])


def test_a_mailbox_is_bounded_and_tells_each_thing_once():
    box = Mailbox()
    for number in range(200):
        box.put(lambda mail, number=number: mail.add_stop(f"run-{number}"))
    assert list(box.take(0).stops) == [f"run-{number}" for number in range(136, 200)]
    assert box.take(0) == Mail()
    box.close()
    assert box.take(10) is None


def test_a_waiting_mailbox_is_emptied_at_once():
    box, told = Mailbox(), []
    thread = threading.Thread(target=lambda: told.append(box.take(10)))
    thread.start()
    box.put(lambda mail: mail.add_stop("run"))
    thread.join(5)
    assert told == [Mail(stops={"run": None})]


def test_a_newer_roster_reaches_those_who_attend_and_those_who_come(federation, until):
    federation.attend("site-1")
    federation.publish(federation.next_roster(until="2099-01-01"))
    until(lambda: federation.sites["site-1"].roster.version == 2)
    assert federation.sites["site-2"].roster.version == 1
    federation.attend("site-2")
    for site in federation.sites.values():
        assert site.roster.until == "2099-01-01"
        assert (site.folder / "roster.json").read_text() == federation.text


def test_a_site_that_is_no_longer_named_stops_and_says_so(federation, until):
    one, two = federation.attend("site-1"), federation.attend("site-2")
    federation.publish(federation.next_roster(members=federation.roster.members[:1]))
    until(lambda: federation.service.attending() == ["site-1"])
    until(lambda: federation.sites["site-2"].roster.version == 2)
    with pytest.raises(RosterInvalid, match="Version 2 of the roster does not name site-2"):
        until(two.looking)
    one.looking()
    with pytest.raises(RosterInvalid, match="does not name site-2"):
        federation.sites["site-2"].coordinator()


def test_a_new_address_of_the_coordinator_has_the_agent_connect_anew(federation, until):
    one = federation.attend("site-1")
    moved = replace(federation.roster.coordinator, port=2)
    federation.publish(federation.next_roster(coordinator=moved))
    with pytest.raises(OSError, match="another coordinator"):
        until(one.looking)


@pytest.mark.parametrize("fault", ["not signed", "another story", "another authority"])
def test_the_server_takes_no_roster_that_does_not_hold(federation, fault, caplog):
    known = federation.published.text
    if fault == "not signed":
        text = sign_roster(replace(federation.roster, version=2), [], known)
    elif fault == "another story":
        text = sign_roster(replace(federation.roster, until="2098-01-01"), [PARTNER])
    else:
        one, two = federation.roster.members
        text = federation.next_roster(members=[replace(one, authority=two.authority), two])
    federation.publish(text)
    assert federation.published.text == known
    assert federation.published.roster.version == 1
    assert "is not taken over" in caplog.text


@pytest.mark.parametrize("fault", ["not signed", "older", "junk"])
def test_a_site_takes_no_roster_that_does_not_hold(federation, fault):
    site = federation.sites["site-1"]
    one = federation.attend("site-1")
    if fault == "older":
        old = federation.text
        site.take_roster(federation.next_roster())
    known = (site.folder / "roster.json").read_text()
    unsigned = sign_roster(replace(federation.roster, version=2), [], federation.text)
    text = {"not signed": unsigned, "older": fault == "older" and old, "junk": "{}"}[fault]
    one._take(wire.Notice(roster=text))
    one.looking()
    assert (site.folder / "roster.json").read_text() == known


@pytest.fixture
def with_lead(federation):
    """The federation with a lead, whom studies need."""
    key = SigningKey.generate()
    dora = Person(
        name="dora",
        public_key=key.public_hex,
        authority=make_authority(key, "dora"),
        roles=["lead"],
    )
    members = [*federation.roster.members, replace(federation.roster.members[0], name="site-3")]
    third = SigningKey.generate()
    members[2] = Member(
        name="site-3", public_key=third.public_hex, authority=make_authority(third, "site-3")
    )
    federation.publish(federation.next_roster(people=[dora], members=members))
    return federation


def test_studies_reach_the_sites_that_they_name_and_those_that_they_drop(with_lead, until):
    one, two = (with_lead.sites[name] for name in ("site-1", "site-2"))
    with_lead.attend("site-1")
    until(lambda: one.roster.version == 2)
    publish(with_lead)
    until(lambda: [known.version for known in one.studies()] == [1])
    with_lead.attend("site-2")
    assert [known.version for known in two.studies()] == [1]
    publish(with_lead, version=2, sites=["site-1", "site-3"])
    until(lambda: [known.version for known in two.studies()] == [2])
    # One that was never in it hears nothing of it, whatever it says it holds.
    assert len(with_lead.published.studies_for("site-3", {})) == 1
    assert len(with_lead.published.studies_for("site-2", {})) == 1
    assert with_lead.published.studies_for("site-2", {"heart": 2}) == []
    assert with_lead.published.studies_for("site-4", {"heart": 0}) == []


def test_a_site_takes_no_study_that_does_not_hold(with_lead):
    one = with_lead.attend("site-1")
    site = with_lead.sites["site-1"]
    one._take(wire.Notice(study=signed(partners=[])))
    assert site.studies() == []
    site.take_study(signed(version=2))
    for text in (signed(), signed(version=2, leads=["dora", "dora"]), "junk"):
        one._take(wire.Notice(study=text))
        assert [(known.version, known.leads) for known in site.studies()] == [(2, ["dora"])]
