"""The control service over its socket: roles, names and what it keeps on disk."""

import gc
import json
from datetime import datetime

import grpc
import pytest
from studies import publish

from lepton_common.control import control_pb2 as wire
from lepton_common.control.control_pb2_grpc import ControlStub
from lepton_common.identity.certificates import make_authority
from lepton_common.identity.keys import SigningKey
from lepton_common.identity.roster import Person, read_roster_files
from lepton_common.proposal import make_proposal
from lepton_common.settings_rules import parse_settings
from lepton_common.strict import to_json
from lepton_server.gateway import executor
from lepton_server.gateway.control import Control
from lepton_server.gateway.nodes import KnownNode, write_nodes
from lepton_server.gateway.runs import Submitted
from lepton_server.gateway.serving import serve
from lepton_server.progress import RoundReport
from lepton_server.run_folder import RunFolder, as_plain
from lepton_server.trackers.tracker import Tracker

ROLES = {
    "alice": ["administrator"], "bob": ["lead"], "carol": ["auditor"], "eve": ["lead", "auditor"]
}  # fmt: skip
KEYS = {name: SigningKey.generate() for name in ROLES}


class Coordinator:
    """A control service, and the calls to it."""

    def __init__(self, federation):
        people = [
            Person(name=n, public_key=k.public_hex, authority=make_authority(k, n), roles=ROLES[n])
            for n, k in KEYS.items()
        ]
        federation.publish(federation.next_roster(people=people))
        self.runs, self.audit = federation.runs, federation.audit
        self.control = Control(self.runs, federation.service, federation.published, self.audit)
        socket = federation.folder / "control.sock"
        self.server = serve(socket, Control=self.control)
        self.channel = grpc.insecure_channel(f"unix:{socket}")
        self.stub = ControlStub(self.channel)

    def call(self, name, request, who="bob"):
        metadata = [("x-lepton-person", who)] if who else []
        return getattr(self.stub, name)(request, metadata=metadata, timeout=10)


TASK = {"task": "breast_cancer", "model": "logistic", "sites": 2}
COVERS = {"tasks": ["breast_cancer"], "max_epsilon": 10.0}


@pytest.fixture
def coordinator(federation):
    made = Coordinator(federation)
    yield made
    made.channel.close()
    made.server.stop(None).wait()


@pytest.fixture
def text(setting_values):
    return proposed(setting_values(TASK))


def proposed(values, by="bob", study=None):
    federation = {**values["federation"], "name": "hospitals"}
    settings = parse_settings({**values, "federation": federation})
    return make_proposal(KEYS[by], by, study, "hospitals", settings)


def refused(call, code, said):
    with pytest.raises(grpc.RpcError) as error:
        call()
    assert error.value.code() is code
    assert said in error.value.details()


@pytest.mark.parametrize(
    "tracker",
    [
        {"name": "mlflow", "uri": "http://collector.example"},
        {"name": "tensorboard", "folder": "/etc"},
    ],
)
def test_a_tracker_that_names_a_place_is_refused(coordinator, setting_values, tracker):
    changes = {f"tracker.{name}": value for name, value in tracker.items()}
    text = proposed(setting_values({**TASK, **changes}))
    refused(
        lambda: coordinator.call("Submit", wire.SubmitRequest(proposal=text)),
        grpc.StatusCode.INVALID_ARGUMENT,
        "drop tracker.folder and tracker.uri",
    )
    assert coordinator.runs.names() == []


def test_the_executor_tracks_into_the_runs_folder_only(coordinator, setting_values, caplog):
    def trackers(**tracker):
        changes = {f"tracker.{name}": value for name, value in tracker.items()}
        values = setting_values({**TASK, **changes})
        submitted = Submitted(by="bob", settings=to_json(parse_settings(values)))
        return executor._trackers(submitted, RunFolder(coordinator.runs.path / "run"))

    assert trackers(name="none") == []
    (tracker,) = trackers(name="tensorboard")
    assert isinstance(tracker, Tracker)
    # What got past the control service, as before an update, is not tracked, and the log says so.
    assert trackers(name="mlflow", uri="http://collector.example") == []
    assert "is not tracked" in caplog.text


