"""Who takes part: the sites that introduced themselves, and each round's cohort of them.

Where there are few, all introduce themselves before the first round. Of a crowd only those do who
are drawn for a round, so that neither time nor memory depends on how many there are.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Protocol

from lepton_common.messages import SiteFacts
from lepton_common.settings import MOST_LISTED, Settings
from lepton_server.rounds.hosted import Hosts, find_hosts
from lepton_server.rounds.introduction import Cohort, Introduction
from lepton_server.rounds.known import KnownSites


class Present(Protocol):
    """The sites that rounds may ask."""

    @property
    def count(self) -> int:
        """How many there are."""

    @property
    def hosts(self) -> Hosts | None:
        """What answers for them, where they do not answer one by one."""

    def cohort(self, round_: int) -> Cohort:
        """Returns those of a round; the same nodes each time.

        Raises:
            SitesRefused, QuorumNotMet: of a crowd's, none is there.
        """


def meet(introduction: Introduction, settings: Settings, known: KnownSites) -> Present:
    """Returns the sites that rounds may ask, of all nodes that there are.

    Args:
        introduction: how they come to be known.
        settings: the whole configuration.
        known: what the server's log says already.

    Raises:
        SitesRefused, QuorumNotMet: none is there; see `Introduction.of`.
    """
    nodes = introduction.grid.get_node_ids()
    if not isinstance(nodes, Sequence) or isinstance(nodes, list):
        nodes = sorted(nodes)  # a simulation's are in order, and listed nowhere
    # Nobody may speak for sites that a roster names.
    if settings.engine.vectorize != "none" and not introduction.members:
        hosts = find_hosts(introduction, nodes)
        return _present(range(hosts.facts.sites), hosts, settings, hosts)
    if len(nodes) > MOST_LISTED:
        introduction = replace(introduction, known=known)
    return _present(nodes, introduction, settings)


class _Introduces(Protocol):
    def of(self, nodes: Iterable[int], round_: int | None = None) -> Cohort: ...


def _present(
    nodes: Sequence[int], introduction: _Introduces, settings: Settings, hosts: Hosts | None = None
) -> Present:
    if len(nodes) <= MOST_LISTED:
        return Everyone(introduction.of(nodes).sites, settings, hosts)
    return Crowd(nodes, introduction, settings, hosts)


class Everyone:
    """Sites that all introduced themselves before the first round."""

    def __init__(
        self, sites: dict[int, SiteFacts], settings: Settings, hosts: Hosts | None = None
    ) -> None:
        """Takes the sites by node."""
        self._sites, self._settings, self.hosts = sites, settings, hosts
        self.count = len(sites)

    def cohort(self, round_: int) -> Cohort:
        """Returns the sites of a round; see `pick_cohort`."""
        settings = self._settings
        return Cohort(pick_cohort(self._sites, settings.cohort, settings.seed, round_), {})


class Crowd:
    """Nodes of which only those of a round introduce themselves, when they are drawn."""

    def __init__(
        self,
        nodes: Sequence[int],
        introduction: _Introduces,
        settings: Settings,
        hosts: Hosts | None = None,
    ) -> None:
        """Takes the nodes, in order of their ids."""
        self._nodes, self._introduction, self._settings = nodes, introduction, settings
        self.count, self.hosts = len(nodes), hosts

    def cohort(self, round_: int) -> Cohort:
        """Returns the sites of a round, and who of them did not introduce itself.

        Raises:
            SitesRefused, QuorumNotMet: none did; see `Introduction.of`.
        """
        size = min(self._settings.cohort, self.count)
        return self._introduction.of(
            draw_nodes(self._nodes, size, self._settings.seed, round_), round_
        )


def pick_cohort(
    sites: dict[int, SiteFacts], size: int, seed: int, round_: int
) -> dict[int, SiteFacts]:
    """Returns the ``size`` sites of a round, drawn by a hash of seed, round and name.

    Depends on nothing else, so a resumed run asks the same sites.
    """

    def rank(item: tuple[int, SiteFacts]) -> bytes:
        return hashlib.sha256(f"{seed}/{round_}/{item[1].name}".encode()).digest()

    chosen = sorted(sites.items(), key=rank)[:size]
    return dict(sorted(chosen, key=lambda item: item[1].name))


def draw_nodes(nodes: Sequence[int], size: int, seed: int, round_: int) -> list[int]:
    """Returns ``size`` different nodes of a round, drawn by hashes of seed and round.

    Depends on nothing else. Floyd's algorithm (Bentley and Floyd 1987): as many hashes as nodes are
    drawn, each set equally likely, and no look at the nodes that are not.
    """
    chosen: set[int] = set()
    for last in range(len(nodes) - size, len(nodes)):
        digest = hashlib.sha256(f"{seed}/{round_}/{last}".encode()).digest()
        place = int.from_bytes(digest) % (last + 1)
        chosen.add(last if place in chosen else place)
    return [nodes[place] for place in sorted(chosen)]
