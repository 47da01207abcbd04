"""The file of an evidence pack: members, a manifest of their hashes, and a signature on that.

There is one form only: a zip without compression, members in order, no date. A reader makes it
anew from what it has read and compares every byte, so nothing can hide between members.
"""

import io
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from lepton_common.arrays import digest_of
from lepton_common.errors import (
    EvidenceAltered,
    EvidenceForeign,
    EvidenceUnreadable,
    RosterInvalid,
)
from lepton_common.identity.keys import SigningKey
from lepton_common.identity.roster import Roster, read_roster
from lepton_common.identity.signed import Kind, Signed, sign, signers
from lepton_common.strict import Digest, Name, Natural, parse_json, record, to_json

MANIFEST, SIGNATURE, ROSTER = "manifest.json", "manifest.sig", "roster.json"
PackKind = Literal["site", "coordinator"]
_SIGNED_AS: Kind = "evidence"
_NAME = re.compile(r"[a-z][a-z0-9-]*(\.[a-z0-9]+){1,2}")
_MOST_BYTES, _MOST_MEMBERS = 2**30, 64
_HEADER_BYTES = 30  # of a zip's local header, before the name


@record
class Member:
    """What the manifest says of one member.

    Attributes:
        name: its name in the archive.
        sha256: hexadecimal digest of its bytes.
        size: how many.
    """

    name: str
    sha256: Digest
    size: Natural


@record
class Manifest:
    """What a pack is, and holds.

    Attributes:
        format: of this archive.
        kind: who made it: a site, or the coordinator.
        run: name of the run.
        federation: name of the federation.
        signer: who made it, by the name in the roster.
        public_key: the key that signs, as in the roster.
        time: of the newest record shown, in UTC.
        made_by: version of Lepton.
        members: all others than manifest and signature, by name in ascending order.
    """

    format: Literal["lepton-evidence/1"] = "lepton-evidence/1"
    kind: PackKind
    run: Name
    federation: Name
    signer: Name
    public_key: Digest
    time: Annotated[str, Field(max_length=32)]
    made_by: Annotated[str, Field(max_length=64)]
    members: list[Member]


@dataclass(frozen=True)
class Pack:
    """A pack as it was read.

    Attributes:
        path: its file, for messages.
        manifest: see `Manifest`.
        members: bytes by name, without manifest and signature.
    """

    path: Path
    manifest: Manifest
    members: dict[str, bytes]

    def where(self, member: str) -> Path:
        """Returns what messages call a member."""
        return self.path / member


def list_members(members: dict[str, bytes]) -> list[Member]:
    """Returns what a manifest says of members."""
    return [
        Member(name=name, sha256=digest_of(data), size=len(data))
        for name, data in sorted(members.items())
    ]


def write_pack(manifest: Manifest, members: dict[str, bytes], key: SigningKey) -> bytes:
    """Returns the archive, signed; the same bytes for the same members and manifest."""
    text = to_json(manifest)
    signature = sign(key, _SIGNED_AS, text)
    return _archive(
        {MANIFEST: text.encode(), SIGNATURE: signature.encode(), **dict(sorted(members.items()))}
    )


def read_pack(path: Path) -> Pack:
    """Reads an archive and checks it against its own manifest, and that against its signature.

    Who may sign is `check_signer`'s to say.

    Raises:
        EvidenceUnreadable: it is not an archive of the one form.
        EvidenceAltered: a member is not what the manifest says, is missing or was added, or the
            manifest is not what was signed.
    """
    data = _read_bounded(path)
    members = _members(path, data)
    contents = dict(members)
    text, signature = contents.pop(MANIFEST), contents.pop(SIGNATURE)
    try:
        manifest = parse_json(Manifest, text.decode())
    except ValueError as error:
        raise EvidenceAltered(f"{path}: {MANIFEST} was altered: {error}.") from None
    _check_members(path, manifest, contents)
    try:
        signed = parse_json(
            Signed,
            to_json(
                Signed(document=text.decode(), signatures={manifest.public_key: signature.decode()})
            ),
        )
    except ValueError:
        raise EvidenceAltered(f"{path}: {SIGNATURE} is no signature; it was altered.") from None
    if not signers(signed, _SIGNED_AS):
        raise EvidenceAltered(
            f"{path}: the signature {SIGNATURE} is not on this {MANIFEST}; one was altered."
        )
    again = _archive(members)
    if again != data:
        at = next((i for i, (a, b) in enumerate(zip(again, data, strict=False)) if a != b), -1)
        raise EvidenceUnreadable(
            f"{path}: the archive around '{_member_at(members, at)}' was altered, at byte {at}; "
            "its members are as they were signed."
        )
    return Pack(path, manifest, contents)


