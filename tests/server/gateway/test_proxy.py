"""The proxy's configuration: whom it lets in, where, and that nginx takes it."""

import os
import shutil
import subprocess
import time
from dataclasses import replace

import pytest

from lepton_common.errors import CertificateInvalid, ServerFailed
from lepton_common.identity.certificates import issue_leaf, make_authority
from lepton_common.identity.keys import SigningKey
from lepton_common.identity.roster import Coordinator, Member, Person, Roster
from lepton_common.identity.signed import Partners
from lepton_server.gateway.proxy import clear_bodies, configure

KEYS = {name: SigningKey.generate() for name in ("coordinator", "site-1", "site-2", "dora")}


def fields(name):
    key = KEYS[name]
    return {
        "name": name,
        "public_key": key.public_hex,
        "authority": make_authority(key, name),
    }


ROSTER = Roster(
    federation="hospitals",
    version=3,
    partners=Partners(keys=["f" * 64], threshold=1),
    coordinator=Coordinator(**fields("coordinator"), hosts=["localhost"], port=18999),
    members=[Member(**fields("site-1")), Member(**fields("site-2"))],
    people=[Person(**fields("dora"), roles=["lead"])],
)
LEAF = issue_leaf(KEYS["coordinator"], "coordinator", ["localhost"])


def test_the_roster_s_keys_are_the_anchors(tmp_path):
    path = configure(tmp_path / "gateway", ROSTER, "127.0.0.1:18998", LEAF)
    anchors = (path.parent / "clients.crt").read_text()
    assert anchors.count("BEGIN CERTIFICATE") == 3
    assert ROSTER.coordinator.authority not in anchors
    text = path.read_text()
    assert '"CN=site-1" "site-1";' in text
    assert text.index('"CN=dora"') > text.index("$lepton_person {")
    assert text.index('"CN=site-2"') < text.index("$lepton_person {")


def test_the_proxy_alone_says_who_calls_and_passes_nobody_inside(tmp_path):
    text = configure(tmp_path / "gateway", ROSTER, "127.0.0.1:18998", LEAF).read_text()
    for service, known in (("Control", "person"), ("Sites", "site")):
        block = text.split(f"location /lepton.control.v1.{service}/ {{")[1].split("\n    }")[0]
        assert f'if ($lepton_{known} = "") {{ return 403; }}' in block
        assert f"grpc_set_header x-lepton-{known} $lepton_{known};" in block
    assert "Inside" not in text


def test_the_proxy_alone_says_in_which_file_a_body_is_and_sends_none_that_is_asked_for(tmp_path):
    text = configure(tmp_path / "gateway", ROSTER, "127.0.0.1:18998", LEAF).read_text()
    fleet = text.split("location /v1/fleet/ {")[1].split("\n    }")[0]
    pushed = fleet.split("location = /v1/fleet/push-object {")[1].split("\n      }")[0]
    assert "proxy_set_header x-lepton-body $request_body_file;" in pushed
    assert 'if ($lepton_site = "") { return 403; }' in pushed
    assert 'proxy_set_header x-lepton-body "";' in fleet.replace(pushed, "")
    files = text.split("location /objects/ {")[1].split("\n    }")[0]
    assert "internal;" in files


def test_files_of_requests_that_nobody_carries_any_more_are_removed(tmp_path):
    clear_bodies(tmp_path, 0.0)  # before there ever were any
    (tmp_path / "body").mkdir()
    old, young = tmp_path / "body" / "1", tmp_path / "body" / "2"
    for path in (old, young):
        path.write_bytes(b"x")
    os.utime(old, (time.time() - 700, time.time() - 700))
    clear_bodies(tmp_path, 600.0)
    assert (old.exists(), young.exists()) == (False, True)
    clear_bodies(tmp_path, 0.0)
    assert not young.exists()


def test_secrets_are_their_owner_s_alone(tmp_path):
    path = configure(tmp_path / "gateway", ROSTER, "127.0.0.1:18998", LEAF)
    assert path.parent.stat().st_mode & 0o77 == 0
    assert (path.parent / "tls.key").stat().st_mode & 0o77 == 0


def test_a_revoked_site_is_no_anchor(tmp_path):
    after = replace(ROSTER, members=ROSTER.members[:1])
    path = configure(tmp_path / "gateway", after, "127.0.0.1:18998", LEAF)
    assert ROSTER.members[1].authority not in (path.parent / "clients.crt").read_text()
    assert "site-2" not in path.read_text()


def test_an_authority_of_another_name_is_refused(tmp_path):
    false = replace(ROSTER.members[0], authority=ROSTER.members[1].authority)
    after = replace(ROSTER, members=[false, ROSTER.members[1]])
    with pytest.raises(CertificateInvalid, match="site-1"):
        configure(tmp_path / "gateway", after, "127.0.0.1:18998", LEAF)


def test_a_roster_without_a_coordinator_is_refused(tmp_path):
    with pytest.raises(ServerFailed, match="no coordinator"):
        configure(tmp_path / "gateway", replace(ROSTER, coordinator=None), "127.0.0.1:1", LEAF)


def test_nginx_takes_the_configuration(tmp_path):
    nginx = shutil.which("nginx", path="/usr/local/sbin:/usr/sbin:/usr/bin")
    if nginx is None:
        pytest.skip("needs nginx, which this machine does not have")
    path = configure(tmp_path / "gateway", ROSTER, "127.0.0.1:18998", LEAF)
    words = [nginx, "-t", "-q", "-p", str(path.parent), "-c", str(path), "-e", "stderr"]
    tried = subprocess.run(words, capture_output=True, text=True, check=False)
    assert tried.returncode == 0, tried.stderr
