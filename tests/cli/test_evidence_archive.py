"""The file of a pack: each changed byte and each trick of a zip is found, and named."""

import io
import zipfile
from dataclasses import replace

import pytest

from lepton_cli.packs.archive import (
    MANIFEST,
    SIGNATURE,
    Manifest,
    check_signer,
    list_members,
    read_pack,
    write_pack,
)
from lepton_common.errors import (
    AuditError,
    EvidenceAltered,
    EvidenceForeign,
    EvidenceUnreadable,
)
from lepton_common.identity.keys import SigningKey
from lepton_common.identity.roster import Member, Roster, root_of, sign_roster
from lepton_common.identity.signed import Partners

KEY, PARTNER = SigningKey.generate(), SigningKey.generate()
ROSTER = sign_roster(
    Roster(
        federation="toys",
        version=1,
        partners=Partners(keys=[PARTNER.public_hex], threshold=1),
        members=[Member(name="site-1", public_key=KEY.public_hex)],
    ),
    [PARTNER],
)
MEMBERS = {"a.json": b'{"a":1}', "b.md": b"# B", "roster.json": ROSTER.encode()}


def manifest(members, key=KEY):
    return Manifest(
        kind="site",
        run="run-1",
        federation="toys",
        signer="site-1",
        public_key=key.public_hex,
        time="2026-01-01T00:00:00Z",
        made_by="1",
        members=list_members(members),
    )


@pytest.fixture
def pack(tmp_path):
    path = tmp_path / "pack.zip"
    path.write_bytes(write_pack(manifest(MEMBERS), MEMBERS, KEY))
    return path


def rezip(path, members, *, compression=zipfile.ZIP_STORED, mode=0o100644):
    """Writes an archive of one's own from (name, bytes), as an attacker would."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in members:
            entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            entry.create_system, entry.external_attr = 3, mode << 16
            entry.compress_type = compression
            archive.writestr(entry, data)


def contents(path):
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_a_pack_is_read_as_it_was_written(pack):
    found = read_pack(pack)
    assert found.members == MEMBERS
    assert found.manifest == manifest(MEMBERS)
    assert check_signer(found, root_of(ROSTER)).federation == "toys"
    rezip(pack, contents(pack).items())  # any tool that writes the one form
    assert read_pack(pack).members == MEMBERS


def test_every_single_byte_counts(pack):
    few = {"a.json": b"{}", "b.md": b""}
    data = write_pack(manifest(few), few, KEY)
    for at in range(len(data)):
        pack.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        with pytest.raises(AuditError):
            read_pack(pack)
    for cut in (data[:-1], data + b"\0", b"\0" + data, b""):
        pack.write_bytes(cut)
        with pytest.raises(EvidenceUnreadable):
            read_pack(pack)


@pytest.mark.parametrize("name", [*MEMBERS, MANIFEST, SIGNATURE])
def test_an_altered_member_is_named(pack, name):
    data, held = pack.read_bytes(), contents(pack)[name]
    at = data.index(held) + len(held) // 2
    pack.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    with pytest.raises(EvidenceAltered, match=name):
        read_pack(pack)


@pytest.mark.parametrize("name", MEMBERS)
def test_a_new_manifest_needs_a_new_signature(pack, name):
    held = contents(pack)
    changed = {**MEMBERS, name: MEMBERS[name] + b" "}
    forged = contents_of(write_pack(manifest(changed), changed, SigningKey.generate()))
    rezip(pack, {**forged, SIGNATURE: held[SIGNATURE]}.items())
    with pytest.raises(EvidenceAltered, match=r"manifest\.json"):
        read_pack(pack)


def contents_of(data):
    return contents(io.BytesIO(data))


def test_missing_and_added_members_are_named(pack):
    held = contents(pack)
    rezip(pack, [item for item in held.items() if item[0] != "b.md"])
    with pytest.raises(EvidenceAltered, match=r"missing: b\.md"):
        read_pack(pack)
    rezip(pack, [*held.items(), ("c.md", b"more")])
    with pytest.raises(EvidenceAltered, match=r"added.*c\.md"):
        read_pack(pack)
    rezip(pack, [item for item in held.items() if item[0] != SIGNATURE])
    with pytest.raises(EvidenceAltered, match=r"manifest\.sig is missing"):
        read_pack(pack)


@pytest.mark.parametrize("name", ["../b.md", "/etc/b.md", "a/b.md", "B.md", "b\n.md", "b"])
def test_a_name_that_is_no_members_is_refused(pack, name):
    rezip(pack, [*contents(pack).items(), (name, b"x")])
    with pytest.raises(EvidenceUnreadable, match="no name"):
        read_pack(pack)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_tricks_of_zips_are_refused(pack):
    held = list(contents(pack).items())
    rezip(pack, [*held, held[-1]])
    with pytest.raises(EvidenceUnreadable, match="twice"):
        read_pack(pack)
    rezip(pack, held, mode=0o120777)
    with pytest.raises(EvidenceUnreadable, match="link"):
        read_pack(pack)
    rezip(pack, [*held, ("c.md", bytes(10**6))], compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(EvidenceUnreadable, match="compressed"):
        read_pack(pack)
    rezip(pack, [*held, *((f"c{i}.md", b"") for i in range(100))])
    with pytest.raises(EvidenceUnreadable, match="members"):
        read_pack(pack)


def test_a_member_cannot_claim_the_bytes_of_others(pack):
    rezip(pack, [*contents(pack).items(), ("c.md", b"x")])
    data = bytearray(pack.read_bytes())
    at = data.rindex(b"c.md")  # its name in the directory, after sizes and offset
    most = (len(data) - 100).to_bytes(4, "little")
    data[at - 26 : at - 18] = most + most
    data[at - 4 : at] = bytes(4)
    pack.write_bytes(data)
    with pytest.raises(EvidenceUnreadable, match="shares its bytes"):
        read_pack(pack)
    data[at - 26 : at - 18] = b"\xff\xff\xff\x7f" * 2
    pack.write_bytes(data)
    with pytest.raises(EvidenceUnreadable, match="more bytes than there are"):
        read_pack(pack)


def test_a_pack_larger_than_any_is_not_read(pack):
    with pack.open("r+b") as file:
        file.truncate(2**30 + 1)  # sparse
    with pytest.raises(EvidenceUnreadable, match="larger"):
        read_pack(pack)


def test_the_signer_must_be_in_the_roster_that_the_root_begins(pack):
    with pytest.raises(EvidenceForeign, match=r"roster\.json"):
        check_signer(read_pack(pack), "0" * 64)
    stranger = SigningKey.generate()
    for said in (
        manifest(MEMBERS, stranger),
        replace(manifest(MEMBERS), signer="site-2"),
        replace(manifest(MEMBERS), kind="coordinator"),
        replace(manifest(MEMBERS), federation="others"),
    ):
        key = stranger if said.public_key == stranger.public_hex else KEY
        pack.write_bytes(write_pack(said, MEMBERS, key))
        with pytest.raises(EvidenceForeign, match="names no"):
            check_signer(read_pack(pack), root_of(ROSTER))
