"""A federation from empty folders, by the commands that partners, sites and servers type."""

import contextlib
import io
import json
import shutil
from dataclasses import replace
from datetime import date

import pytest
import yaml
from soft_token import PIN
from toy_site import PERMISSIVE, PRIVACY
from toy_site import request as training

from lepton_cli.main import app
from lepton_client import consent
from lepton_client.running import only_agent
from lepton_client.site import Site, read_site_file
from lepton_common.identity.joining import read_join
from lepton_common.identity.keys import SigningKey
from lepton_common.identity.roster import read_roster_files

STUDY = {
    "name": "heart", "federation": "hospitals", "version": 1, "purpose": "Predict a disease.",
    "legal_basis": "Consent.", "ethics_reference": "EK 12/2026", "until": "2099-12-31",
    "sites": ["hospital-a", "hospital-b"], "leads": ["dora"], "auditors": [],
    "tasks": ["breast_cancer"], "data": ["cancer"], "max_epsilon": 3.0, "max_delta": 1e-5,
}  # fmt: skip


@pytest.fixture
def do(lepton):
    """Returns a caller of a command that must succeed."""

    def call(line, *more):
        ended = lepton(*line.split(), *more)
        assert ended.code == 0, ended.err
        return " ".join(ended.out.split())

    return call


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A folder with a published federation of two sites, a server and a lead; made once."""
    path = tmp_path_factory.mktemp("published")

    def do(line):
        with contextlib.redirect_stdout(io.StringIO()):
            app(line.split(), standalone_mode=False)

    with contextlib.chdir(path):
        for name in ("alice", "bob", "carol"):
            do(f"federation key {name}.pem")
        for name in ("a", "b"):
            do(f"site init site-{name} --name hospital-{name} --dataset breast_cancer")
        do("server init srv --host localhost --host 10.1.2.3 --port 8443")
        do("person init dora --name dora --role lead")
        do(
            "federation init hosp --name hospitals --threshold 2 --partner alice.pem.pub "
            "--partner bob.pem.pub --partner carol.pem.pub --add srv/join.json "
            "--add site-a/join.json --add site-b/join.json --add dora/join.json"
        )
        do("federation sign hosp --key alice.pem --yes")
        do("federation sign hosp --key carol.pem --yes")
        do("federation publish hosp")
    return path


@pytest.fixture
def hospitals(published, tmp_path):
    """The same in the test's own folder; returns its root."""
    shutil.copytree(published, tmp_path, dirs_exist_ok=True)
    return (tmp_path / "hosp" / "roster.root").read_text()


def roster(tmp_path, folder="hosp"):
    return read_roster_files(tmp_path / folder / "roster.json", tmp_path / folder / "roster.root")


def complaint(lepton, line, error, code=8):
    ended = lepton(*line.split())
    assert ended.code == code, ended.err
    assert ended.err.startswith(f"{error}: ")
    return ended.err


def test_everyone_joins_what_k_of_n_partners_have_signed(do, hospitals, tmp_path):
    for kind, folder in (("site", "site-a"), ("server", "srv"), ("person", "dora")):
        assert "Joined hospitals, version 1" in do(f"{kind} join {folder} hosp --root {hospitals}")
    found = roster(tmp_path, "site-a")
    assert [member.name for member in found.members] == ["hospital-a", "hospital-b"]
    assert found.coordinator.hosts == ["localhost", "10.1.2.3"]
    assert "hospital-b" in do("federation show hosp")
    assert (tmp_path / "site-a").stat().st_mode & 0o77 == 0
    for secret in ("signing.pem", "node.pem"):
        assert (tmp_path / "site-a" / secret).stat().st_mode & 0o77 == 0


PARTNERS = "--partner alice.pem.pub --partner bob.pem.pub"
FOUND = "federation init new --name new --add srv/join.json --threshold 1"