def test_a_run_is_on_disk_once_it_is_submitted(coordinator, text):
    run = coordinator.call("Submit", wire.SubmitRequest(proposal=text))
    assert (run.status, run.rounds, run.by) == ("running", 0, "bob")
    assert coordinator.runs.unfinished() == [run.name]
    kept = parse_settings(json.loads(coordinator.runs.submitted(run.name).settings))
    assert kept.federation.name == "hospitals"
    # The roster of a run is the one that held when it began.
    folder = coordinator.runs.folder(run.name)
    assert read_roster_files(folder.roster, folder.roster_root).version == 2
    assert coordinator.runs.folder(run.name).proposal.read_text() == text
    again = coordinator.call("Submit", wire.SubmitRequest(proposal=text))
    assert again.name != run.name
    names = [r.name for r in coordinator.call("List", wire.ListRequest()).runs]
    assert set(names) == {run.name, again.name}


@pytest.mark.parametrize("who", ["alice", "carol", "mallory", "", "site-1"])
def test_only_a_lead_submits(coordinator, text, who):
    request = wire.SubmitRequest(proposal=text)
    refused(
        lambda: coordinator.call("Submit", request, who),
        grpc.StatusCode.PERMISSION_DENIED,
        "NotAllowed",
    )
    assert coordinator.runs.names() == []
    last = coordinator.audit.records[-1]
    assert (last.kind, last.body["allowed"], last.body["by"]) == ("call", False, who)


def test_whoever_has_a_role_watches_and_a_stranger_does_not(coordinator, text):
    run = coordinator.call("Submit", wire.SubmitRequest(proposal=text))
    coordinator.runs.end(run.name, "finished")
    for who in ROLES:
        (state,) = coordinator.call("Watch", wire.RunName(name=run.name), who)
        assert state.status == "finished"
    refused(
        lambda: list(coordinator.call("Watch", wire.RunName(name=run.name), "mallory")),
        grpc.StatusCode.PERMISSION_DENIED,
        "NotAllowed",
    )


def test_a_run_is_asked_to_stop(coordinator, text):
    run = coordinator.call("Submit", wire.SubmitRequest(proposal=text))
    coordinator.call("Stop", wire.RunName(name=run.name), "alice")
    assert coordinator.runs.stop_requested(run.name)


STATISTICS = {
    "statistics.asked": True, "privacy.mode": "distributed", "privacy.epsilon": 0.5,
    "privacy.delta": 1e-5, "privacy.sample_rate": 1.0, "privacy.spare_rounds": 0,
    "train.local_steps": 1, "train.local_epochs": None, "rounds": 1,
    "federation.weights": "public_size", "secagg.mode": "sa1", "secagg.colluders": 0,
}  # fmt: skip


@pytest.fixture
def submit(coordinator, federation, setting_values):
    """Submits runs, of the study heart, which bob leads, at the sites 1 and 2."""
    publish(federation, leads=["bob"], auditors=["carol"], **COVERS)

    def run(by="bob", study="heart", **changes):
        values = setting_values({**TASK, **changes}, private=True)
        request = wire.SubmitRequest(proposal=proposed(values, by, study))
        return coordinator.call("Submit", request, by).name

    return run


def listed(coordinator):
    found = (coordinator.call("List", wire.ListRequest(), who).runs for who in ROLES)
    return [[run.name for run in runs] for runs in found]


def ask(coordinator, call, run, who):
    answer = coordinator.call(call, wire.RunName(name=run), who)
    return answer if call == "Stop" else list(answer)


def turned_away(coordinator):
    """Who was refused what although their role allows it, as the audit log says."""
    bodies = [r.body for r in coordinator.audit.records if r.kind == "refused"]
    return [(body["by"], body["call"], body["run"], body["error"]) for body in bodies]


