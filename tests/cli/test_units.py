"""systemd units and log rotation: read by systemd itself where it is, and by rule everywhere."""

import getpass
import shutil
import subprocess

import pytest

from lepton_cli.main import app
from lepton_common import errors


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder with a site's and a coordinator's folder."""
    path = tmp_path_factory.mktemp("units")
    for words in (
        f"site init {path}/my-site --name a --dataset breast_cancer --root {path}",
        f"server init {path}/my-server --host localhost",
        f"server init {path}/high --host localhost --port 8443",
    ):
        app(words.split(), standalone_mode=False)
    return path


def settings(text):
    """Returns the settings of a unit, each with all its values."""
    found = {}
    for line in text.splitlines():
        name, sign, value = line.partition("=")
        if sign and not line.startswith("#"):
            found.setdefault(name, []).append(value)
    return found


@pytest.fixture
def unit(lepton, folders):
    """Returns the settings of the unit that a command prints."""

    def call(kind, folder, *more):
        ended = lepton(kind, "unit", str(folders / folder), "--user", getpass.getuser(), *more)
        assert ended.code == 0, ended.err
        return settings(ended.out)

    return call


def test_the_folder_alone_can_be_written(unit, folders):
    for kind, name in (("site", "my-site"), ("server", "my-server")):
        found = unit(kind, name)
        assert found["ReadWritePaths"] == [str(folders / name)]
        assert found["ExecStart"][0].endswith(f"bin/lepton {kind} start {folders / name}")
        for setting, value in {
            "ProtectSystem": "strict", "ProtectHome": "read-only", "PrivateTmp": "yes",
            "PrivateDevices": "yes", "NoNewPrivileges": "yes", "UMask": "0077",
            "RestrictAddressFamilies": "AF_INET AF_INET6 AF_UNIX AF_NETLINK",
            "Restart": "on-failure", "User": getpass.getuser(), "KillMode": "mixed",
        }.items():  # fmt: skip
            assert found[setting] == [value]


def test_a_site_may_make_namespaces_and_mount_a_fresh_proc_in_them(unit):
    found = unit("site", "my-site")
    covering = {"ProtectKernelTunables", "ProtectKernelLogs", "ProtectHostname", "ProtectProc"}
    assert not found.keys() & {"RestrictNamespaces", "ProcSubset", *covering}
    assert found["SystemCallFilter"] == ["@system-service @mount"]
    assert unit("server", "my-server")["RestrictNamespaces"] == ["yes"]
    assert covering <= unit("server", "my-server").keys()


def test_what_only_a_person_can_mend_is_not_started_again(unit):
    codes = {int(code) for code in unit("site", "my-site")["RestartPreventExitStatus"][0].split()}
    lasting = (errors.SettingsError, errors.DataError, errors.PrivacyError, errors.AuditError)
    assert codes == {kind.exit_code for kind in (*lasting, errors.IdentityError)}
    assert not codes & {0, errors.LeptonError.exit_code, errors.RunError.exit_code}


def test_a_coordinator_gets_what_its_port_and_key_need_and_no_more(unit):
    low, high = unit("server", "my-server"), unit("server", "high")
    assert low["AmbientCapabilities"] == low["CapabilityBoundingSet"] == ["CAP_NET_BIND_SERVICE"]
    assert high["CapabilityBoundingSet"] == [""]
    assert "AmbientCapabilities" not in high


def test_the_passphrase_of_a_sealed_key_is_handed_over_by_systemd(unit):
    for kind, name in (("site", "my-site"), ("server", "high")):
        found = unit(kind, name, "--passphrase-file", "/etc/p")
        assert found["LoadCredential"] == ["passphrase:/etc/p"]
        assert found["ExecStart"][0].endswith("--passphrase-file %d/passphrase")
        assert "LoadCredential" not in unit(kind, name)


def test_devices_of_nvidia_only_if_asked_for(unit, folders):
    found = unit("site", "my-site", "--gpu")
    assert "PrivateDevices" not in found
    assert found["DevicePolicy"] == ["closed"]
    assert all(value.startswith("char-nvidia") for value in found["DeviceAllow"])
    assert found["RequiresMountsFor"] == [str(folders)]


@pytest.mark.parametrize("account", ["x y", "x;y", "Root", "../x", "x\nUser=root", "a" * 33])
def test_an_account_that_systemd_would_misread_is_refused(lepton, folders, account):
    ended = lepton("site", "unit", str(folders / "my-site"), "--user", account)
    assert (ended.code, ended.out) == (2, "")


@pytest.mark.parametrize("name", ["a b", "a%b", "a$b", "a'b", 'a"b', "a\\b", "a;b", "ä", "a\nb"])
def test_a_path_that_systemd_would_misread_is_refused(lepton, folders, name, tmp_path):
    shutil.copytree(folders / "my-site", tmp_path / name)
    ended = lepton("site", "unit", str(tmp_path / name), "--user", "lepton")
    assert (ended.code, ended.out) == (2, "")


def test_another_folder_is_refused(lepton, folders):
    for kind, name, code in (
        ("site", "my-server", 2),
        ("server", "my-site", 8),
        ("server", "no", 8),
    ):
        ended = lepton(kind, "unit", str(folders / name), "--user", "lepton")
        assert (ended.code, ended.out) == (code, "")


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
@pytest.mark.parametrize(
    "words", [["site", "my-site"], ["site", "my-site", "--gpu", "--passphrase-file", "/etc/p"],
              ["server", "my-server"], ["server", "high", "--passphrase-file", "/etc/p"]],
)  # fmt: skip
def test_systemd_takes_it(lepton, folders, tmp_path, words):
    kind, name, *more = words
    text = lepton(kind, "unit", str(folders / name), "--user", getpass.getuser(), *more).out
    path = tmp_path / "lepton.service"

    def verify(text):
        path.write_text(text)
        command = ["systemd-analyze", "verify", "--man=no", str(path)]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        return ended.stdout + ended.stderr

    assert verify(text) == ""
    assert "Unknown key" in verify(text + "[Service]\nNoSuchSetting=yes\n")


def test_only_what_is_no_evidence_is_rotated(lepton, folders):
    text = lepton("site", "unit", str(folders / "my-site"), "--user", "lepton", "--logrotate").out
    rotated = [line for line in text.splitlines() if line.endswith("{")]
    assert rotated == [f"{folders}/my-site/errors.log {{"]
    assert "copytruncate" not in text


@pytest.mark.skipif(shutil.which("logrotate") is None, reason="needs logrotate")
def test_logrotate_takes_it(lepton, folders, tmp_path):
    words = ["site", "unit", str(folders / "my-site"), "--user", getpass.getuser(), "--logrotate"]
    (tmp_path / "snippet").write_text(lepton(*words).out)
    command = [
        "logrotate",
        "--debug",
        "--state",
        str(tmp_path / "state"),
        str(tmp_path / "snippet"),
    ]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "error: " not in ended.stderr
