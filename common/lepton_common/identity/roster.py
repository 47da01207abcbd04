"""The roster: who belongs to a federation, under which keys, version by version.

Each version is signed by k of its partners, and by k of the previous version's, as roots are in
The Update Framework. Whoever holds the digest of version 1, its root, can check all of them. The
server's operator holds no partner's key, so the server cannot add, drop or swap a site unnoticed.
"""

import hashlib
from collections import Counter
from datetime import date
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from lepton_common.durable import write_atomic
from lepton_common.errors import RosterExpired, RosterInvalid, RosterRolledBack
from lepton_common.identity.keys import SigningKey
from lepton_common.identity.signed import Kind, Partners, Signed, sign
from lepton_common.strict import Count, Day, Digest, Name, parse_json, record, to_json

ROSTER: Kind = "roster"
Role = Literal["administrator", "lead", "auditor"]
Host = Annotated[str, Field(pattern=r"^[A-Za-z0-9]([A-Za-z0-9.:-]{0,251}[A-Za-z0-9])?$")]


@record
class Member:
    """A site of the federation.

    Attributes:
        name: the site's name.
        public_key: its hexadecimal Ed25519 key.
        authority: PEM certificate of that key, which issues the site's own short-lived ones; ""
            in a simulation, which has no network.
        node_key: the key that Flower knows the site by, in OpenSSH's form; "" in a simulation.
    """

    name: Name
    public_key: Digest
    authority: str = ""
    node_key: str = ""


@record
class Coordinator:
    """The server of the federation.

    Attributes:
        name: its name.
        public_key: its hexadecimal Ed25519 key.
        authority: PEM certificate of that key; "" in a simulation.
        hosts: names and addresses that it answers under; none in a simulation.
        port: its one public port.
    """

    name: Name
    public_key: Digest
    authority: str
    hosts: list[Host]
    port: Annotated[int, Field(ge=1, le=65535)]


@record
class Person:
    """Someone who may call the control service.

    Attributes:
        name: a name for logs and policies.
        public_key: hexadecimal Ed25519 key.
        authority: PEM certificate of that key.
        roles: what they may do.
    """

    name: Name
    public_key: Digest
    authority: str
    roles: list[Role]


@record
class Roster:
    """All sites of a federation, and who runs and watches it.

    Attributes:
        federation: its name.
        version: 1, and one more with each change.
        until: the last day on which it is good; None in a simulation.
        partners: who signs it, and must sign the next version too.
        coordinator: the server; None where nobody has joined as such.
        members: the sites, by name in ascending order.
        people: by name in ascending order.
    """

    federation: Name
    version: Count
    until: Day | None = None
    partners: Partners
    coordinator: Coordinator | None = None
    members: list[Member]
    people: list[Person] = Field(default_factory=list)

    def check_date(self, today: date) -> None:
        """Refuses a roster past its last day.

        Raises:
            RosterExpired: it is.
        """
        if self.until is not None and today.isoformat() > self.until:
            raise RosterExpired(
                f"Version {self.version} of the roster was good until {self.until}; ask the "
                "coordinator for a newer one, which the partners must have signed."
            )


@record
class RosterFile:
    """All versions of a roster, the first one first.

    Attributes:
        versions: see `Signed`; each holds the text of a `Roster`.
    """

    versions: list[Signed]


def sign_roster(roster: Roster, partners: list[SigningKey], before: str | None = None) -> str:
    """Returns the text of a roster file in which a version signed by partners is the newest."""
    text = to_json(roster)
    signatures = {key.public_hex: sign(key, ROSTER, text) for key in partners}
    return with_version(before, Signed(document=text, signatures=signatures))


def with_version(before: str | None, signed: Signed) -> str:
    """Returns the text of a roster file with one more version, unchecked.

    Raises:
        RosterInvalid: what was before is no roster file.
    """
    return to_json(RosterFile(versions=[*(_versions(before) if before else []), signed]))


def root_of(text: str) -> Digest:
    """Returns the digest of version 1 in the text of a roster file, as a site pins it.

    Raises:
        RosterInvalid: it is no roster file.
    """
    return _digest(_versions(text)[0])


def read_roster(text: str, root: Digest) -> Roster:
    """Returns the newest version in the text of a roster file, having checked all of them.

    Raises:
        RosterInvalid: see `read_versions`.
    """
    return read_versions(text, root)[-1]


