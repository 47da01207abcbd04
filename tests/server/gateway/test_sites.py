"""The sites' half of the control service over its socket, with the agents' own attendance."""

import threading
import time

import grpc
import pytest
from attending import connect_as

from lepton_client.attendance import Attendance
from lepton_common.control import control_pb2 as wire
from lepton_common.control.control_pb2_grpc import SitesStub
from lepton_common.identity.roster import Member, Roster
from lepton_common.identity.signed import Partners
from lepton_common.settings import parse_settings
from lepton_server.gateway.executor import waker
from lepton_server.gateway.runs import Runs
from lepton_server.gateway.serving import serve
from lepton_server.gateway.sites import Inside, Mailbox, Sites

ROSTER = Roster(
    federation="hospitals",
    version=1,
    partners=Partners(keys=["f" * 64], threshold=1),
    members=[Member(name=f"site-{i}", public_key=f"{i}" * 64) for i in (1, 2)],
)


class Coordinator:
    """The service, which may be ended and begun again, and those who attend."""

    def __init__(self, folder):
        self.socket, self.runs = folder / "c.sock", Runs(folder / "runs")
        self.attending = []
        self.begin()

    def begin(self):
        self.sites = Sites(self.runs, ROSTER)
        self.server = serve(self.socket, Sites=self.sites, Inside=Inside(self.sites))

    def end(self):
        self.sites.close()
        self.server.stop(0).wait()

    def attend(self, name="site-1", on_stop=lambda run: None):
        made = Attendance(connect_as(name, self.socket), on_stop)
        self.attending.append(made)
        made.begin(lambda: False)
        made.wait(lambda: False)  # the first look
        made.looking()
        return made

    def close(self):
        for one in self.attending:
            one.__exit__()
        self.end()


@pytest.fixture
def coordinator(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = Coordinator(tmp_path)
    yield made
    made.close()


def until(holds):
    deadline = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def waits(attendance):
    """Whether nothing wakes an attendance for a while."""
    asked = []

    def stopped():
        asked.append(1)
        return len(asked) > 2

    attendance.wait(stopped)
    return len(asked) > 2


def test_the_executor_wakes_the_sites_that_it_asked(coordinator):
    one, two = coordinator.attend("site-1"), coordinator.attend("site-2")
    assert coordinator.sites.attending() == ["site-1", "site-2"]
    with grpc.insecure_channel(f"unix:{coordinator.socket}") as channel:
        waker(channel)(["site-1"])
    assert not waits(one)
    assert waits(two)


def test_an_executor_without_a_control_service_goes_on(coordinator):
    coordinator.end()
    with grpc.insecure_channel(f"unix:{coordinator.socket}") as channel:
        waker(channel)(["site-1"])


def test_whoever_attends_is_told_what_was_stopped_before_and_since(coordinator, setting_values):
    settings = parse_settings(setting_values({}))
    before = coordinator.runs.add(settings, "dora", *roster_files(coordinator))
    coordinator.runs.stop(before)
    told = []
    coordinator.attend(on_stop=told.append)
    assert told == [before]
    coordinator.sites.stop("another")
    until(lambda: told == [before, "another"])


def roster_files(coordinator):
    files = [coordinator.socket.with_name(name) for name in ("roster.json", "roster.root")]
    for file in files:
        file.touch()
    return files


def test_a_restart_of_the_coordinator_is_looked_into_and_work_goes_on(coordinator):
    one = coordinator.attend()
    coordinator.end()
    until(lambda: not one._attending)
    coordinator.begin()
    assert one._work.wait(10)  # looks once it attends again
    one.looking()
    coordinator.sites.wake(["site-1"])
    assert not waits(one)


def test_without_a_coordinator_nobody_begins(coordinator):
    coordinator.end()
    with pytest.raises(OSError, match="does not answer"):
        coordinator.attend()


@pytest.mark.parametrize("name", ["site-3", "", "dora"])
def test_only_sites_of_the_roster_attend(coordinator, name):
    with connect_as(name, coordinator.socket)() as channel, pytest.raises(grpc.RpcError) as error:
        next(SitesStub(channel).Attend(wire.Attendance()))
    assert error.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert coordinator.sites.attending() == []


def test_a_site_holds_one_stream_however_often_it_asks(coordinator):
    with connect_as("site-1", coordinator.socket)() as channel:
        first = SitesStub(channel).Attend(wire.Attendance())
        assert next(first).WhichOneof("what") == "alive"
        second = SitesStub(channel).Attend(wire.Attendance())
        assert next(second).WhichOneof("what") == "alive"
        assert list(first) == []
        second.cancel()
    until(lambda: coordinator.sites.attending() == [])


def test_a_mailbox_is_bounded_and_tells_each_thing_once():
    box = Mailbox()
    for number in range(200):
        box.stop(f"run-{number}")
        box.work()
    told = box.take(0)
    assert [notice.stop for notice in told[:-1]] == [f"run-{n}" for n in range(136, 200)]
    assert told[-1].WhichOneof("what") == "work"
    assert [notice.WhichOneof("what") for notice in box.take(0)] == ["alive"]
    box.close()
    assert box.take(10) is None


def test_a_waiting_mailbox_is_emptied_at_once():
    box, told = Mailbox(), []
    thread = threading.Thread(target=lambda: told.extend(box.take(10)))
    thread.start()
    box.work()
    thread.join(5)
    assert not thread.is_alive()
    assert told[0].WhichOneof("what") == "work"
