"""A roster counts only as k of its partners, version by version, have signed it, to the byte."""

import json
from datetime import date

import pytest

from lepton_common.errors import RosterExpired, RosterInvalid, RosterRolledBack
from lepton_common.identity.keys import SigningKey
from lepton_common.identity.roster import (
    Coordinator,
    Member,
    Person,
    Roster,
    check_newer,
    read_roster,
    read_roster_files,
    root_of,
    sign_roster,
)
from lepton_common.identity.signed import Partners

PARTNERS = [SigningKey.generate() for _ in range(3)]
STRANGERS = [SigningKey.generate() for _ in range(3)]
KEYS = [SigningKey.generate().public_hex for _ in range(5)]
MEMBERS = [Member(name=f"site-{i}", public_key=key) for i, key in enumerate(KEYS[:3], start=1)]
SERVER = Coordinator(name="server", public_key=KEYS[3], authority="", hosts=["localhost"], port=443)
CAROL = Person(name="carol", public_key=KEYS[4], authority="", roles=["lead"])


def partners(threshold=2, keys=PARTNERS):
    return Partners(keys=[key.public_hex for key in keys], threshold=threshold)


def roster(version=1, members=MEMBERS, **changes):
    return Roster(
        federation=changes.pop("federation", "hospitals"), version=version,
        partners=changes.pop("partners", partners()), members=list(members), **changes,
    )  # fmt: skip


def signed_by(signers, **changes):
    return sign_roster(roster(**changes), [PARTNERS[i] for i in signers])


def read(text):
    return read_roster(text, root_of(text))


@pytest.mark.parametrize("signers", [(0, 1), (0, 2), (2, 1), (0, 1, 2)])
def test_any_k_of_the_partners_suffice(signers):
    assert read(signed_by(signers)) == roster()


@pytest.mark.parametrize("signers", [(), (0,), (2,)])
def test_fewer_than_k_do_not(signers):
    with pytest.raises(RosterInvalid, match=f"^{len(signers)} of the partners"):
        read(signed_by(signers))


def test_one_partner_that_signs_twice_is_one():
    text = signed_by((0,))
    (version,) = json.loads(text)["versions"]
    (key, signature), = version["signatures"].items()  # fmt: skip
    twice = text.replace(f'"{key}"', f'"{key}":"{signature}","{key}"', 1)
    assert twice != text
    with pytest.raises(RosterInvalid, match=r"^1 of"):
        read(twice)
    doubled = partners(2, [PARTNERS[0]] * 2)
    with pytest.raises(RosterInvalid, match="more partners' signatures than there are"):
        read(signed_by((0,), partners=doubled))


def test_a_stranger_does_not_count():
    with pytest.raises(RosterInvalid, match=r"^1 of"):
        read(sign_roster(roster(), [PARTNERS[0], STRANGERS[0]]))


def test_a_signature_under_another_partners_name_does_not_count():
    file = json.loads(signed_by((0, 1)))
    signatures = file["versions"][0]["signatures"]
    first, second = signatures
    signatures[first], signatures[second] = signatures[second], signatures[first]
    with pytest.raises(RosterInvalid, match=r"^0 of"):
        read(json.dumps(file))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("site-2", "site-7"),
        pytest.param(KEYS[1], "a" * 64, id="another key"),
        ("hospitals", "hospitalz"),
        (r"\"version\":1", r"\"version\": 1"),
        (r"\"threshold\":2", r"\"threshold\":1"),
    ],
)
def test_no_change_to_the_signed_text_passes(old, new):
    text = signed_by((0, 1, 2))
    altered = text.replace(old, new, 1)
    assert altered != text
    with pytest.raises(RosterInvalid):
        read(altered)
    with pytest.raises(RosterInvalid, match="root"):
        read_roster(altered, root_of(text))