@pytest.mark.parametrize(
    ("line", "error", "code", "said"),
    [
        (f"{FOUND} --partner bob.pem.pub --partner alice.pem", "RosterInvalid", 8, "the .pub file"),
        (f"{FOUND} --partner bob.pem.pub --partner bob.pem.pub", "RosterInvalid", 8, "given twice"),
        (f"{FOUND} --partner none.pub", "RosterInvalid", 8, "none.pub holds no partner's"),
        (f"{FOUND} {PARTNERS} --until soon", "SettingsError", 2, "a day to come"),
        ("federation propose hosp --until soon", "SettingsError", 2, "a day to come"),
        ("federation propose hosp --until 2020-01-01", "SettingsError", 2, "a day to come"),
        ("federation propose hosp --until 2100-01-01", "SettingsError", 2, "a day to come"),
        ("federation propose hosp --add site-a/join.json", "RosterInvalid", 8, "would change"),
        ("federation propose hosp --add site-a/site.yaml", "JoinInvalid", 8, "site-a/site.yaml: "),
        ("federation show nowhere", "RosterInvalid", 8, "no federation's folder"),
        ("federation study hosp none.yaml", "StudyInvalid", 8, "(FileNotFoundError)"),
        ("federation key x.pem --passphrase-file noise", "IdentityError", 8, "holds no text"),
        ("federation key none/x.pem", "FileUnusable", 2, "Cannot use none/x.pem: No such file"),
        ("site start dora", "SettingsError", 2, "made by 'lepton site init'"),
        ("site model list dora", "SettingsError", 2, "made by 'lepton site init'"),
        ("run list --as dora", "RosterInvalid", 8, "join the federation first"),
        ("site bundle none/x.tar --key alice.pem", "FileUnusable", 2, "There is no folder none"),
    ],
)
def test_what_an_operator_mistypes_is_named_and_leaves_nothing_behind(
    lepton, hospitals, tmp_path, line, error, code, said
):
    (tmp_path / "noise").write_bytes(b"\xff\xfe\x9e")
    before = sorted(tmp_path.rglob("*"))
    told = complaint(lepton, line, error, code)
    assert said in told
    assert "PRIVATE" not in told
    assert len(told.splitlines()) == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_a_proposal_says_that_it_takes_the_place_of_another(do, hospitals):
    gone = "An earlier draft of roster-2.json is gone"
    assert gone not in do("federation propose hosp --remove hospital-a")
    assert gone not in do("federation propose hosp --remove hospital-a")
    assert gone in do("federation propose hosp --remove hospital-b")


def test_the_folder_that_goes_around_holds_no_secret(hospitals, tmp_path):
    everything = b"".join(p.read_bytes() for p in (tmp_path / "hosp").rglob("*") if p.is_file())
    assert b"PRIVATE" not in everything
    assert b"PRIVATE" not in (tmp_path / "site-a" / "join.json").read_bytes()


def test_a_new_site_refuses_what_is_not_private(hospitals, tmp_path):
    policy = read_site_file(tmp_path / "site-a" / "site.yaml").policy
    assert not policy.allow_without_dp
    assert not policy.allow_without_secagg
    assert policy.max_delta == 1e-5


def test_one_partner_alone_cannot_publish(do, lepton, hospitals):
    do("federation propose hosp --remove hospital-b")
    do("federation sign hosp --key alice.pem --yes")
    said = complaint(lepton, "federation publish hosp", "RosterInvalid")
    assert "1 of the partners have signed version 2" in said
    complaint(lepton, "federation sign hosp --key alice.pem --yes", "RosterInvalid")


def test_a_site_is_revoked_and_keys_rotate_in_a_newer_version(do, hospitals, tmp_path):
    do(f"site join site-a hosp --root {hospitals}")
    do("site init site-a2 --name hospital-a --dataset breast_cancer")
    said = do("federation propose hosp --remove hospital-b --add site-a2/join.json")
    assert "hospital-b REVOKED" in said
    assert "hospital-a changed" in said
    for key in ("alice", "bob"):
        do(f"federation sign hosp --key {key}.pem --yes")
    do("federation publish hosp")
    found = roster(tmp_path)
    assert found.version == 2
    new = SigningKey.load(tmp_path / "site-a2" / "signing.pem").public_hex
    assert [(m.name, m.public_key) for m in found.members] == [("hospital-a", new)]
    do(f"site join site-a2 hosp --root {hospitals}")


