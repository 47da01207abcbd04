"""Heads of a site's audit log and ledger, signed by the site, and counter-signed as a witness does.

Cutting the newest records off a log leaves a valid shorter one. So others keep its newest head and
length: the coordinator, and through it the other sites, none of whom can forge one.
"""

from collections.abc import Iterator
from pathlib import Path

from lepton_common.durable import write_atomic
from lepton_common.errors import AuditRolledBack, HeadsInvalid
from lepton_common.identity.keys import SigningKey
from lepton_common.identity.roster import Roster
from lepton_common.identity.signed import Signed, sign, signers
from lepton_common.strict import Digest, Name, Natural, NotNegative, parse_json, record, to_json

MOST_CHARACTERS = 4096  # of a statement; none is half as long


@record
class Head:
    """How far a log went.

    Attributes:
        hash: of its newest record.
        length: number of its records.
    """

    hash: Digest
    length: Natural


@record
class Heads:
    """How far a site's logs went.

    Attributes:
        federation: the federation's name.
        site: the site's.
        audit: of its audit log.
        ledger: of its privacy ledger.
    """

    federation: Name
    site: Name
    audit: Head
    ledger: Head

    def follows(self, before: "Heads") -> bool:
        """Says whether logs that went as far as ``before`` can have gone so far."""
        return all(
            later.length > earlier.length or later == earlier
            for later, earlier in ((self.audit, before.audit), (self.ledger, before.ledger))
        )


@record
class Witnessed:
    """What the coordinator saw.

    Attributes:
        heads: text of the site's signed heads.
        time: when, in seconds since 1970, by the coordinator's clock.
    """

    heads: str
    time: NotNegative


def sign_heads(key: SigningKey, heads: Heads) -> str:
    """Returns the text of heads, signed by their site."""
    text = to_json(heads)
    return to_json(Signed(document=text, signatures={key.public_hex: sign(key, "heads", text)}))


def read_heads(text: str, roster: Roster) -> Heads:
    """Returns the heads in a text.

    Raises:
        HeadsInvalid: they are damaged, of no site of the roster, or not signed by it.
    """
    try:
        signed = parse_json(Signed, text[:MOST_CHARACTERS])
        heads = parse_json(Heads, signed.document)
    except ValueError as error:
        raise HeadsInvalid(f"Heads of logs are {error}.") from None
    keys = {member.name: member.public_key for member in roster.members}
    if heads.federation != roster.federation or heads.site not in keys:
        raise HeadsInvalid(f"Heads of {heads.site}'s logs are of no site of the roster.")
    if keys[heads.site] not in signers(signed, "heads"):
        raise HeadsInvalid(f"Heads of {heads.site}'s logs are not signed by that site.")
    return heads


def counter_sign(key: SigningKey, text: str, time: float) -> str:
    """Returns the coordinator's statement that it saw signed heads at a time."""
    document = to_json(Witnessed(heads=text, time=time))
    signature = sign(key, "witness", document)
    return to_json(Signed(document=document, signatures={key.public_hex: signature}))


def read_witnessed(text: str, roster: Roster) -> tuple[Heads, float]:
    """Returns the heads in a coordinator's statement, and when it saw them.

    Raises:
        HeadsInvalid: it is damaged, or not signed by the roster's coordinator and the site.
    """
    try:
        signed = parse_json(Signed, text[:MOST_CHARACTERS])
        witnessed = parse_json(Witnessed, signed.document)
    except ValueError as error:
        raise HeadsInvalid(f"A witness's statement is {error}.") from None
    key = roster.coordinator.public_key if roster.coordinator else None
    if key not in signers(signed, "witness"):
        raise HeadsInvalid("A witness's statement is not signed by the roster's coordinator.")
    return read_heads(witnessed.heads, roster), witnessed.time


@record
class _Kept:
    statements: dict[Name, str]


class WitnessFile:
    """The newest statement about each site of a roster, on disk."""

    def __init__(self, path: Path) -> None:
        """Opens the file; what it holds is verified where it is used.

        Raises:
            HeadsInvalid: the file is damaged.
        """
        self._path = path
        self._kept: dict[str, str] = {}
        if path.exists():
            try:
                kept = parse_json(_Kept, path.read_text(encoding="utf-8"))
            except (ValueError, OSError) as error:
                raise HeadsInvalid(f"{path} is damaged; put it away: {error}.") from None
            self._kept = dict(kept.statements)

    def newest(self, site: str, roster: Roster) -> tuple[str, Heads, float] | None:
        """Returns the statement about a site under its key of today; None where there is none."""
        text = self._kept.get(site)
        try:
            return None if text is None else (text, *read_witnessed(text, roster))
        except HeadsInvalid:
            return None

    def all(self, roster: Roster) -> Iterator[tuple[str, str]]:
        """Yields the sites of a roster with the statements about them."""
        for member in roster.members:
            if found := self.newest(member.name, roster):
                yield member.name, found[0]

    def keep(self, text: str, roster: Roster) -> bool:
        """Keeps a statement that is newer than what is here, and says whether it is.

        Raises:
            HeadsInvalid: see `read_witnessed`.
            AuditRolledBack: the site's logs lack what they held at an earlier time.
        """
        heads, time = read_witnessed(text, roster)
        if before := self.newest(heads.site, roster):
            _, known, seen = before
            if heads == known or (time <= seen and known.follows(heads)):
                return False
            if not heads.follows(known):
                raise AuditRolledBack(
                    f"The logs of {heads.site} lack records that were witnessed: {known.audit}, "
                    f"{known.ledger}; an older copy was put back there."
                )
        names = {member.name for member in roster.members}
        kept = {name: kept for name, kept in self._kept.items() if name in names}
        self._kept = {**kept, heads.site: text}
        write_atomic(self._path, to_json(_Kept(statements=self._kept)).encode())
        return True


def brief(heads: Heads, time: float) -> dict[str, str | int | float]:
    """Returns what a log keeps of a statement."""
    return {
        "site": heads.site,
        "audit": heads.audit.hash,
        "audit_length": heads.audit.length,
        "ledger": heads.ledger.hash,
        "ledger_length": heads.ledger.length,
        "time": time,
    }