@pytest.mark.parametrize(
    "changes",
    [
        {"members": [MEMBERS[1], MEMBERS[0], MEMBERS[2]]},
        {"members": [MEMBERS[0], MEMBERS[0], MEMBERS[1]]},
        {"members": [MEMBERS[0], Member(name="site-1", public_key=KEYS[2])]},
        {"members": [MEMBERS[0], Member(name="site-9", public_key=KEYS[0])]},
        {"coordinator": Coordinator(**{**vars(SERVER), "public_key": KEYS[0]})},
        {"coordinator": Coordinator(**{**vars(SERVER), "name": "site-1"})},
        {"people": [CAROL, CAROL]},
        {"people": [Person(**{**vars(CAROL), "public_key": KEYS[0]})]},
    ],
    ids=["order", "twice", "name twice", "key twice", "server's key", "server's name",
         "person twice", "person's key"],
)  # fmt: skip
def test_a_signed_roster_in_which_a_name_or_key_stands_for_two_is_refused(changes):
    with pytest.raises(RosterInvalid, match=r"twice, or out of order|to two of those"):
        read(signed_by((0, 1, 2), **changes))


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"versions": [{}]}', "\0"])
def test_what_is_no_roster_is_refused_by_name(text):
    with pytest.raises(RosterInvalid, match="not a valid"):
        read_roster(text, "0" * 64)


def test_a_file_without_a_version_is_refused():
    with pytest.raises(RosterInvalid, match="holds no version"):
        read_roster('{"versions": []}', "0" * 64)


def test_a_signature_for_another_purpose_is_worth_nothing():
    file = json.loads(signed_by((0,)))
    (version,) = file["versions"]
    bare = PARTNERS[1].sign(version["document"].encode()).hex()
    version["signatures"][PARTNERS[1].public_hex] = bare
    with pytest.raises(RosterInvalid, match=r"^1 of"):
        read(json.dumps(file))


def chain(*steps):
    """Returns a file of versions; each step is (signers, changes)."""
    text = None
    for version, (signers, changes) in enumerate(steps, start=1):
        changes = {"version": version, **changes}
        text = sign_roster(roster(**changes), signers, text)
    return text


def test_the_newest_version_counts():
    text = chain((PARTNERS, {}), (PARTNERS[:2], {"members": MEMBERS[:2]}))
    assert read(text) == roster(2, MEMBERS[:2])
    assert root_of(text) == root_of(chain((PARTNERS, {})))


def test_partners_change_only_with_the_old_and_the_new_ones_signatures():
    new = {"partners": partners(2, STRANGERS)}
    text = chain((PARTNERS, {}), (PARTNERS[:2] + STRANGERS[:2], new), (STRANGERS[1:], new))
    assert read(text).version == 3
    for signers in (PARTNERS, STRANGERS, PARTNERS[:1] + STRANGERS, PARTNERS + STRANGERS[:1]):
        with pytest.raises(RosterInvalid, match=r"of the partners have signed version 2"):
            read(chain((PARTNERS, {}), (signers, new)))
    with pytest.raises(RosterInvalid, match=r"^0 of the partners have signed version 3"):
        read(chain((PARTNERS, {}), (PARTNERS + STRANGERS, new), (PARTNERS, new)))


@pytest.mark.parametrize(
    "changes",
    [{"version": 3}, {"version": 1}, {"federation": "banks"}],
    ids=["gap", "same", "name"],
)
def test_a_version_that_is_not_the_next_is_refused(changes):
    with pytest.raises(RosterInvalid, match="not followed by the next"):
        read(chain((PARTNERS, {}), (PARTNERS, changes)))


def test_the_first_version_is_number_one():
    with pytest.raises(RosterInvalid, match="not number 1"):
        read(chain((PARTNERS, {"version": 2})))


def test_a_file_that_lacks_a_known_version_or_swaps_one_is_rolled_back():
    old = chain((PARTNERS, {}))
    new = chain((PARTNERS, {}), (PARTNERS, {"members": MEMBERS[:2]}))
    other = chain((PARTNERS, {}), (PARTNERS, {"members": MEMBERS[1:]}))
    check_newer(old, new)
    check_newer(new, new)
    for known, text in ((new, old), (new, other), (other, new)):
        with pytest.raises(RosterRolledBack):
            check_newer(known, text)


def test_a_roster_ends_after_its_last_day():
    dated = roster(until="2026-11-30")
    dated.check_date(date(2026, 11, 30))
    with pytest.raises(RosterExpired, match="2026-11-30"):
        dated.check_date(date(2026, 12, 1))
    roster().check_date(date(9999, 12, 31))


def test_a_roster_is_read_from_files(tmp_path):
    text = signed_by((0, 1))
    path, root = tmp_path / "roster.json", tmp_path / "roster.root"
    path.write_text(text)
    with pytest.raises(RosterInvalid, match="Cannot read"):
        read_roster_files(path, root)
    root.write_text(root_of(text) + "\n")
    assert read_roster_files(path, root) == roster()
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(RosterInvalid, match="Cannot read"):
        read_roster_files(path, root)
