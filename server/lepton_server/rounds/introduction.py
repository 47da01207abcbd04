"""How sites come to be known to a run: each is asked for its public facts, which are checked."""

import time
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from flwr.app import RecordDict
from flwr.serverapp import Grid

from lepton_common.audit import AuditLog
from lepton_common.errors import ApprovalPending, MalformedMessage, QuorumNotMet, SitesRefused
from lepton_common.identity.roster import Member
from lepton_common.messages import HELLO, HelloRequest, SiteFacts, hello_content, read_facts
from lepton_common.settings import FederationSettings
from lepton_server.progress import OBSERVER, Observer
from lepton_server.rounds.collect import collect
from lepton_server.rounds.known import KnownSites
from lepton_server.rounds.refusal import REFUSALS

_ASK_AGAIN_S = 2.0


@dataclass(frozen=True)
class Cohort:
    """Sites that were asked to introduce themselves, or some of them.

    Attributes:
        sites: those that did, by node, in order of their names.
        failed: why another did not, or does not count, by what is known of it: ``node-N``.
    """

    sites: dict[int, SiteFacts]
    failed: dict[str, str]


@dataclass(frozen=True)
class Introduction:
    """What sites are asked and must answer before they count.

    Attributes:
        grid: the way to the sites.
        run: name of the run.
        federation: how long to wait for answers, and for operators who decide by hand.
        audit: the server's log.
        members: the federation's roster, where there is one: nobody else counts, because the
            others would refuse every round with a stranger in it.
        proposal: the run as its lead has signed it.
        known: those that came before, where not all introduce themselves at once.
    """

    grid: Grid
    run: str
    federation: FederationSettings
    audit: AuditLog
    members: Collection[Member] = ()
    proposal: str | None = None
    known: KnownSites | None = None

    def of(self, nodes: Iterable[int], round_: int | None = None) -> Cohort:
        """Asks nodes for their sites' public facts, and puts the answers on record.

        Args:
            nodes: whom to ask.
            round_: the round that they were drawn for; None: all rounds.

        Raises:
            SitesRefused: all of them refuse the run.
            QuorumNotMet: no node answered; where two nodes claim one name, neither counts.
        """
        sites, failed = self._ask(nodes)
        if not sites and failed and set(failed.values()) <= REFUSALS:
            raise SitesRefused(
                f"All {len(failed)} sites refuse the run ({_named(failed)}): it is outside what "
                "they allow, or their operators said no. Each site's errors.log says why."
            )
        if not sites:
            raise QuorumNotMet(f"No site introduced itself: {_named(failed)}.")
        for node, fault in self._faults(sites).items():
            failed[node] = f"{sites.pop(node).name}: {fault}"
        if not sites:
            raise QuorumNotMet(f"No site is left: {_named(failed)}.")
        ordered = dict(sorted(sites.items(), key=lambda item: item[1].name))
        body = {
            "keys": {facts.name: facts.public_key for facts in ordered.values()},
            "heads": {facts.name: facts.audit_head for facts in ordered.values()},
            "failed": sorted(failed.values()),
        }
        self.audit.append("introduced", body if round_ is None else {"round": round_, **body})
        return Cohort(ordered, {f"node-{node}": why for node, why in sorted(failed.items())})

    def _faults(self, sites: dict[int, SiteFacts]) -> dict[int, str]:
        """Returns why some of those that answered do not count, by node."""
        listed = {(member.name, member.public_key) for member in self.members}
        before = self.known.keys(facts.name for facts in sites.values()) if self.known else {}
        found = {}
        for node, facts in sites.items():
            if listed and (facts.name, facts.public_key) not in listed:
                found[node] = "not in the roster"
            elif before.get(facts.name, facts.public_key) != facts.public_key:
                found[node] = "came with another key before"
        # Of the others only, or a stranger could do away with a site by taking its name.
        claimed = Counter(facts.name for node, facts in sites.items() if node not in found)
        for node, facts in sites.items():
            if node not in found and claimed[facts.name] > 1:
                found[node] = "claimed by two nodes"
        return found

    def _ask(self, nodes: Iterable[int]) -> tuple[dict[int, SiteFacts], dict[int, str]]:
        """Asks nodes, and those again whose operators have not decided."""
        observer = OBSERVER.get(Observer())
        deadline = time.monotonic() + self.federation.approval_timeout_s
        hello = hello_content(HelloRequest(run=self.run, proposal=self.proposal))
        sites: dict[int, SiteFacts] = {}
        failed: dict[int, str] = {}
        asked = list(nodes)
        while asked:
            waiting: list[int] = []
            contents: dict[int, RecordDict] = dict.fromkeys(asked, hello)
            timeout_s = self.federation.round_timeout_s
            answers = collect(self.grid, contents, HELLO, timeout_s)
            for came, (node, answer) in enumerate(answers, start=1):
                observer.on_answer("introduce", came, len(asked))
                try:
                    if not isinstance(answer, str):
                        sites[node] = read_facts(answer)
                    elif answer == ApprovalPending.__name__ and time.monotonic() < deadline:
                        waiting.append(node)
                    else:
                        failed[node] = answer
                except MalformedMessage:
                    failed[node] = MalformedMessage.__name__
            if waiting:
                observer.on_waiting(len(waiting))
                time.sleep(_ASK_AGAIN_S)
            asked = [] if observer.stop_requested else waiting
        return sites, failed


def _named(failed: dict[int, str]) -> str:
    return ", ".join(sorted(set(failed.values())))
