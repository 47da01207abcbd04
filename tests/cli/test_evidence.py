"""Evidence packs of a whole simulated run: what they say, and who is caught altering them."""

import json
import shutil
from pathlib import Path

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

import lepton_cli.packs.make
from lepton_cli.packs.archive import list_members, read_pack, write_pack
from lepton_cli.packs.make import make_coordinator_pack, make_site_pack
from lepton_cli.packs.verify import verify_pack, verify_together
from lepton_common.audit import AuditLog
from lepton_common.chain import withhold
from lepton_common.errors import AuditError, EvidenceContradicts
from lepton_common.identity.keys import SigningKey
from lepton_common.strict import parse_json, to_json
from lepton_server.gateway.runs import Submitted
from lepton_server.run_folder import RunFolder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    runs = tmp_path_factory.mktemp("evidence")
    return lepton_cli.simulate(
        "task=breast_cancer", "sites=3", "rounds=2", f"runs={runs}", baselines=False
    )


@pytest.fixture(scope="module")
def packs(run):
    """The packs of a run by who made them, and their root, in files of their own."""
    made = {name: make_site_pack(run.folder.site(name), run.name) for name in ("site-1", "site-2")}
    key = SigningKey.load(run.folder.server_key)
    made["coordinator"] = make_coordinator_pack(run.folder, run.settings, key)
    for name, pack in made.items():
        (run.folder.path / f"{name}.zip").write_bytes(pack.data)
    return {name: run.folder.path / f"{name}.zip" for name in made}


@pytest.fixture
def root(run):
    return run.folder.roster_root.read_text()


@pytest.fixture
def resign(run, packs, tmp_path):
    """Returns a maker of packs altered by their own signer, who has the key to sign them."""

    def make(name, changes):
        pack = read_pack(packs[name])
        folder = run.folder
        key = folder.server_key if name == "coordinator" else folder.site(name) / "signing.pem"
        members = {**pack.members, **changes}
        manifest = pack.manifest
        said = json.loads(to_json(manifest))
        said["members"] = [json.loads(to_json(member)) for member in list_members(members)]
        signed = parse_json(type(manifest), json.dumps(said))
        path = tmp_path / f"{name}.zip"
        path.write_bytes(write_pack(signed, members, SigningKey.load(key)))
        return path

    return make


def lines(path, member):
    return read_pack(path).members[member].split(b"\n")[:-1]


def joined(kept):
    return b"".join(line + b"\n" for line in kept)


def test_packs_of_a_run_verify_alone_and_together(run, packs, root):
    checked = [verify_pack(path, root) for path in packs.values()]
    # Each site's introduction, and its head in each of two rounds.
    assert verify_together(checked) == 2 * (1 + 2)
    assert all(c.pages for c in checked)
    site = checked[0].facts
    proven = run.evidence.sites["site-1"]
    assert site["plan"]["epsilon"] == pytest.approx(proven.epsilon, rel=1e-12)
    assert site["bytes_left"] == proven.bytes_left
    assert site["simulated"]
    digest = read_pack(packs["coordinator"]).members
    assert run.folder.final_model.exists()
    facts = json.loads(digest["facts.json"])
    assert facts["model"]["round"] == 2
    assert facts["participants"].keys() == {"site-1", "site-2", "site-3"}


def test_the_same_records_make_the_same_bytes(run, packs):
    again = make_site_pack(run.folder.site("site-1"), run.name)
    assert again.data == packs["site-1"].read_bytes()


@pytest.mark.slow
def test_the_command_makes_and_verifies(lepton, run, packs, root):
    runs = str(run.folder.path.parent)
    shown = lepton("evidence", run.name, "--runs", runs, "--show")
    assert shown.code == 0
    assert "Nothing was written" in shown.out
    assert not list(Path().glob("*.zip"))
    made = lepton("evidence", run.name, "--runs", runs, "--out", "c.zip")
    assert made.code == 0
    assert root in made.out
    assert Path("c.zip").read_bytes() == packs["coordinator"].read_bytes()
    ended = lepton("evidence", "verify", "c.zip", str(packs["site-1"]), "--root", root, "--json")
    document = json.loads(ended.out)
    assert ended.code == 0
    assert document["witnessed"] == 3
    assert [row["signer"] for row in document["packs"]] == ["coordinator", "site-1"]
    told = lepton("evidence", "verify", "c.zip", str(packs["site-1"]), "--root", root)
    assert "unaltered since they were anchored" in told.out
    assert "unmodified software" in told.out
    alone = lepton("evidence", "verify", "c.zip", "--root", root).out
    assert "what the signer put on record" in alone
    assert "anchored" not in alone
    data = Path("c.zip").read_bytes()
    Path("c.zip").write_bytes(data.replace(b"Model card", b"model card", 1))
    ended = lepton("evidence", "verify", "c.zip", "--root", root, "--json")
    assert ended.code == 6
    assert json.loads(ended.out)["error"] == "EvidenceAltered"
    assert "model-card.md" in ended.out