def test_an_older_roster_or_another_root_is_refused(do, lepton, hospitals, tmp_path):
    old = (tmp_path / "hosp" / "roster.json").read_text()
    do("federation propose hosp --until 2099-01-01")
    for key in ("alice", "bob"):
        do(f"federation sign hosp --key {key}.pem --yes")
    do("federation publish hosp")
    do(f"site join site-a hosp --root {hospitals}")
    (tmp_path / "old.json").write_text(old)
    complaint(lepton, f"site join site-a old.json --root {hospitals}", "RosterRolledBack")
    said = complaint(lepton, f"site join site-b hosp --root {'0' * 64}", "RosterInvalid")
    assert "root" in said
    said = complaint(lepton, f"site join site-a hosp --root {'0' * 64}", "RosterInvalid")
    assert "another federation" in said


def test_who_is_not_in_the_roster_cannot_join(do, lepton, hospitals):
    do("site init site-c --name hospital-a --dataset breast_cancer")
    said = complaint(lepton, f"site join site-c hosp --root {hospitals}", "RosterInvalid")
    assert "does not name hospital-a with the key" in said


def test_an_expired_roster_is_refused(do, lepton, hospitals, monkeypatch):
    with monkeypatch.context() as earlier:
        earlier.setattr("lepton_cli.drafting.today", lambda: date(2025, 12, 31))
        do("federation propose hosp --until 2026-01-01")
    for key in ("alice", "bob"):
        do(f"federation sign hosp --key {key}.pem --yes")
    do("federation publish hosp")
    complaint(lepton, f"site join site-a hosp --root {hospitals}", "RosterExpired")


def test_partners_change_by_the_old_and_the_new_ones_signatures(do, lepton, hospitals, tmp_path):
    for name in ("dave", "erin"):
        do(f"federation key {name}.pem")
    do("federation propose hosp --partner dave.pem.pub --partner erin.pem.pub --threshold 2")
    for key in ("dave", "erin", "alice"):
        do(f"federation sign hosp --key {key}.pem --yes")
    complaint(lepton, "federation publish hosp", "RosterInvalid")
    do("federation sign hosp --key carol.pem --yes")
    do("federation publish hosp")
    assert len(roster(tmp_path).partners.keys) == 2
    do("federation propose hosp --until 2099-01-01")
    complaint(lepton, "federation sign hosp --key alice.pem --yes", "RosterInvalid")


def test_a_signature_on_an_earlier_draft_is_not_one_on_a_later(do, lepton, hospitals):
    do("federation propose hosp --until 2099-01-01")
    for key in ("alice", "bob"):
        do(f"federation sign hosp --key {key}.pem --yes")
    do("federation propose hosp --remove hospital-a")
    said = complaint(lepton, "federation publish hosp", "RosterInvalid")
    assert "0 of the partners" in said


def test_a_study_is_signed_and_published(do, lepton, hospitals, tmp_path):
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(STUDY).replace("1.0e-05", "1e-5"))
    assert "Predict a disease." in do("federation study hosp study.yaml")
    do("federation sign hosp --key alice.pem --yes")
    complaint(lepton, "federation publish hosp", "StudyInvalid")
    do("federation sign hosp --key bob.pem --yes")
    do("federation publish hosp")
    assert (tmp_path / "hosp" / "studies" / "heart.json").exists()
    complaint(lepton, "federation study hosp study.yaml", "StudyInvalid")
    (tmp_path / "study.yaml").write_text(yaml.safe_dump({**STUDY, "sites": ["hospital-a", "x"]}))
    said = complaint(lepton, "federation study hosp study.yaml", "StudyInvalid")
    assert "names x, who is no site" in said


def test_whoever_signs_hears_of_the_studies_that_a_name_is_in(do, hospitals, tmp_path):
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(STUDY))
    do("federation study hosp study.yaml")
    for key in ("alice", "bob"):
        do(f"federation sign hosp --key {key}.pem --yes")
    do("federation publish hosp")
    do("federation propose hosp --remove hospital-a")
    for key in ("alice", "bob"):
        do(f"federation sign hosp --key {key}.pem --yes")
    do("federation publish hosp")
    do("site init again --name hospital-a --dataset breast_cancer")
    told = do("federation propose hosp --add again/join.json")
    assert "hospital-a is in the study heart by name" in told


