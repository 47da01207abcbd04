"""A study counts as k of the partners signed it, for the sites of the roster, until its day."""

from dataclasses import replace
from datetime import date

import pytest

from lepton_common.errors import StudyInvalid
from lepton_common.identity.keys import SigningKey
from lepton_common.identity.roster import Member, Person, Roster
from lepton_common.identity.signed import Partners, Signed, sign
from lepton_common.identity.study import Study, check_study, read_study
from lepton_common.strict import to_json

PARTNERS = [SigningKey.generate() for _ in range(3)]
TODAY = date(2026, 11, 21)
ROSTER = Roster(
    federation="hospitals",
    version=1,
    partners=Partners(keys=[key.public_hex for key in PARTNERS], threshold=2),
    members=[
        Member(name=f"site-{i}", public_key=SigningKey.generate().public_hex) for i in (1, 2, 3)
    ],
    people=[
        Person(name="carol", public_key="c" * 64, authority="", roles=["lead"]),
        Person(name="dave", public_key="d" * 64, authority="", roles=["auditor"]),
    ],
)
STUDY = Study(
    name="heart", federation="hospitals", version=1, purpose="Predict heart disease.",
    legal_basis="Consent, GDPR Art. 6(1)(a).", ethics_reference="EK 12/2026", until="2026-12-31",
    sites=["site-1", "site-3"], leads=["carol"], auditors=["dave"], tasks=["heart_disease"],
    data=["heart"], max_epsilon=3.0, max_delta=1e-5,
)  # fmt: skip


def signed(study=STUDY, signers=PARTNERS[:2], kind="study"):
    text = to_json(study)
    return to_json(
        Signed(document=text, signatures={key.public_hex: sign(key, kind, text) for key in signers})
    )


def test_a_signed_study_is_read():
    assert read_study(signed(), ROSTER, TODAY) == STUDY
    assert read_study(signed(), ROSTER, date(2026, 12, 31)) == STUDY


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "not a valid Signed"),
        (signed(signers=PARTNERS[:1]), "^1 of the partners"),
        (signed(signers=[PARTNERS[0], SigningKey.generate()]), "^1 of the partners"),
        (signed(kind="roster"), "^0 of the partners"),
        (signed().replace("heart disease", "heart failure"), "^0 of the partners"),
        (signed(replace(STUDY, federation="banks")), "another federation"),
        (signed(replace(STUDY, sites=["site-3", "site-1"])), "out of order"),
        (signed(replace(STUDY, until="2026-11-20")), "ended on 2026-11-20"),
    ],
)
def test_any_other_is_refused(text, said):
    with pytest.raises(StudyInvalid, match=said):
        read_study(text, ROSTER, TODAY)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sites": ["site-1", "site-4"]}, "site-4, who is no site"),
        ({"leads": ["dave"]}, "dave, who is no lead"),
        ({"auditors": ["carol"]}, "carol, who is no auditor"),
        ({"federation": "banks"}, "another federation"),
        ({"until": "2026-11-20"}, "ended on 2026-11-20"),
    ],
)
def test_partners_are_told_of_what_they_would_sign(changes, said):
    check_study(STUDY, ROSTER, TODAY)
    with pytest.raises(StudyInvalid, match=said):
        check_study(replace(STUDY, **changes), ROSTER, TODAY)


def test_a_study_goes_on_when_a_site_or_a_person_of_it_has_left_the_roster():
    after = replace(ROSTER, version=2, members=ROSTER.members[1:], people=[])
    assert read_study(signed(), after, TODAY) == STUDY
