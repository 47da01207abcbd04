"""The doctor names each fault, and lets no fault pass; its network is a TLS server in the test."""

import json
import ssl
import threading
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace

import pytest
from desk_folder import NAMES, Folder, folder  # noqa: F401

from lepton_cli.desk.examined import Examined
from lepton_client.site import Site
from lepton_client.trainer import Described
from lepton_client.trainer_process import RemoteError
from lepton_common.errors import DataMissing, IsolationUnavailable, SettingsError
from lepton_common.identity.certificates import issue_leaf, make_authority
from lepton_common.identity.keys import SigningKey
from lepton_common.identity.roster import Coordinator, Member

FOUND = Described(records=17, units=17, unit="row", input_shape=[4], classes=3, devices=[])
SERVER = SigningKey.generate()
PROCESS = {"isolation": "process", "launcher": ["srun"], "threads": 1, "memory_gib": None,
           "gpus": None}  # fmt: skip


def enrolled(folder, port, server=SERVER, **changes):  # noqa: F811
    """Puts certificates and the coordinator's port into the roster."""
    own = SigningKey.load(folder.path / "signing.pem")
    folder.enrol(
        coordinator=Coordinator(
            name="coordinator", public_key=server.public_hex, hosts=["localhost"], port=port,
            authority=make_authority(server, "coordinator"),
        ),
        members=[
            Member(name=name, public_key=key.public_hex, authority=make_authority(key, name))
            for name, key in zip(NAMES, [own, *folder.keys], strict=True)
        ],
        **changes,
    )  # fmt: skip


@pytest.fixture
def well(folder, monkeypatch):  # noqa: F811
    """A site at which nothing is at fault; its trainer is not started."""
    folder.path.chmod(0o700)
    folder.change(trainer=PROCESS)
    enrolled(folder, 1)
    monkeypatch.setattr(Examined, "described", FOUND)
    return folder


def findings(lepton, *words):
    ended = lepton("site", "doctor", "site-1", "--json", *words)
    found = {finding["check"]: finding for finding in json.loads(ended.out)}
    faults = [name for name, finding in found.items() if finding["level"] == "fault"]
    assert (ended.code == 0) == (not faults)
    return found, faults


def test_a_well_site_has_no_fault(lepton, well):
    before = well.bytes()
    found, faults = findings(lepton, "--offline")
    assert faults == []
    assert well.bytes() == before
    levels = {name: finding["level"] for name, finding in found.items()}
    assert levels.pop("agent") == "warning"
    assert set(levels.values()) == {"ok"}
    assert "TLS" not in found


def _break_key(folder):  # noqa: F811
    SigningKey.generate().save(folder.path / "signing.pem")


def _seal_key(folder):  # noqa: F811
    path = folder.path / "signing.pem"
    SigningKey.load(path).save(path, "secret")


def _cut_log(folder):  # noqa: F811
    Site(folder.path)
    path = folder.path / "audit.jsonl"
    path.write_text(path.read_text().replace("site-1", "site-2"))


def _other_unit(folder):  # noqa: F811
    path = folder.path / "site.yaml"
    path.write_text(path.read_text().replace("unit: row", "unit: patient"))


@pytest.mark.parametrize(
    ("hurt", "check"),
    [
        (lambda f: f.change(policy={"min_cohort": 0}), "site.yaml"),
        (lambda f: f.change(trainer=None), "site.yaml"),
        (lambda f: (f.path / "signing.pem").chmod(0o640), "permissions"),
        (_break_key, "roster"),
        (_seal_key, "key"),
        (_cut_log, "audit log"),
        (lambda f: (f.path / "ledger.db").write_text("no ledger"), "ledger"),
        (lambda f: (f.path / "roster.root").write_text("0" * 64), "roster"),
        (lambda f: enrolled(f, 1, until="2026-01-01"), "roster"),
        (lambda f: f.enrol(), "certificate"),
        (_other_unit, "data"),
    ],
)
def test_each_fault_is_named(lepton, well, hurt, check):
    hurt(well)
    found, faults = findings(lepton, "--offline")
    assert check in faults
    assert found[check]["said"]


def test_a_site_file_that_is_no_yaml_says_where(lepton, well):
    path = well.path / "site.yaml"
    path.write_text("name: site-1\nlaunch:\n  quiet_hours: [], later\n")
    found, faults = findings(lepton, "--offline")
    assert faults == ["site.yaml"]
    assert "line 3, column 18" in found["site.yaml"]["said"]


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        ({"allow_without_dp": True}, "without differential privacy"),
        ({"allow_without_secagg": True}, "single updates"),
        ({"max_epsilon": 50.0}, "next to nobody"),
        ({"min_cohort": 2}, "the others know"),
    ],
)
def test_a_lax_policy_is_a_warning(lepton, well, policy, said):
    well.change(policy=policy)
    finding = findings(lepton, "--offline")[0]["site.yaml"]
    assert finding["level"] == "warning"
    assert said in finding["said"]


