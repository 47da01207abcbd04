"""A wheel that a lead has signed: this wheel, this federation, this lead."""

from dataclasses import replace

import pytest

from lepton_common.errors import PackageForged
from lepton_common.identity.endorsed import Endorsed, check_endorsed, endorse
from lepton_common.identity.keys import SigningKey
from lepton_common.identity.roster import Partners, Person, Roster
from lepton_common.identity.signed import Signed, sign
from lepton_common.strict import to_json

DORA, EVE = SigningKey.generate(), SigningKey.generate()
ROSTER = Roster(
    federation="hospitals",
    version=1,
    partners=Partners(keys=[DORA.public_hex], threshold=1),
    members=[],
    people=[
        Person(name="dora", public_key=DORA.public_hex, roles=["lead"], authority=""),
        Person(name="eve", public_key=EVE.public_hex, roles=["auditor"], authority=""),
    ],
)
SAID = Endorsed(federation="hospitals", by="dora", package="kidney", version="1.0", sha256="a" * 64)


def check(text, package="kidney", version="1.0", sha256="a" * 64):
    return check_endorsed(text, package, version, sha256, ROSTER)


def test_what_the_lead_signed_is_taken():
    assert check(endorse(DORA, SAID)) == SAID


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{}", "not a valid Signed"),
        (endorse(EVE, SAID), "not signed by dora"),
        (endorse(EVE, replace(SAID, by="eve")), "not signed by eve"),
        (endorse(DORA, replace(SAID, by="mallory")), "not signed by mallory"),
        (endorse(DORA, replace(SAID, federation="banks")), "another federation"),
        (endorse(DORA, replace(SAID, sha256="b" * 64)), "another wheel"),
        (endorse(DORA, replace(SAID, version="1.1")), "another wheel"),
        (endorse(DORA, replace(SAID, package="liver")), "another wheel"),
        (
            # What was signed as something else is not signed as a model.
            to_json(
                Signed(
                    document=to_json(SAID),
                    signatures={DORA.public_hex: sign(DORA, "bundle", to_json(SAID))},
                )
            ),
            "not signed by dora",
        ),
    ],
)
def test_anything_else_is_forged(text, why):
    with pytest.raises(PackageForged, match=why):
        check(text)
