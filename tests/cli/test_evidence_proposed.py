"""Who asked for a run, and in which study: what a site's pack says of it, and that it was so."""

import json
from dataclasses import replace

import pytest
from studies import signed
from toy_site import PARTNER, make_site  # noqa: F401

import lepton_cli.packs.make
from lepton_cli.compose import compose_settings
from lepton_cli.packs.archive import list_members, read_pack, write_pack
from lepton_cli.packs.make import make_site_pack
from lepton_cli.packs.proposed import PROPOSAL, STUDY, check_configuration
from lepton_cli.packs.verify import verify_pack, verify_together
from lepton_client.proposals import STUDIES
from lepton_client.rules import LaunchRules
from lepton_common.errors import EvidenceContradicts, StudyInvalid
from lepton_common.identity.keys import SigningKey
from lepton_common.identity.roster import (
    Coordinator,
    Member,
    Partners,
    Person,
    Roster,
    root_of,
    sign_roster,
)
from lepton_common.proposal import make_proposal, read_proposal
from lepton_common.strict import parse_json, to_json

DORA, EVE, OTHER = (SigningKey.generate() for _ in range(3))
SETTINGS = compose_settings(
    ["task=breast_cancer", "privacy=record", "secagg=sa1", "privacy.epsilon=0.9",
     "privacy.delta=1e-5", "sites=4", "rounds=3", "federation.name=hospitals"]
)  # fmt: skip
COORDINATOR = Coordinator(
    name="srv", public_key="c" * 64, authority="one", hosts=["localhost"], port=1
)
COVERED = {"tasks": ["breast_cancer"]}


def roster_with(site, *leads, version=1):
    keys = {"dora": DORA, "eve": EVE}
    return Roster(
        federation="hospitals",
        version=version,
        partners=Partners(keys=[PARTNER.public_hex], threshold=1),
        coordinator=COORDINATOR,
        members=[
            Member(name="site-1", public_key=site.key.public_hex),
            Member(name="site-2", public_key=OTHER.public_hex),
        ],
        people=[
            Person(name=name, public_key=keys[name].public_hex, roles=["lead"], authority="")
            for name in leads
        ],
    )


@pytest.fixture
def site(make_site):  # noqa: F811
    """A site of a federation with two leads, which holds the study heart."""
    made = make_site()
    text = sign_roster(roster_with(made, "dora", "eve"), [PARTNER])
    (made.folder / "roster.json").write_text(text)
    (made.folder / "roster.root").write_text(root_of(text))
    (made.folder / STUDIES).mkdir()
    (made.folder / STUDIES / "heart.json").write_text(signed(**COVERED))
    return made


@pytest.fixture
def packed(site, tmp_path):
    """Returns a maker of packs of a run that the site has admitted, and their root."""
    rules = LaunchRules(approval="automatic", people=None, studies=None, quiet_hours=[])

    def make(asked="heart", run="run-1", by="dora", **options):
        if by is not None and site.proposals.text(run) is None:
            key = {"dora": DORA, "eve": EVE}[by]
            text = make_proposal(key, by, asked, "hospitals", SETTINGS)
            site.proposals.admit(run, text, replace(site.file, launch=rules), site.roster)
        path = tmp_path / f"{run}.zip"
        made = make_site_pack(site.folder, run, **options)
        path.write_bytes(made.data)
        return path, made.root

    return make


def altered(path, key, changes):
    """A pack that its own signer has altered; None leaves a member out."""
    pack = read_pack(path)
    members = {n: data for n, data in (pack.members | changes).items() if data is not None}
    said = json.loads(to_json(pack.manifest))
    said["members"] = [json.loads(to_json(member)) for member in list_members(members)]
    manifest = parse_json(type(pack.manifest), json.dumps(said))
    path.write_bytes(write_pack(manifest, members, key))
    return path


def test_a_pack_says_who_asked_for_the_run_and_holds_the_study_by_itself(site, packed):
    path, root = packed()
    checked = verify_pack(path, root)
    assert checked.facts["proposal"] == {"by": "dora", "study": "heart"}
    members = checked.pack.members
    assert members[PROPOSAL].decode() == site.proposals.text("run-1")
    assert members[STUDY].decode() == signed(**COVERED)
    assert b"dora, in the study heart" in members["page.html"]
    assert b"Predict." in members["dpia.md"]


def test_a_run_of_no_study_holds_none(packed):
    path, root = packed(asked=None)
    checked = verify_pack(path, root)
    assert checked.facts["proposal"] == {"by": "dora", "study": None}
    assert STUDY not in checked.pack.members
    assert b"dora, in no study" in checked.pack.members["page.html"]


@pytest.mark.parametrize("asked", ["heart", None])
def test_another_study_than_the_proposal_s_is_refused(packed, tmp_path, asked):
    file = tmp_path / "lungs.json"
    file.write_text(signed(**COVERED, name="lungs"))
    path, root = packed(asked, study=file)
    with pytest.raises(EvidenceContradicts, match="is lungs, and the run was proposed in"):
        verify_pack(path, root)


def test_a_study_without_the_lead_who_asked_is_refused(packed, tmp_path):
    file = tmp_path / "heart.json"
    file.write_text(signed(**COVERED, leads=["eve"]))
    path, root = packed(study=file)
    with pytest.raises(EvidenceContradicts, match="does not name the lead dora"):
        verify_pack(path, root)