@pytest.mark.parametrize(("by", "study"), [("eve", "heart"), ("bob", "hearts")])
def test_nobody_submits_to_a_study_that_they_do_not_lead(coordinator, submit, by, study):
    invalid = grpc.StatusCode.INVALID_ARGUMENT
    refused(lambda: submit(by, study), invalid, f"StudyInvalid: No study {study} that {by} leads")
    assert turned_away(coordinator) == [(by, "Submit", "", "StudyInvalid")]
    assert coordinator.runs.names() == []


def test_nobody_submits_to_a_study_that_ends_while_the_coordinator_runs(submit, monkeypatch):
    class Later(datetime):
        @classmethod
        def now(cls, zone=None):
            return datetime(2099, 1, 2, tzinfo=zone)

    monkeypatch.setattr("lepton_server.gateway.control.datetime", Later)
    refused(submit, grpc.StatusCode.INVALID_ARGUMENT, "StudyInvalid: The study heart ended on")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"task": "digits"}, "the run's task, digits: it names breast_cancer. Ask for"),
        ({"privacy.epsilon": 11.0}, "the run's epsilon, 11.0: it allows 10.0."),
        ({"privacy.delta": 1e-3}, "the run's delta, 0.001: it allows 1e-05."),
        ({"sites": 10}, "SettingsError: The run needs 5 sites at least, and there are 2: lower"),
        ({"privacy.mode": "none", "privacy.epsilon": None, "privacy.delta": None},
         "does not cover a run without privacy."),
    ],
)  # fmt: skip
def test_a_lead_hears_at_once_what_sites_would_refuse(coordinator, submit, changes, said):
    refused(lambda: submit(**changes), grpc.StatusCode.INVALID_ARGUMENT, said)
    assert coordinator.runs.names() == []


def test_only_a_study_s_people_and_administrators_know_of_its_runs(coordinator, federation, submit):
    run = submit()
    coordinator.runs.end(run, "finished")
    assert listed(coordinator) == [[run], [run], [run], []]
    for call in ("Watch", "Stop", "Fetch"):
        missing = f"RunNotFound: There is no run '{run}'"
        refused(lambda call=call: ask(coordinator, call, run, "eve"),
                grpc.StatusCode.NOT_FOUND, missing)  # fmt: skip
    noted = [("eve", call, run, "RunNotFound") for call in ("Watch", "Stop", "Fetch")]
    assert turned_away(coordinator) == noted
    # Who they are is what the newest version says, also once the study is over.
    publish(federation, version=2, leads=["eve"])
    assert listed(coordinator) == [[run], [], [], [run]]
    publish(federation, version=3, leads=["eve"], until="2020-01-01")
    assert listed(coordinator) == [[run], [], [], [run]]
    # And nobody but administrators where that cannot be told.
    (federation.folder / "studies" / "heart.json").unlink()
    federation.published.look()
    assert listed(coordinator) == [[run], [], [], []]


def test_whoever_left_the_roster_knows_of_no_run(coordinator, submit):
    circles = coordinator.control._circles
    for study in (None, "heart"):
        assert not circles.knows(None, submit(study=study))


def test_a_study_s_auditor_neither_stops_nor_fetches_whatever_they_lead(
    coordinator, federation, submit
):
    publish(federation, version=2, leads=["bob"], auditors=["eve"], **COVERS)
    run = submit()
    for call in ("Stop", "Fetch"):
        refused(lambda call=call: ask(coordinator, call, run, "eve"),
                grpc.StatusCode.PERMISSION_DENIED, "NotAllowed")  # fmt: skip
    noted = [("eve", call, run, "NotAllowed") for call in ("Stop", "Fetch")]
    assert turned_away(coordinator) == noted
    assert not coordinator.runs.stop_requested(run)
    ask(coordinator, "Stop", run, "alice")
    assert coordinator.runs.stop_requested(run)