def test_every_member_of_a_pack_counts(packs, tmp_path):
    for pack in (packs["site-1"], packs["coordinator"]):
        data = pack.read_bytes()
        for name, held in read_pack(pack).members.items():
            at = data.index(held) + len(held) // 3
            path = tmp_path / "altered.zip"
            path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
            with pytest.raises(AuditError, match=name.replace(".", r"\.")):
                read_pack(path)


@pytest.mark.parametrize(
    ("name", "member", "before", "after"),
    [
        ("site-1", "facts.json", b'"epsilon": 2', b'"epsilon": 1'),
        ("site-1", "facts.json", b'"releases": 11', b'"releases": 10'),
        ("site-1", "page.html", b"(2.", b"(1."),
        ("site-1", "dpia.md", b"secure aggregation |", b"nothing |"),
        ("site-1", "audit.jsonl", b'"round":1', b'"round":2'),
        ("site-1", "ledger.jsonl", b'"steps":1', b'"steps":0'),
        ("site-1", "policy.json", b'"name":"site-1"', b'"name":"site-2"'),
        ("site-1", "versions.json", b'"lepton-fl": "', b'"lepton-fl": "9'),
        ("coordinator", "audit.jsonl", b'"accuracy":0', b'"accuracy":1'),
        ("coordinator", "config.json", b'"rounds":2', b'"rounds":3'),
        ("coordinator", "facts.json", b'"round": 2', b'"round": 1'),
        ("coordinator", "model-card.md", b"accuracy", b"accuracies"),
    ],
)
def test_a_signer_who_alters_a_member_is_caught(resign, packs, root, name, member, before, after):
    held = read_pack(packs[name]).members[member]
    assert before in held
    path = resign(name, {member: held.replace(before, after)})
    with pytest.raises(AuditError, match=member.replace(".", r"\.")):
        verify_pack(path, root)


def test_a_charge_that_is_left_out_is_missed(resign, packs, root):
    """The owner of the key withholds a charge, or cuts the ledger."""
    held = lines(packs["site-1"], "ledger.jsonl")
    (charge, *_) = [i for i, line in enumerate(held) if b'"kind":"charge"' in line]
    shown = set(range(len(held))) - {charge}
    for changed in (joined(withhold(held, shown)), joined(held[:charge])):
        path = resign("site-1", {"ledger.jsonl": changed})
        with pytest.raises(EvidenceContradicts, match=r"ledger\.jsonl|released on a charge"):
            verify_pack(path, root)


@pytest.mark.parametrize("came", [False, True])
def test_who_dropped_out_of_a_sum_needs_no_transcript_of_it(run, packs, root, tmp_path, came):
    """A site that showed its log, and then went away, has masked nothing; one that came has."""
    folder = RunFolder(shutil.copytree(run.folder.path, tmp_path / run.name))
    key = SigningKey.load(folder.server_key)
    log = AuditLog(folder.audit, key, "server")
    body = [record.body for record in log.records if record.kind == "collected"][-1]
    ledgers = body["ledgers"] if came else {}
    log.append("collected", body | {"secagg": ["0" * 64], "ledgers": ledgers})
    path = tmp_path / "coordinator.zip"
    path.write_bytes(make_coordinator_pack(folder, run.settings, key).data)
    both = [verify_pack(path, root), verify_pack(packs["site-1"], root)]
    if came:
        with pytest.raises(EvidenceContradicts, match="transcript that is not"):
            verify_together(both)
    else:
        assert verify_together(both) == 1 + 2 + 1


