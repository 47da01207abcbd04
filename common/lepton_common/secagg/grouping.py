"""Which sites sum together: a shuffle in which every site has a part and that nobody can steer.

Each site first commits to a secret of its own and reveals it once all have committed (Blum
1983). With one honest site the order is random. The floors of a round hold in each group
whatever the draw, so privacy does not rest on it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from lepton_common.errors import InconsistentView, PolicyViolation
from lepton_common.secagg.encoding import Reader, i8, idx, lp, tagged_hash
from lepton_common.secagg.messages import (
    Signed,
    join_by_site,
    join_signed,
    split_by_site,
    split_signed,
)
from lepton_common.secagg.spec import RosterEntry, index_in, join_roster, key_at, split_roster

SECRET_BYTES = 32
COMMIT_BYTES = 34


@dataclass(frozen=True)
class Draw:
    """What groups are drawn for.

    Attributes:
        federation: name of the federation.
        run_id: 16 bytes that name the run.
        round: number of the training round.
        roster: (site name, 32-byte Ed25519 public key) of all sites, sorted by name.
        groups: G, number of groups.
        model_hash: 32 bytes; the model that the round starts from.
    """

    federation: str
    run_id: bytes
    round: int
    roster: tuple[RosterEntry, ...]
    groups: int
    model_hash: bytes

    def to_bytes(self) -> bytes:
        """Returns the canonical encoding."""
        return lp(
            self.federation.encode(),
            self.run_id,
            i8(self.round),
            join_roster(self.roster),
            i8(self.groups),
            self.model_hash,
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> "Draw":
        """Parses a draw.

        Raises:
            MalformedMessage: not the canonical encoding of one.
            PolicyViolation: it has no groups of two sites and more.
        """
        reader = Reader(data)
        draw = cls(
            federation=reader.text(),
            run_id=reader.item(16),
            round=reader.number(),
            roster=split_roster(reader.item()),
            groups=reader.number(),
            model_hash=reader.item(32),
        )
        reader.end()
        names = [name for name, _ in draw.roster]
        if names != sorted(set(names)) or not 2 <= draw.groups <= len(names) // 2:
            raise PolicyViolation("A draw needs sites in order, and two or more for each group.")
        return draw

    @cached_property
    def hash(self) -> bytes:
        """32 bytes that name this draw and no other."""
        return tagged_hash("draw", self.to_bytes())

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

    def commitment(self, index: int, secret: bytes) -> bytes:
        """Returns what commits a site to its 32-byte secret."""
        return idx(index) + tagged_hash("commit-draw", self.hash, idx(index), secret)


@dataclass(frozen=True)
class Grouping:
    """A draw with all commitments and secrets, which proves its groups to anyone.

    Attributes:
        draw: what the groups are for.
        commits: signed commitment of each site, by its position.
        secrets: revealed secret of each site.
    """

    draw: Draw
    commits: Mapping[int, Signed]
    secrets: Mapping[int, bytes]

    def to_bytes(self) -> bytes:
        """Returns the encoding."""
        return lp(
            self.draw.to_bytes(), join_signed(self.commits.values()), join_by_site(self.secrets)
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> "Grouping":
        """Parses a grouping and checks all of its proof.

        Raises:
            MalformedMessage: it is none.
            PolicyViolation: see `Draw.from_bytes`.
            BadSignature: a commitment is not the site's.
            InconsistentView: a site is missing, or revealed what it had not committed to.
        """
        reader = Reader(data)
        draw, commits = Draw.from_bytes(reader.item()), reader.item()
        secrets = split_by_site(reader.item(), SECRET_BYTES)
        reader.end()
        grouping = cls(draw, read_commits(draw, commits), secrets)
        if set(secrets) != set(grouping.commits):
            raise InconsistentView("The draw of groups lacks a site's secret.")
        for index, secret in secrets.items():
            if draw.commitment(index, secret) != grouping.commits[index].body:
                raise InconsistentView(f"Site {index} revealed another secret than it promised.")
        return grouping

    @cached_property
    def groups(self) -> tuple[tuple[RosterEntry, ...], ...]:
        """The sites of each group, sorted by name; sizes differ by at most one."""
        seed = tagged_hash("groups", self.draw.hash, join_by_site(self.secrets))
        order = sorted(self.secrets, key=lambda index: tagged_hash("rank", seed, idx(index)))
        count = self.draw.groups
        return tuple(
            tuple(self.draw.roster[index - 1] for index in sorted(order[group::count]))
            for group in range(count)
        )


def read_commits(draw: Draw, commits: bytes) -> dict[int, Signed]:
    """Parses the commitments of a draw and checks that each site made one.

    Raises:
        MalformedMessage: it holds anything else.
        BadSignature: a commitment is not the site's.
        InconsistentView: a site is missing.
    """
    found = split_signed(commits, COMMIT_BYTES)
    if len(found) != len(draw.roster):
        raise InconsistentView("The draw of groups lacks a site's commitment.")
    for message in found.values():
        message.check("commit-draw", draw)
    return found


def hash_commits(commits: Mapping[int, Signed]) -> str:
    """Returns the hexadecimal hash of what all sites committed to."""
    return tagged_hash("commits", *(commits[index].body for index in sorted(commits))).hex()