def test_a_run_that_has_ended_is_not_stopped(coordinator, text):
    run = coordinator.call("Submit", wire.SubmitRequest(proposal=text))
    coordinator.runs.end(run.name, "finished")
    assert ask(coordinator, "Stop", run.name, "alice").status == "finished"
    assert not coordinator.runs.stop_requested(run.name)


def test_a_study_s_run_is_evaluated_within_it_only(coordinator, submit):
    run, free = submit(), submit(study=None)
    evaluates = lambda of, **who: submit(**who, **STATISTICS, **{"statistics.evaluates": of})  # noqa: E731
    for who in ({"by": "eve", "study": None}, {"study": None}):
        refused(lambda who=who: evaluates(run, **who), grpc.StatusCode.INVALID_ARGUMENT,
                f"RunNotFound: There is no run '{run}'")  # fmt: skip
    refused(lambda: evaluates("none"), grpc.StatusCode.INVALID_ARGUMENT, "RunNotFound")
    assert coordinator.runs.names() == sorted([run, free])
    evaluates(run)
    evaluates(free, by="eve", study=None)
    assert len(coordinator.runs.names()) == 4


def test_the_executor_asks_only_a_study_s_sites(coordinator, federation, submit):
    sites = [f"site-{number}" for number in (1, 2, 3)]
    known = [KnownNode(node=i, name=n, public_key="0" * 64) for i, n in enumerate(sites)]
    (federation.folder / "gateway").mkdir(exist_ok=True)
    write_nodes(federation.folder, known)

    def asked(run):
        found = executor.sites_of(coordinator.runs, run, federation.folder)
        return [node.name for node in found.values()]

    run = submit()
    assert asked(run) == sites[:2]
    assert asked(submit(study=None)) == sites
    assert asked("none") == []
    coordinator.runs.folder(run).proposal.write_text("{}")
    assert asked(run) == []


def test_a_damaged_run_hides_no_other(coordinator, text):
    kept, lost = (coordinator.call("Submit", wire.SubmitRequest(proposal=text)) for _ in "ab")
    (coordinator.runs.path / lost.name / "submitted.json").write_text("{}")
    assert listed(coordinator)[0] == [kept.name]
    refused(lambda: ask(coordinator, "Watch", lost.name, "bob"),
            grpc.StatusCode.NOT_FOUND, "CheckpointUnreadable")  # fmt: skip


@pytest.mark.parametrize("text", ["", "{}", "[1", '{"task": "nothing"}', "null"])
def test_what_is_no_proposal_is_refused(coordinator, text):
    refused(
        lambda: coordinator.call("Submit", wire.SubmitRequest(proposal=text)),
        grpc.StatusCode.INVALID_ARGUMENT,
        "ProposalInvalid",
    )
    assert coordinator.runs.names() == []


def test_nobody_submits_what_another_has_signed_or_no_lead(coordinator, setting_values):
    values = setting_values(TASK)
    for by in ("alice", "carol"):
        refused(
            lambda by=by: coordinator.call(
                "Submit", wire.SubmitRequest(proposal=proposed(values, by))
            ),
            grpc.StatusCode.INVALID_ARGUMENT,
            "ProposalInvalid",
        )
    assert coordinator.runs.names() == []


@pytest.mark.parametrize("name", ["", "nothing", "../secret", "a/b", "\0"])
@pytest.mark.parametrize("call", ["Stop", "Watch", "Fetch"])
def test_a_run_that_is_not_there_is_not_found(coordinator, call, name):
    def ask():
        answer = coordinator.call(call, wire.RunName(name=name))
        list(answer) if call != "Stop" else answer

    refused(ask, grpc.StatusCode.NOT_FOUND, "RunNotFound")


def test_an_oversized_request_is_refused(coordinator):
    refused(
        lambda: coordinator.call("Submit", wire.SubmitRequest(proposal=" " * (2 << 20))),
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "",
    )