@pytest.mark.parametrize(
    ("error", "faults"), [(DataMissing, ["data"]), (IsolationUnavailable, ["trainer"])]
)
def test_a_trainer_that_fails_is_told_from_data_that_is_gone(
    lepton, well, monkeypatch, error, faults
):
    def fail(_):
        raise error("It is not there.")

    monkeypatch.setattr(Examined, "described", property(fail))
    assert findings(lepton, "--offline")[1] == faults


@pytest.mark.parametrize("error", [SettingsError, RuntimeError])
def test_what_the_trainer_says_is_told_here_where_no_agent_logs_it(
    lepton, folder, monkeypatch, error  # noqa: F811
):  # fmt: skip
    @contextmanager
    def trainer(_):
        yield SimpleNamespace(describe=fail)

    def fail():
        trace = (
            f"Traceback:\n  here\n{error.__module__}.{error.__name__}: Unknown way to prepare.\n"
        )
        raise error("See errors.log.") from RemoteError(trace)

    folder.path.chmod(0o700)
    folder.change(trainer=PROCESS)
    monkeypatch.setattr("lepton_cli.desk.examined.trainer_of", trainer)
    found = findings(lepton, "--offline")[0]["trainer"]
    assert found["level"] == "fault"
    assert found["said"].endswith(f"{error.__name__}: Unknown way to prepare.")
    assert "lepton_common" not in found["said"]


class Port(threading.Thread):
    """A coordinator's port: mutual TLS, and an answer to any request."""

    def __init__(self, folder, status=404, ahead=timedelta()):  # noqa: F811
        super().__init__(daemon=True)

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response_only(status)
                self.send_header("Date", format_datetime(datetime.now(UTC) + ahead, usegmt=True))
                self.end_headers()

            def log_message(self, *_):
                pass

        self.server = HTTPServer(("localhost", 0), Handler)
        self.port = self.server.server_port
        leaf = issue_leaf(SERVER, "coordinator", ["localhost"])
        path = folder.path.parent / "server.pem"
        path.write_bytes(leaf.certificate + leaf.private_key)
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(path)
        own = SigningKey.load(folder.path / "signing.pem")
        tls.load_verify_locations(cadata=make_authority(own, "site-1"))
        tls.verify_mode = ssl.CERT_REQUIRED
        self.server.socket = tls.wrap_socket(self.server.socket, server_side=True)

    def run(self):
        self.server.serve_forever(0.01)

    def stop(self):
        self.server.shutdown()
        self.server.server_close()
        self.join()


@pytest.fixture
def port(well, monkeypatch):
    """Returns a starter of a coordinator's port, which the roster names."""
    for name in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    started = []

    def start(**changes):
        started.append(Port(well, **changes))
        started[-1].start()
        enrolled(well, started[-1].port)
        return started[-1]

    yield start
    for each in started:
        each.stop()


def test_the_way_to_a_coordinator_that_answers_is_well(lepton, port):
    port()
    found, faults = findings(lepton)
    assert faults == []
    assert [found[name]["level"] for name in ("name", "connection", "TLS", "clock")] == ["ok"] * 4


@pytest.mark.parametrize(
    ("changes", "fault"), [({"status": 400}, "TLS"), ({"ahead": timedelta(hours=1)}, "clock")]
)
def test_what_the_coordinator_answers_is_read(lepton, port, changes, fault):
    port(**changes)
    assert findings(lepton)[1] == [fault]


def test_another_key_at_the_port_is_not_the_coordinator(lepton, port, well):
    enrolled(well, port().port, server=SigningKey.generate())
    found, faults = findings(lepton)
    assert faults == ["TLS"]
    assert found["clock"]["level"] == "skipped"


def test_a_closed_port_and_a_name_without_address_are_told_apart(lepton, port, well, monkeypatch):
    closed = port()
    monkeypatch.setenv("https_proxy", "http://nowhere.invalid:3128")
    monkeypatch.setenv("no_proxy", "")
    found, faults = findings(lepton)
    assert faults == ["name"], "a proxy that has no address is where the way ends"
    assert "nowhere.invalid" in found["name"]["said"]
    monkeypatch.delenv("https_proxy")
    closed.server.socket.close()
    assert findings(lepton)[1] == ["connection"]
