"""Who takes part: the sites that introduced themselves, and each round's cohort of them."""

import hashlib
import time
from collections.abc import Collection

from flwr.app import RecordDict
from flwr.serverapp import Grid

from lepton_common.audit import AuditLog
from lepton_common.errors import ApprovalPending, MalformedMessage, QuorumNotMet, SitesRefused
from lepton_common.identity.roster import Member
from lepton_common.messages import HELLO, HelloRequest, SiteFacts, hello_content, read_facts
from lepton_common.settings import FederationSettings
from lepton_server.progress import OBSERVER, Observer
from lepton_server.rounds.collect import collect
from lepton_server.rounds.refusal import REFUSALS

_ASK_AGAIN_S = 2.0


def introduce(
    grid: Grid,
    run: str,
    federation: FederationSettings,
    audit: AuditLog,
    members: Collection[Member] = (),
    proposal: str | None = None,
) -> dict[int, SiteFacts]:
    """Asks every node for its public facts; returns them by node, in order of the sites' names.

    Args:
        grid: the way to the sites.
        run: name of the run.
        federation: how long to wait for answers, and for operators who decide by hand.
        audit: the server's log.
        members: the federation's roster, where there is one: nobody else counts, because the
            others would refuse every round with a stranger in it.
        proposal: the run as its lead has signed it.

    Raises:
        SitesRefused: all of them refuse the run.
        QuorumNotMet: no node answered; where two nodes claim one name, neither counts.
    """
    hello = hello_content(HelloRequest(run=run, proposal=proposal))
    sites, failed = _ask(grid, hello, federation)
    if not sites and failed and set(failed) <= REFUSALS:
        raise SitesRefused(
            f"All {len(failed)} sites refuse the run ({', '.join(sorted(set(failed)))}): it is "
            "outside what they allow, or their operators said no. Each site's errors.log says why."
        )
    if not sites:
        raise QuorumNotMet(f"No site introduced itself: {', '.join(sorted(set(failed)))}.")
    known = {(member.name, member.public_key) for member in members}
    for node, facts in list(sites.items()):
        if known and (facts.name, facts.public_key) not in known:
            failed.append(f"{facts.name}: not in the roster")
            del sites[node]
    names = [facts.name for facts in sites.values()]
    claimed_twice = sorted({name for name in names if names.count(name) > 1})
    failed += [f"{name}: claimed by two nodes" for name in claimed_twice]
    ordered = {
        node: facts
        for node, facts in sorted(sites.items(), key=lambda item: item[1].name)
        if facts.name not in claimed_twice
    }
    if not ordered:
        raise QuorumNotMet(f"No site is left: {', '.join(failed)}.")
    keys = {facts.name: facts.public_key for facts in ordered.values()}
    heads = {facts.name: facts.audit_head for facts in ordered.values()}
    audit.append("introduced", {"keys": keys, "heads": heads, "failed": sorted(failed)})
    return ordered


def _ask(
    grid: Grid, hello: RecordDict, federation: FederationSettings
) -> tuple[dict[int, SiteFacts], list[str]]:
    """Asks all nodes, and those again whose operators have not decided."""
    observer, deadline = OBSERVER.get(Observer()), time.monotonic() + federation.approval_timeout_s
    sites: dict[int, SiteFacts] = {}
    failed: list[str] = []
    asked = list(grid.get_node_ids())
    while asked:
        waiting: list[int] = []
        contents = dict.fromkeys(asked, hello)
        answers = collect(grid, contents, HELLO, federation.round_timeout_s)
        for came, (node, answer) in enumerate(answers, start=1):
            observer.on_answer("introduce", came, len(asked))
            try:
                if not isinstance(answer, str):
                    sites[node] = read_facts(answer)
                elif answer == ApprovalPending.__name__ and time.monotonic() < deadline:
                    waiting.append(node)
                else:
                    failed.append(answer)
            except MalformedMessage:
                failed.append(MalformedMessage.__name__)
        if waiting:
            observer.on_waiting(len(waiting))
            time.sleep(_ASK_AGAIN_S)
        asked = [] if observer.stop_requested else waiting
    return sites, failed


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