def check_signer(pack: Pack, root: Digest) -> Roster:
    """Returns the pack's roster, having checked that it starts at a root and names the signer.

    Raises:
        EvidenceForeign: it does not.
    """
    where, manifest = pack.where(ROSTER), pack.manifest
    try:
        roster = read_roster(pack.members[ROSTER].decode(), root)
    except (RosterInvalid, UnicodeDecodeError) as error:
        raise EvidenceForeign(f"{where}: {error}") from None
    key = key_of(roster, manifest.kind, manifest.signer)
    if (manifest.federation, manifest.public_key) != (roster.federation, key):
        raise EvidenceForeign(
            f"{where}: version {roster.version} of the roster of {roster.federation} names no "
            f"{manifest.kind} '{manifest.signer}' with the key that signed this pack."
        )
    return roster


def key_of(roster: Roster, kind: PackKind, name: str) -> str | None:
    """Returns the key that a roster gives the site or the coordinator of that name."""
    if kind == "site":
        return next((m.public_key for m in roster.members if m.name == name), None)
    known = roster.coordinator
    return known.public_key if known is not None and known.name == name else None


def _read_bounded(path: Path) -> bytes:
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise EvidenceUnreadable(f"{path} is larger than any evidence pack.")
        return path.read_bytes()
    except OSError as error:
        raise EvidenceUnreadable(f"Cannot read {path}: {error.strerror}.") from None


def _members(path: Path, data: bytes) -> dict[str, bytes]:
    """Returns what is in an archive, in its order; nothing is unpacked before it is bounded."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, UnicodeDecodeError, ValueError, OSError):
        raise EvidenceUnreadable(f"{path} is no evidence pack, or its end was altered.") from None
    members: dict[str, bytes] = {}
    for entry in entries[: _MOST_MEMBERS + 1]:
        name, size = entry.filename, entry.file_size
        if name in members:
            raise EvidenceUnreadable(f"{path}: '{name}' is in it twice.")
        if not _NAME.fullmatch(name):
            raise EvidenceUnreadable(f"{path}: {name!a} is no name of a pack's member.")
        if entry.external_attr >> 16 != _FILE_MODE:
            raise EvidenceUnreadable(f"{path}: '{name}' is a link or no plain file.")
        start = entry.header_offset + _HEADER_BYTES + len(name)
        if entry.compress_type != zipfile.ZIP_STORED or size != entry.compress_size:
            raise EvidenceUnreadable(f"{path}: '{name}' is compressed; a pack's members are not.")
        if start < 0 or start + size > len(data):
            raise EvidenceUnreadable(f"{path}: '{name}' claims more bytes than there are.")
        members[name] = data[start : start + size]
        if sum(map(len, members.values())) > len(data):
            raise EvidenceUnreadable(f"{path}: '{name}' shares its bytes with another member.")
    if len(entries) > _MOST_MEMBERS:
        raise EvidenceUnreadable(f"{path} has {len(entries)} members; packs have few.")
    for needed in (MANIFEST, SIGNATURE):
        if needed not in members:
            raise EvidenceAltered(f"{path}: {needed} is missing.")
    return members


_FILE_MODE = 0o100644


def _check_members(path: Path, manifest: Manifest, members: dict[str, bytes]) -> None:
    said = {member.name: member for member in manifest.members}
    if missing := sorted(set(said) - set(members)):
        raise EvidenceAltered(f"{path}: missing: {', '.join(missing)}.")
    if extra := sorted(set(members) - set(said)):
        raise EvidenceAltered(f"{path}: added, and not in {MANIFEST}: {', '.join(extra)}.")
    if altered := [m.name for m in list_members(members) if m != said[m.name]]:
        raise EvidenceAltered(f"{path}: not as {MANIFEST} has it: {', '.join(altered)}.")


def _archive(members: dict[str, bytes]) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_STORED) as archive:
        for name, data in members.items():
            entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            entry.create_system = 3  # Unix, whatever made it
            entry.external_attr = _FILE_MODE << 16
            archive.writestr(entry, data)
    return made.getvalue()


def _member_at(members: dict[str, bytes], at: int) -> str:
    """Returns the member whose part of the archive holds a byte; the last one for its directory."""
    end, name = 0, ""
    for name, data in members.items():
        end += _HEADER_BYTES + len(name) + len(data)
        if 0 <= at < end:
            break
    return name