def test_nobody_signs_a_study_that_has_ended_since_it_was_drafted(
    do, lepton, hospitals, tmp_path, monkeypatch
):
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(STUDY))
    do("federation study hosp study.yaml")
    monkeypatch.setattr("lepton_cli.drafting.today", lambda: date(2199, 1, 1))
    said = complaint(lepton, "federation sign hosp --key alice.pem --yes", "StudyInvalid")
    assert "ended on" in said


def test_a_server_takes_the_published_studies_along(do, hospitals, tmp_path):
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(STUDY))
    do("federation study hosp study.yaml")
    for key in ("alice", "bob"):
        do(f"federation sign hosp --key {key}.pem --yes")
    do("federation publish hosp")
    for kind, folder in (("server", "srv"), ("person", "dora")):
        do(f"{kind} join {folder} hosp --root {hospitals}")
    taken = (tmp_path / "srv" / "studies" / "heart.json").read_text()
    assert taken == (tmp_path / "hosp" / "studies" / "heart.json").read_text()
    assert not (tmp_path / "dora" / "studies").exists()


def test_a_sealed_key_needs_its_passphrase(do, lepton, tmp_path):
    (tmp_path / "secret").write_text("correct horse\n")
    do("person init dora --name dora --role auditor --passphrase-file secret")
    data = (tmp_path / "dora" / "signing.pem").read_bytes()
    assert b"OPENSSH" in data
    assert read_join((tmp_path / "dora" / "join.json").read_text()).roles == ["auditor"]
    (tmp_path / "empty").write_text("\n")
    for file in ("empty", "missing"):
        line = f"person init x --name x --role lead --passphrase-file {file}"
        complaint(lepton, line, "IdentityError")


def test_keys_in_a_token_are_made_by_one_option_more(do, lepton, token, tmp_path):
    do(f"federation key alice.pem {token.options}")
    do(f"site init site-a --name hospital-a --dataset breast_cancer {token.options}")
    do(f"server init srv --host localhost {token.options}")
    do(f"person init dora --name dora --role lead {token.options}")
    for path in ("alice.pem", "site-a/signing.pem", "srv/signing.pem", "dora/signing.pem"):
        assert json.loads((tmp_path / path).read_text())["kind"] == "pkcs11"
    do(
        "federation init hosp --name hospitals --threshold 1 --partner alice.pem.pub "
        "--add srv/join.json --add site-a/join.json --add dora/join.json"
    )
    said = complaint(lepton, "federation sign hosp --key alice.pem --yes", "KeyUnreadable")
    assert "give its PIN" in said
    pin = token.options.split()[-1]
    do(f"federation sign hosp --key alice.pem --yes --passphrase-file {pin}")
    do("federation publish hosp")
    root = (tmp_path / "hosp" / "roster.root").read_text()
    do(f"site join site-a hosp --root {root}")


def test_a_token_makes_no_key_for_what_is_refused(lepton, token, tmp_path):
    complaint(lepton, f"person init x --name x --role king {token.options}", "SettingsError", 2)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    complaint(lepton, f"person init full --name x --role lead {token.options}", "JoinInvalid")
    half = "person init x --name x --role lead --token lepton-test"
    complaint(lepton, half, "SettingsError", 2)
    nothing = "person init x --name x --role lead --token none --module /nowhere.so"
    complaint(lepton, f"{nothing} {token.options.split(maxsplit=4)[-1]}", "KeyUnreadable")
    import pkcs11

    found = pkcs11.lib(token.module).get_token(token_label=token.label)
    with found.open(user_pin=PIN) as session:
        assert list(session.get_objects()) == []


