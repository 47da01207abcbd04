"""A roster counts only as k of the pinned partners have signed it, to the byte."""

import json

import pytest

from lepton_common.errors import RosterMismatch
from lepton_common.identity.keys import SigningKey
from lepton_common.identity.roster import Member, Pin, Roster, read_roster, sign_roster

PARTNERS = [SigningKey.generate() for _ in range(3)]
KEYS = [SigningKey.generate().public_hex for _ in range(3)]
MEMBERS = [Member(name=f"site-{i}", public_key=key) for i, key in enumerate(KEYS, start=1)]


def roster(members=MEMBERS):
    return Roster(federation="hospitals", version=2, members=list(members))


def pin(threshold=2, partners=PARTNERS):
    return Pin(partners=[key.public_hex for key in partners], threshold=threshold)


@pytest.mark.parametrize("signers", [(0, 1), (0, 2), (2, 1), (0, 1, 2)])
def test_any_k_of_the_partners_suffice(signers):
    text = sign_roster(roster(), [PARTNERS[i] for i in signers])
    assert read_roster(text, pin()) == roster()


@pytest.mark.parametrize("signers", [(), (0,), (2,)])
def test_fewer_than_k_do_not(signers):
    text = sign_roster(roster(), [PARTNERS[i] for i in signers])
    with pytest.raises(RosterMismatch, match=f"^{len(signers)} of the pinned partners"):
        read_roster(text, pin())


def test_one_partner_that_signs_twice_is_one():
    signed = json.loads(sign_roster(roster(), [PARTNERS[0], PARTNERS[0]]))
    (key, signature), = signed["signatures"].items()  # fmt: skip
    text = json.dumps(signed)
    twice = text.replace(f'"{key}"', f'"{key}": "{signature}", "{key}"', 1)
    with pytest.raises(RosterMismatch, match=r"^1 of"):
        read_roster(twice, pin())
    doubled = Pin(partners=[PARTNERS[0].public_hex] * 2, threshold=2)
    with pytest.raises(RosterMismatch, match=r"^1 of"):
        read_roster(text, doubled)


def test_a_key_that_is_not_pinned_does_not_count():
    stranger = SigningKey.generate()
    text = sign_roster(roster(), [PARTNERS[0], stranger])
    with pytest.raises(RosterMismatch, match=r"^1 of"):
        read_roster(text, pin())
    with pytest.raises(RosterMismatch, match=r"^0 of"):
        read_roster(text, pin(1, PARTNERS[1:]))


def test_a_signature_under_another_partners_name_does_not_count():
    signed = json.loads(sign_roster(roster(), PARTNERS[:2]))
    first, second = signed["signatures"]
    signatures = signed["signatures"]
    signatures[first], signatures[second] = signatures[second], signatures[first]
    with pytest.raises(RosterMismatch, match=r"^0 of"):
        read_roster(json.dumps(signed), pin())


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("site-2", "site-7"),
        pytest.param(KEYS[1], "a" * 64, id="another key"),
        ("hospitals", "hospitalz"),
        (r"\"version\":2", r"\"version\":3"),
        (r"\"version\":2", r"\"version\": 2"),
    ],
)
def test_no_change_to_the_signed_text_passes(old, new):
    text = sign_roster(roster(), PARTNERS)
    assert old in text
    with pytest.raises(RosterMismatch, match=r"^0 of"):
        read_roster(text.replace(old, new, 1), pin())


@pytest.mark.parametrize(
    "members",
    [
        [MEMBERS[1], MEMBERS[0], MEMBERS[2]],
        [MEMBERS[0], MEMBERS[0], MEMBERS[1]],
        [MEMBERS[0], Member(name="site-1", public_key=KEYS[2])],
        [MEMBERS[0], Member(name="site-9", public_key=KEYS[0])],
    ],
    ids=["order", "twice", "name twice", "key twice"],
)
def test_a_signed_roster_with_duplicates_or_out_of_order_is_refused(members):
    text = sign_roster(roster(members), PARTNERS)
    with pytest.raises(RosterMismatch, match="twice, or out of order"):
        read_roster(text, pin())


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"roster": "{}", "signatures": {}}', "\0"])
def test_what_is_no_roster_is_refused_by_name(text):
    with pytest.raises(RosterMismatch, match="not a valid"):
        read_roster(text, pin())


def test_a_signature_for_another_purpose_is_worth_nothing():
    signed = json.loads(sign_roster(roster(), PARTNERS[:1]))
    bare = PARTNERS[1].sign(signed["roster"].encode()).hex()
    signed["signatures"][PARTNERS[1].public_hex] = bare
    with pytest.raises(RosterMismatch, match=r"^1 of"):
        read_roster(json.dumps(signed), pin())
