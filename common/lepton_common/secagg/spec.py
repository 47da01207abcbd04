"""The round specification: everything that all sites of a round must see alike, and its hash."""

import math
import struct
from dataclasses import dataclass
from functools import cached_property

from lepton_common.errors import MalformedMessage, PolicyViolation, RosterMismatch
from lepton_common.secagg.encoding import Reader, i8, lp, tagged_hash
from lepton_common.secagg.ring import Ring

RosterEntry = tuple[str, bytes]  # a site's name, and its 32-byte Ed25519 public key
SUITE = "SA1-X25519-HKDFSHA256-AES256CTR-Shamir(2^256+297)-v1"
WEIGHT_BITS = 16  # fraction bits of a masked weight
_MOST_SITES = 1000
_LARGEST = 1 << 40


def threshold(sites: int, colluders: int) -> int:
    """Returns t = floor((n + f) / 2) + 1: two survivor lists cannot both collect t signatures."""
    return (sites + colluders) // 2 + 1


def default_colluders(sites: int) -> int:
    """Returns f = floor((n - 1) / 3), the usual bound on colluding sites in a roster of n."""
    return (sites - 1) // 3


def least_survivors(sites: int, colluders: int, quorum: float = 0.0) -> int:
    """Returns how many sites must be in a sum: the threshold, and three where there are three.

    A sum of two is open to either of the two. A run may ask for a larger share of the sites.
    """
    return max(threshold(sites, colluders), min(3, sites), math.ceil(quorum * sites))