@lru_cache(maxsize=4)
def read_versions(text: str, root: Digest) -> tuple[Roster, ...]:
    """Returns all versions in the text of a roster file, checked, the first one first.

    The sites of a simulation share what one of them has read: each would hold it all again.

    Raises:
        RosterInvalid: it is none, or does not start at ``root``, or too few partners have signed
            one of the versions.
    """
    versions = _versions(text)
    if _digest(versions[0]) != root:
        raise RosterInvalid(
            "The roster does not start at the root that is pinned here, or that --root gives: "
            "compare all 64 digits with a partner."
        )
    rosters = [_parse(signed) for signed in versions]
    if rosters[0].version != 1:
        raise RosterInvalid("The roster's first version is not number 1.")
    _check_signed(versions[0], rosters[0], rosters[0].partners)
    for (before, after), signed in zip(pairwise(rosters), versions[1:], strict=True):
        if (after.federation, after.version) != (before.federation, before.version + 1):
            raise RosterInvalid(
                f"Version {before.version} of the roster is not followed by the next one."
            )
        _check_signed(signed, after, before.partners)
        _check_signed(signed, after, after.partners)
    return tuple(rosters)


def read_roster_files(path: Path, root: Path) -> Roster:
    """Returns the newest version in a roster file, whose root stands in another file.

    Raises:
        RosterInvalid: as `read_roster`, or a file cannot be read.
    """
    try:
        return read_roster(path.read_text(encoding="utf-8"), root.read_text().strip())
    except (OSError, UnicodeDecodeError):
        raise RosterInvalid(
            f"Cannot read {path} and {root.name} beside it: join the federation first, by "
            "'lepton site join' (or server, person)."
        ) from None


def take_roster(path: Path, root: Path, text: str) -> Roster:
    """Puts a roster file in the place of one that it goes on from; returns its newest version.

    Args:
        path: the roster file here.
        root: the file of the root that is pinned.
        text: of the roster file that is offered.

    Raises:
        RosterInvalid: see `read_roster`.
        RosterRolledBack: see `check_newer`.
    """
    roster = read_roster(text, root.read_text(encoding="utf-8").strip())
    check_newer(path.read_text(encoding="utf-8"), text)
    write_atomic(path, text.encode())
    return roster


def check_newer(known: str, text: str) -> None:
    """Refuses a roster file that does not go on from the one that is known here.

    Raises:
        RosterRolledBack: it is older, or tells another story.
    """
    ours, theirs = _versions(known), _versions(text)
    if [v.document for v in ours] != [v.document for v in theirs[: len(ours)]]:
        raise RosterRolledBack(
            f"This site knows {len(ours)} versions of the roster, and the new file lacks one of "
            "them or has another in its place; ask the partners which is theirs."
        )


def _versions(text: str) -> list[Signed]:
    try:
        versions = parse_json(RosterFile, text).versions
    except ValueError as error:
        raise RosterInvalid(f"The roster is {error}; ask a partner for it again.") from None
    if not versions:
        raise RosterInvalid("The roster file holds no version; ask a partner for it again.")
    return versions


def _digest(signed: Signed) -> Digest:
    return hashlib.sha256(signed.document.encode()).hexdigest()


def _parse(signed: Signed) -> Roster:
    try:
        roster = parse_json(Roster, signed.document)
    except ValueError as error:
        raise RosterInvalid(f"The roster is {error}; ask a partner for it again.") from None
    check_roster(roster)
    return roster


def check_roster(roster: Roster) -> None:
    """Checks what signatures do not say.

    Raises:
        RosterInvalid: a name or a key stands for two, or no number of partners could sign it.
    """
    at = f"Version {roster.version} of the roster"
    for entries in (roster.members, roster.people):
        names = [entry.name for entry in entries]
        if names != sorted(set(names)):
            raise RosterInvalid(f"{at} lists a name twice, or out of order.")
    everyone = [*roster.members, *roster.people]
    everyone += [roster.coordinator] if roster.coordinator else []
    for what in ("name", "public_key"):
        (most, count), *_ = Counter(getattr(e, what) for e in everyone).most_common(1) or [("", 0)]
        if count > 1:
            raise RosterInvalid(f"{at} gives {most} to two of those that it lists.")
    if not roster.partners.threshold <= len(set(roster.partners.keys)):
        raise RosterInvalid(f"{at} asks for more partners' signatures than there are partners.")


def _check_signed(signed: Signed, roster: Roster, partners: Partners) -> None:
    found = len(partners.signers(signed, ROSTER))
    if found < partners.threshold:
        raise RosterInvalid(
            f"{found} of the partners have signed version {roster.version} of the roster and "
            f"{partners.threshold} must."
        )
