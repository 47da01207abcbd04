"""A site's pack of one run among others: what it discloses, its study, and other sites' packs."""

import json
from dataclasses import replace

import pytest
from toy_federation import FEDERATION, Federation
from toy_site import (  # noqa: F401
    PARTNER,
    PRIVACY,
    VECTOR,
    ask,
    context,
    make_site,
    request,
    toy_catalog,
)

from lepton_cli.packs.archive import read_pack
from lepton_cli.packs.make import make_site_pack
from lepton_cli.packs.verify import verify_pack, verify_together
from lepton_client.app import app
from lepton_client.site import forget_sites
from lepton_common.arrays import digest_of, pack
from lepton_common.errors import EvidenceContradicts, EvidenceForeign, RunNotFound, StudyInvalid
from lepton_common.identity.keys import SigningKey
from lepton_common.identity.roster import Person, root_of, sign_roster
from lepton_common.identity.signed import Signed, sign
from lepton_common.identity.study import Study
from lepton_common.messages import train_content
from lepton_common.strict import to_json

STUDY = Study(
    name="hearts",
    federation=FEDERATION,
    version=1,
    purpose="Predict heart disease earlier",
    legal_basis="consent, Art. 6(1)(a) and 9(2)(a) GDPR",
    ethics_reference="EK 12/34",
    until="2099-12-31",
    sites=["site-1", "site-2"],
    leads=["dora"],
    auditors=[],
    tasks=["toy"],
    data=["toy-data"],
    max_epsilon=100.0,
    max_delta=1e-3,
)


@pytest.fixture
def federation(make_site):  # noqa: F811
    """Two toy sites; the first answered two rounds of run-1, and run-2 in between."""
    made = Federation(make_site, 2)
    lead = Person(
        name="dora", public_key=SigningKey.generate().public_hex, authority="", roles=["lead"]
    )
    made.roster = replace(made.roster, people=[lead])
    signed = sign_roster(made.roster, [PARTNER])
    for folder in made.folders:
        (folder / "roster.json").write_text(signed)
        (folder / "roster.root").write_text(root_of(signed))
    train(made, 1, run="run-1", round=1)
    train(made, 1, run="run-2", round=1)
    train(made, 1, run="run-1", round=2)
    train(made, 1, run="run-1", round=3, task="none-such")  # refused
    forget_sites()
    return made


def train(federation, site, vector=VECTOR, **changes):
    asked = request(privacy=PRIVACY, model_digest=digest_of(pack(vector).data), **changes)
    app(ask(train_content(asked, vector)), context(federation.folders[site - 1]))


@pytest.fixture
def written(tmp_path, federation):
    """Returns a maker of packs, and the root."""

    def write(name="site-1", run="run-1", **options):
        made = make_site_pack(tmp_path / name, run, **options)
        path = tmp_path / f"{name}-{run}.zip"
        path.write_bytes(made.data)
        return path, made.root

    return write


def test_a_pack_shows_one_run_and_of_others_only_hashes(written, tmp_path):
    (tmp_path / "site-1" / "errors.log").write_text("patient Smith, row 17")
    path, root = written()
    checked, data = verify_pack(path, root), path.read_bytes()
    assert b"run-2" not in data
    assert b"Smith" not in data
    assert b"rows.npy" not in data
    facts = checked.facts
    # Of run-2 in between: engine and release in the log, charge and release in the ledger.
    assert (facts["audit"]["withheld_within"], facts["ledger"]["withheld_within"]) == (2, 2)
    assert facts["plan"]["charges"] == 2
    assert facts["refusals"] == {"ConsentRefused": 1}
    assert facts["models"].keys() == {"1", "2"}
    whole, _ = written(whole=True)
    assert b"run-2" in whole.read_bytes()
    again = verify_pack(whole, root).facts
    assert again["audit"]["withheld_within"] == 0
    assert again["plan"] == facts["plan"]


def test_only_an_unknown_run_has_no_pack(written):
    with pytest.raises(RunNotFound, match="run-1, run-2"):
        written(run="run-3")


@pytest.mark.slow
def test_sites_that_began_a_round_from_different_models_are_found(federation, written):
    one, root = written()
    train(federation, 2, run="run-1", round=1)
    same, _ = written("site-2")
    verify_together([verify_pack(one, root), verify_pack(same, root)])
    train(federation, 2, vector=VECTOR + 1, run="run-1", round=2)
    other, _ = written("site-2")
    with pytest.raises(EvidenceContradicts, match="round 2 began from different models"):
        verify_together([verify_pack(one, root), verify_pack(other, root)])
    elsewhere, _ = written(run="run-2")
    with pytest.raises(EvidenceContradicts, match="different runs"):
        verify_together([verify_pack(one, root), verify_pack(elsewhere, root)])


@pytest.mark.slow
def test_a_study_fills_the_records_and_must_name_the_site(written, tmp_path):
    def study_file(study):
        text = to_json(study)
        path = tmp_path / "study.json"
        path.write_text(
            to_json(
                Signed(document=text, signatures={PARTNER.public_hex: sign(PARTNER, "study", text)})
            )
        )
        return path

    path, root = written(study=study_file(STUDY))
    verify_pack(path, root)
    members = read_pack(path).members
    for name in ("dpia.md", "processing.md"):
        assert STUDY.purpose.encode() in members[name]
        assert STUDY.legal_basis.encode() in members[name]
        assert b"TO FILL IN" in members[name]
    plain, _ = written()
    assert STUDY.purpose.encode() not in read_pack(plain).members["dpia.md"]
    other, _ = written(study=study_file(replace(STUDY, data=["other-data"])))
    with pytest.raises(EvidenceContradicts, match=r"study\.json does not cover the data"):
        verify_pack(other, root)
    with pytest.raises(StudyInvalid):
        written(study=study_file(replace(STUDY, until="2020-01-01")))


def test_a_key_that_the_roster_does_not_name_signs_nothing(written, federation):
    SigningKey.generate().save(federation.folders[1] / "signing.pem")
    (federation.folders[1] / "audit.jsonl").unlink(missing_ok=True)
    train(federation, 2, run="run-1", round=1)
    with pytest.raises(EvidenceForeign, match="does not name"):
        written("site-2")


def test_facts_are_json_that_a_script_can_read(written):
    path, _ = written()
    facts = json.loads(read_pack(path).members["facts.json"])
    assert facts["charged_data"] == ["toy-data (unit row)"]
    assert [t["round"] for t in facts["transcripts"]] == [1, 2]