@dataclass(frozen=True)
class RoundSpec:
    """What a round of secure aggregation is about.

    Attributes:
        federation: name of the federation.
        run_id: 16 bytes that name the run.
        round: number of the attempt, from 1, growing over the whole run.
        roster: (site name, 32-byte Ed25519 public key) of the cohort, sorted by name.
        colluders: f, the colluding sites tolerated.
        threshold: t, the sites needed to unmask.
        min_survivors: fewest sites in a sum.
        dimension: d, number of values.
        width: bits of the ring.
        clip: bound on each value.
        weight_bits: fraction bits of a site's masked weight.
        layout_hash: 32 bytes; names, shapes and types of the values.
        model_hash: 32 bytes; the model that the round starts from.
        app_hash: what else all sites must see alike; may be empty.
        dp: the differential privacy in force.
        retry_of: hashes of earlier specifications on the same model that this one repeats.
    """

    federation: str
    run_id: bytes
    round: int
    roster: tuple[RosterEntry, ...]
    colluders: int
    threshold: int
    min_survivors: int
    dimension: int
    width: int
    clip: float
    weight_bits: int
    layout_hash: bytes
    model_hash: bytes
    app_hash: bytes
    dp: bytes
    retry_of: tuple[bytes, ...] = ()

    def to_bytes(self) -> bytes:
        """Returns the canonical encoding."""
        return lp(
            SUITE.encode(),
            self.federation.encode(),
            self.run_id,
            i8(self.round),
            join_roster(self.roster),
            i8(self.colluders),
            i8(self.threshold),
            i8(self.min_survivors),
            i8(self.dimension),
            i8(self.width),
            struct.pack(">d", self.clip),
            i8(self.weight_bits),
            self.layout_hash,
            self.model_hash,
            self.app_hash,
            self.dp,
            lp(*self.retry_of),
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> "RoundSpec":
        """Parses a specification and checks that it is sound in itself.

        Raises:
            MalformedMessage: not the canonical encoding of one.
            PolicyViolation: a bound that protects the sites does not hold; see `check`.
        """
        reader = Reader(data)
        if reader.text() != SUITE:
            raise MalformedMessage("The round is of another suite; update the older side.")
        federation, run_id, round_ = reader.text(), reader.item(16), reader.number()
        roster = split_roster(reader.item())
        spec = cls(
            federation=federation,
            run_id=run_id,
            round=round_,
            roster=roster,
            colluders=reader.number(),
            threshold=reader.number(),
            min_survivors=reader.number(),
            dimension=reader.number(),
            width=reader.number(),
            clip=reader.double(),
            weight_bits=reader.number(),
            layout_hash=reader.item(32),
            model_hash=reader.item(32),
            app_hash=reader.item(),
            dp=reader.item(),
            retry_of=tuple(Reader(reader.item()).rest(32)),
        )
        reader.end()
        spec.check()
        return spec

    @cached_property
    def hash(self) -> bytes:
        """H0, 32 bytes: names this round and no other."""
        return tagged_hash("spec", self.to_bytes())

    @cached_property
    def roster_hash(self) -> bytes:
        """32 bytes that name the cohort alone; a retry must keep it."""
        return tagged_hash("roster", *map(_join_entry, self.roster))

    @property
    def ring(self) -> Ring:
        """The codec of the round."""
        return Ring(self.width, len(self.roster), self.dimension, self.clip, self.weight_bits)

    @property
    def indices(self) -> range:
        """The 1-based positions of all sites."""
        return range(1, len(self.roster) + 1)

    def key_of(self, index: int) -> bytes:
        """Returns a site's public key, 32 bytes.

        Raises:
            RosterMismatch: there is no such position.
        """
        return key_at(self.roster, index)

    def index_of(self, name: str) -> int:
        """Returns a site's 1-based position.

        Raises:
            RosterMismatch: it is not in the roster.
        """
        return index_in(self.roster, name)

    def check(self) -> None:
        """Checks what makes a round safe whoever proposed it.

        Raises:
            PolicyViolation: naming the bound that does not hold.
        """
        n, f = len(self.roster), self.colluders
        names = [name for name, _ in self.roster]
        sound = {
            "a roster of 2 to 1000 sites": 2 <= n <= _MOST_SITES,
            "site names in ascending order": names == sorted(set(names)),
            "a key of its own for each site": len({key for _, key in self.roster}) == n,
            "at least two sites beside the colluders": f <= n - 2,
            "the threshold (n + f) / 2 + 1": self.threshold == threshold(n, f),
            "enough survivors": least_survivors(n, f) <= self.min_survivors <= n,
            "a round number of at least 1": self.round >= 1,
            "between 1 and 2**40 values": 1 <= self.dimension <= _LARGEST,
            "at most 32 weight bits": self.weight_bits <= 32,
            "each earlier round once": len(set(self.retry_of)) == len(self.retry_of),
        }
        broken = [what for what, holds in sound.items() if not holds]
        if broken:
            raise PolicyViolation(f"A round needs {broken[0]}; this one has not.")
        try:
            _ = self.ring
        except ValueError as error:
            raise PolicyViolation(f"The round's ring is not usable: {error}") from None


def join_roster(roster: tuple[RosterEntry, ...]) -> bytes:
    """Returns the encoding of a roster."""
    return lp(*map(_join_entry, roster))


def split_roster(data: bytes) -> tuple[RosterEntry, ...]:
    """Parses what `join_roster` made.

    Raises:
        MalformedMessage: anything but that.
    """
    return tuple(map(_split_entry, Reader(data).rest()))


def key_at(roster: tuple[RosterEntry, ...], index: int) -> bytes:
    """Returns the public key, 32 bytes, of the site at a 1-based position.

    Raises:
        RosterMismatch: there is no such position.
    """
    if not 1 <= index <= len(roster):
        raise RosterMismatch(f"There is no site {index} in this round.")
    return roster[index - 1][1]


def index_in(roster: tuple[RosterEntry, ...], name: str) -> int:
    """Returns a site's 1-based position.

    Raises:
        RosterMismatch: it is not in the roster.
    """
    for index, (member, _) in enumerate(roster, start=1):
        if member == name:
            return index
    raise RosterMismatch(f"The site {name} is not in this round's roster.")


def _join_entry(entry: RosterEntry) -> bytes:
    return lp(entry[0].encode(), entry[1])


def _split_entry(data: bytes) -> RosterEntry:
    reader = Reader(data)
    name, key = reader.text(), reader.item(32)
    reader.end()
    return name, key