@pytest.mark.parametrize("where", ["file", pytest.param("token", marks=pytest.mark.slow)])
def test_a_lost_key_is_replaced_and_what_was_spent_goes_over(
    do, lepton, hospitals, tmp_path, request, where
):
    options = request.getfixturevalue("token").options if where == "token" else ""
    do(f"site join site-a hosp --root {hospitals}")
    charge(tmp_path / "site-a")
    (tmp_path / "site-a" / "signing.pem").unlink()
    assert "1 charges went over" in do(f"site rekey site-a site-a2 {options}")
    assert "hospital-a changed" in do("federation propose hosp --add site-a2/join.json")
    for key in ("alice", "bob"):
        do(f"federation sign hosp --key {key}.pem --yes")
    do("federation publish hosp")
    do(f"site join site-a2 hosp --root {hospitals}")
    new = Site(tmp_path / "site-a2", PIN if options else None)
    assert {m.name: m.public_key for m in new.roster.members}["hospital-a"] == new.key.public_hex
    assert [charge.carried for charge in new.ledger._charges] == [True]
    for name in ("site.yaml", "signing.pem", "node.pem"):
        assert (tmp_path / "site-a2" / name).exists()
    everyone = "1 charges came over from an earlier key"
    opened = " ".join(options.split()[-2:])  # by the PIN, where there is one
    assert everyone in do(f"site data site-a2 {opened}")
    assert everyone in do(f"site data site-a2 --new-people {opened}")
    with only_agent(tmp_path / "site-a"):  # what it charges from here on would stay behind
        complaint(lepton, "site rekey site-a site-a3", "AgentRunning", 5)
    (tmp_path / "site-a" / "ledger.db").unlink()
    complaint(lepton, "site rekey site-a site-a3", "LedgerRolledBack", 4)
    assert not (tmp_path / "site-a3").exists()


def charge(folder):
    """Has a site charge one round, as if it had answered it."""
    site = Site(folder)
    site.ledger.use_data("row", site.trainer.people())
    site.trainer.stop()
    asked = training(privacy=PRIVACY, task="breast_cancer")
    plan = consent.check(asked, replace(site.file, policy=PERMISSIVE))
    charged = site.ledger.reserve(plan, asked, PERMISSIVE)
    site.audit.append("release", {"charge": charged.id, "items": []})


@pytest.mark.parametrize(
    ("line", "error", "code"),
    [
        ("federation publish nowhere", "RosterInvalid", 8),
        ("federation propose nowhere", "SettingsError", 2),
        ("federation propose nowhere --until 2099-01-01", "RosterInvalid", 8),
        ("person init x --name x --role king", "SettingsError", 2),
        ("person init x --name ../x --role lead", "SettingsError", 2),
        ("server init x --host a_b", "SettingsError", 2),
        ("server init x --host a --port 70000", "SettingsError", 2),
        ("site init x --name x --dataset nothing", "UnknownName", 2),
        ("site join nowhere nowhere --root 0", "RosterInvalid", 8),
    ],
)
def test_bad_input_is_refused_by_name(lepton, line, error, code, tmp_path):
    complaint(lepton, line, error, code)
    assert not (tmp_path / "x").exists()


def test_a_site_s_data_lies_in_a_folder_or_is_made_up(do, tmp_path):
    for data, root, kept in (
        ("breast_cancer", "here", str(tmp_path / "here")), ("mnist", "made-up", "made-up")
    ):  # fmt: skip
        do(f"site init {data} --name x --dataset {data} --root {root}")
        assert read_site_file(tmp_path / data / "site.yaml").data.root == kept


def test_a_folder_in_use_is_left_alone(do, lepton):
    do("person init dora --name dora --role lead")
    complaint(lepton, "person init dora --name dora --role lead", "JoinInvalid")
    do("federation key a.pem")
    complaint(lepton, "federation key a.pem", "KeyUnreadable")


def test_an_altered_draft_needs_new_signatures(do, lepton, hospitals, tmp_path):
    do("federation propose hosp --until 2099-01-01")
    for key in ("alice", "bob"):
        do(f"federation sign hosp --key {key}.pem --yes")
    path = tmp_path / "hosp" / "drafts" / "roster-2.json"
    document = json.loads(path.read_text())
    document["partners"]["threshold"] = 1
    path.write_text(json.dumps(document))
    complaint(lepton, "federation publish hosp", "RosterInvalid")