@pytest.mark.parametrize("which", [0, 3])
def test_a_record_that_was_witnessed_cannot_be_withheld(
    run, packs, root, monkeypatch, tmp_path, which
):
    """A site that leaves out a record and computes all else anew is given away by the witness."""
    true = lepton_cli.packs.make.of_run

    def fewer(records, name):
        seen = [r.sequence for r in records if r.kind == "release"]
        return true(records, name) - {seen[which]}

    heads = [json.loads(line)["hash"] for line in lines(packs["site-1"], "audit.jsonl")]
    witnessed = packs["coordinator"].read_bytes()
    monkeypatch.setattr("lepton_cli.packs.make.of_run", fewer)
    path = tmp_path / "site-1.zip"
    path.write_bytes(make_site_pack(run.folder.site("site-1"), run.name).data)
    alone, coordinator = verify_pack(path, root), verify_pack(packs["coordinator"], root)
    left_out = set(heads) - {r.hash for r in alone.computed.site.audit.records}
    assert len(left_out) == 1
    if left_out.pop().encode() not in witnessed:
        # Nobody else saw it; that something is withheld amid the run's records still shows.
        assert alone.facts["audit"]["withheld_within"] == 1
        return
    with pytest.raises(EvidenceContradicts, match="witnessed"):
        verify_together([coordinator, alone])


@pytest.mark.parametrize("kept", [-1, 5])
def test_a_log_that_is_cut_is_found(resign, packs, root, kept):
    held = lines(packs["site-1"], "audit.jsonl")
    with pytest.raises(AuditError):
        verify_pack(resign("site-1", {"audit.jsonl": joined(held[:kept])}), root)


def test_a_coordinator_over_a_network_signs_with_the_key_in_the_roster(lepton, run, root):
    folder = Path("srv/runs") / run.name
    shutil.copytree(run.folder.path / "server", folder / "server")
    (folder / "submitted.json").write_text(
        to_json(Submitted(by="dora", settings=to_json(run.settings)))
    )
    shutil.copy(run.folder.server_key, "srv/signing.pem")
    ended = lepton("evidence", run.name, "--server", "srv", "--out", "c.zip")
    assert ended.code == 0
    checked = verify_pack(Path("c.zip"), root)
    assert checked.facts["task"] == "breast_cancer"
    assert lepton("evidence", "none", "--server", "srv").code == 5
    SigningKey.generate().save(Path("srv/signing.pem"))
    assert lepton("evidence", run.name, "--server", "srv").code == 6


def test_packs_that_do_not_belong_together_are_refused(packs, root, resign):
    one = verify_pack(packs["site-1"], root)
    with pytest.raises(EvidenceContradicts, match="give one"):
        verify_together([one, one])
    more = resign("site-1", {"extra.md": b"x"})
    with pytest.raises(EvidenceContradicts, match=r"extra\.md"):
        verify_pack(more, root)


def test_nothing_of_the_machine_or_of_other_keys_is_in_a_pack(run, packs):
    for name, path in packs.items():
        data, members = path.read_bytes(), read_pack(path).members
        assert b"PRIVATE KEY" not in data
        folder = run.folder.path / "server" if name == "coordinator" else run.folder.site(name)
        secret = SigningKey.load(folder / "signing.pem")._private.private_bytes_raw()
        assert secret not in data
        assert secret.hex().encode() not in data
        if name != "coordinator":
            rows = (folder / "rows.npy").read_bytes()
            assert rows not in data
            assert str(run.folder.path.parent).encode() not in data
            assert set(members) == {
                "roster.json", "policy.json", "audit.jsonl", "ledger.jsonl", "versions.json",
                "sbom.cdx.json", "facts.json", "page.html", "page.pdf", "dpia.md", "processing.md",
            }  # fmt: skip


def test_the_bill_of_materials_keeps_the_published_schema(packs):
    text = read_pack(packs["coordinator"]).members["sbom.cdx.json"].decode()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str('{"bomFormat": 1}') is not None
    bill = json.loads(text)
    parts = {part["name"]: part["version"] for part in bill["components"]}
    assert parts["flwr"] == "1.41.0"
    (ours,) = [d for d in bill["dependencies"] if d["ref"].startswith("lepton-fl==")]
    assert "flwr==1.41.0" in ours["dependsOn"]
    assert not any(part.startswith("pytest==") for part in ours["dependsOn"])