def test_a_model_is_fetched_in_parts(coordinator, text):
    run = coordinator.call("Submit", wire.SubmitRequest(proposal=text))
    data = bytes(range(256)) * 12_000
    coordinator.runs.folder(run.name).final_model.write_bytes(data)
    parts = coordinator.call("Fetch", wire.RunName(name=run.name))
    assert b"".join(part.data for part in parts) == data


def test_of_a_run_that_asks_for_statistics_the_answer_is_what_is_fetched(
    coordinator, setting_values
):
    values = setting_values({**TASK, **STATISTICS})
    run = coordinator.call("Submit", wire.SubmitRequest(proposal=proposed(values)))
    assert run.name.endswith("-breast_cancer-statistics")
    fetched = lambda: list(coordinator.call("Fetch", wire.RunName(name=run.name)))  # noqa: E731
    refused(fetched, grpc.StatusCode.NOT_FOUND, f"RunNotFound: No round of {run.name} is finished")
    coordinator.runs.folder(run.name).statistics.write_text('{"people": 1}')
    assert fetched()[0].data == b'{"people": 1}'
    # By this the executor tells a run that has ended from one that was stopped.
    state = coordinator.runs.state(run.name)
    assert (state.rounds, state.of_rounds) == (1, 1)


def test_a_run_says_which_sites_gave_its_last_round_nothing(coordinator, text):
    run = coordinator.call("Submit", wire.SubmitRequest(proposal=text))
    last = RoundReport(1, 5, {"accuracy": 0.9}, {"site-2": "QuietHours"}, {}, 0.1)
    coordinator.runs.folder(run.name).write_metrics([as_plain(last)])
    coordinator.runs.end(run.name, "finished")
    (state,) = coordinator.call("Watch", wire.RunName(name=run.name))
    assert (state.rounds, dict(state.missing)) == (1, {"site-2": "QuietHours"})


def test_a_failed_run_says_why(coordinator, text):
    run = coordinator.call("Submit", wire.SubmitRequest(proposal=text))
    coordinator.runs.end(run.name, "failed", ValueError("why"))
    (state,) = coordinator.call("Watch", wire.RunName(name=run.name))
    assert (state.status, state.error) == ("failed", "ValueError: why")
    assert coordinator.runs.unfinished() == []


@pytest.mark.parametrize(
    ("call", "request_"), [("List", wire.ListRequest()), ("Watch", wire.RunName(name="r"))]
)
def test_a_failure_s_text_stays_at_the_coordinator(
    coordinator, monkeypatch, caplog, call, request_
):
    def full(*_):
        raise OSError(28, "No space left on device", "/srv/secret/path")

    monkeypatch.setattr(coordinator.runs, "names", lambda: ["r"])
    monkeypatch.setattr(coordinator.runs, "study_of", full)
    with pytest.raises(grpc.RpcError) as error:
        list(coordinator.call(call, request_))
    assert error.value.code() is grpc.StatusCode.INTERNAL
    assert error.value.details() == "OSError"
    assert "/srv/secret/path" in caplog.text


@pytest.mark.parametrize("name", ["List", "Watch"])
def test_a_request_that_cannot_be_read_leaves_no_trace(coordinator, caplog, name):
    path, channel = f"/lepton.control.v1.Control/{name}", coordinator.channel
    streaming = channel.unary_stream(path)
    call = (
        (lambda *a, **k: list(streaming(*a, **k))) if name == "Watch" else channel.unary_unary(path)
    )

    def kept():
        gc.collect()
        return sum(type(found).__name__ == "_RPCState" for found in gc.get_objects())

    before = kept()
    for _ in range(20):
        with pytest.raises(grpc.RpcError) as error:
            call(b"\xff" * 40, timeout=10)
    assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert error.value.details() == "MalformedMessage: The request cannot be read."
    assert caplog.text == ""
    # What gRPC itself cannot read, it keeps a state of for ever.
    assert kept() < before + 10