def test_a_study_of_somebody_whom_no_version_of_the_roster_has_is_refused(packed, tmp_path):
    file = tmp_path / "heart.json"
    file.write_text(signed(**COVERED, auditors=["zeta"]))
    path, root = packed(study=file)
    with pytest.raises(EvidenceContradicts, match="names zeta, whom no version of the roster has"):
        verify_pack(path, root)


def test_a_study_is_kept_when_a_site_of_it_has_left(site, packed):
    packed()
    roster = roster_with(site, "dora", "eve", version=2)
    left = replace(roster, members=roster.members[:1])
    before = (site.folder / "roster.json").read_text()
    (site.folder / "roster.json").write_text(sign_roster(left, [PARTNER], before))
    path, root = packed()
    assert STUDY in verify_pack(path, root).pack.members


def test_a_study_that_is_not_good_is_left_out_unless_it_was_asked_for(site, packed):
    packed()  # while it was
    kept = site.folder / STUDIES / "heart.json"
    kept.write_text(signed(partners=[OTHER], **COVERED))
    path, root = packed()
    checked = verify_pack(path, root)
    assert STUDY not in checked.pack.members
    assert checked.facts["proposal"]["study"] == "heart"
    with pytest.raises(StudyInvalid, match="0 of the partners"):
        packed(study=kept)


def test_a_pack_is_made_and_verifies_when_the_lead_has_left(site, packed):
    packed()
    before = (site.folder / "roster.json").read_text()
    after = sign_roster(roster_with(site, "eve", version=2), [PARTNER], before)
    (site.folder / "roster.json").write_text(after)
    path, root = packed()
    assert verify_pack(path, root).facts["proposal"]["by"] == "dora"


@pytest.mark.parametrize("swapped", ["eve's", None])
def test_a_site_cannot_show_another_proposal_than_it_took_in_nor_none(site, packed, swapped):
    path, root = packed()
    text = make_proposal(EVE, "eve", "heart", "hospitals", SETTINGS).encode() if swapped else None
    path = altered(path, site.key, {PROPOSAL: text})
    with pytest.raises(
        EvidenceContradicts,
        match=r"proposal\.json is not the proposal that the signer's log took in",
    ):
        verify_pack(path, root)


def test_a_site_cannot_hide_that_a_run_was_proposed(site, packed, monkeypatch):
    """It withholds the record that it took a proposal in, and leaves out the proposal."""
    packed()
    site.audit.append("engine", {"run": "run-1", "engine": "opacus", "difference": None})
    true = lepton_cli.packs.make.of_run
    taken = {r.sequence for r in site.audit.records if r.kind == "proposed"}
    monkeypatch.setattr("lepton_cli.packs.make.of_run", lambda *asked: true(*asked) - taken)
    (site.folder / "proposals" / "run-1.json").unlink()
    with pytest.raises(EvidenceContradicts, match=r"lacks proposal\.json"):
        packed(by=None)


def test_of_a_renewed_study_the_version_that_covers_the_run_is_found(site, packed):
    packed()
    folder = site.folder / STUDIES
    (folder / "earlier").mkdir()
    for version in (2, 10):
        (folder / "earlier" / f"heart-{version}.json").write_text(
            signed(**COVERED, version=version, purpose=f"Version {version}.")
        )
    (folder / "earlier" / "heart-failure-1.json").write_text(
        signed(**COVERED, name="heart-failure")
    )
    (folder / "heart.json").write_text(signed(**COVERED, version=11, leads=["eve"]))
    path, root = packed()
    assert b"Version 10." in verify_pack(path, root).pack.members["dpia.md"]
    for left in (folder / "earlier").iterdir():
        left.unlink()
    path, root = packed()
    assert STUDY not in verify_pack(path, root).pack.members


def test_a_proposal_that_was_damaged_is_named(site, packed):
    packed()
    (site.folder / "proposals" / "run-1.json").write_bytes(b"\xff")
    with pytest.raises(EvidenceContradicts, match=r"proposal\.json"):
        packed(by=None)


def test_packs_of_different_proposals_do_not_belong_together(site, packed):
    first, root = packed()
    one = verify_pack(first, root)
    pack = replace(one.pack, members=one.pack.members | {PROPOSAL: b"another"})
    manifest = replace(pack.manifest, signer="site-2")
    other = replace(one, pack=replace(pack, manifest=manifest))
    with pytest.raises(EvidenceContradicts, match="different proposals"):
        verify_together([one, other])


def test_the_coordinator_s_proposal_is_of_what_it_ran(tmp_path):
    roster = Roster(
        federation="hospitals",
        version=1,
        partners=Partners(keys=[PARTNER.public_hex], threshold=1),
        members=[],
        people=[Person(name="dora", public_key=DORA.public_hex, roles=["lead"], authority="")],
    )
    text = make_proposal(DORA, "dora", None, "hospitals", SETTINGS)
    proposal = read_proposal(text, roster)
    check_configuration(tmp_path, proposal, to_json(SETTINGS).encode())
    check_configuration(tmp_path, None, b"a simulation's")
    with pytest.raises(EvidenceContradicts, match="not of the configuration"):
        check_configuration(tmp_path, proposal, to_json(replace(SETTINGS, rounds=4)).encode())
