"""Simulated sites behind hosts: who they are, and a round in which many answer at once."""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from flwr.app import RecordDict
from flwr.serverapp import Grid

from lepton_common.arrays import Vector
from lepton_common.audit import AuditLog
from lepton_common.errors import LeptonError, MalformedMessage, QuorumNotMet, UpdateInvalid
from lepton_common.hosting import (
    ENROL,
    HOST,
    TRAIN_MANY,
    EnrolRequest,
    HostFacts,
    enrol_content,
    read_enrolled,
    read_host,
    read_updates,
    train_many_content,
)
from lepton_common.messages import (
    HELLO,
    TRAIN,
    HelloRequest,
    SiteFacts,
    TrainRequest,
    hello_content,
    model_record,
)
from lepton_server.progress import OBSERVER, Observer
from lepton_server.rounds.collect import collect
from lepton_server.rounds.exact_mean import ExactMean
from lepton_server.rounds.gathered import Gathered, check_receipt
from lepton_server.rounds.introduction import Cohort, Introduction


@dataclass(frozen=True)
class Hosts:
    """Nodes of one host, which answer at the same time for different sites of it.

    Attributes:
        grid: the way to them.
        nodes: the host's.
        facts: what it says about itself.
        run: name of the run.
        audit: the server's log.
        timeout_s: longest wait for an answer, in seconds.
    """

    grid: Grid
    nodes: Sequence[int]
    facts: HostFacts
    run: str
    audit: AuditLog
    timeout_s: float

    @property
    def names(self) -> dict[int, str]:
        """Under which name the heads stand on record that a node's answers bring, by node.

        A name for each: which of several answers was written last cannot be told from their heads,
        nor from the order in which they come, so the host has to hold all of them.
        """
        return {node: f"{HOST}.{number}" for number, node in enumerate(self.nodes)}

    def of(self, places: Iterable[int], round_: int | None = None) -> Cohort:
        """Asks for the public facts of sites, and puts the answer on record.

        Args:
            places: of the sites.
            round_: the round that they were drawn for; None: all rounds.

        Returns:
            The sites by place; none fails, because their host knows them all.

        Raises:
            QuorumNotMet: the host does not answer, or not as it should.
        """
        asked = list(places)
        content = enrol_content(EnrolRequest(run=self.run, places=asked))
        ((_, answer),) = collect(self.grid, {self.nodes[0]: content}, ENROL, self.timeout_s)
        if isinstance(answer, str):
            raise QuorumNotMet(f"The host of the simulated sites gave no answer: {answer}.")
        try:
            enrolled = read_enrolled(answer, len(asked))
        except MalformedMessage as error:
            raise QuorumNotMet(f"The host of the simulated sites is none. {error}") from None
        named = zip(asked, enrolled.names, enrolled.public_sizes, strict=True)
        sites = {place: self._facts(name, size) for place, name, size in named}
        body = {"keys": {HOST: self.facts.public_key}, "heads": {HOST: self.facts.audit_head},
                "names": sorted(enrolled.names), "failed": []}  # fmt: skip
        self.audit.append("introduced", body if round_ is None else {"round": round_, **body})
        return Cohort(dict(sorted(sites.items(), key=lambda item: item[1].name)), {})

    def gather(
        self, cohort: dict[int, SiteFacts], request: TrainRequest, model: Vector, mean: ExactMean
    ) -> Gathered:
        """Adds the usable updates of a cohort to ``mean``; names the sites that gave none.

        Args:
            cohort: the sites by place.
            request: what the round asks.
            model: float32, shape [d].
            mean: of their updates.
        """
        gathered, record = Gathered(mean), model_record(model)
        shares = dict(zip(self.nodes, _shares(list(cohort), len(self.nodes)), strict=True))
        contents = {
            node: train_many_content(request, record, places)
            for node, places in shares.items()
            if places
        }
        observer, came = OBSERVER.get(Observer()), 0
        for node, answer in collect(self.grid, contents, TRAIN_MANY, self.timeout_s):
            asked = {cohort[place].name: cohort[place] for place in shares[node]}
            came += len(asked)
            observer.on_answer(TRAIN, came, len(cohort))
            if not isinstance(answer, str):
                try:
                    heads = _take(answer, asked, request, gathered, mean)
                    if heads is not None:
                        gathered.heads[self.names[node]], gathered.ledgers[self.names[node]] = heads
                except LeptonError as error:
                    answer = type(error).__name__
            if isinstance(answer, str):
                gathered.failed |= dict.fromkeys(asked, answer)
            del answer  # before the next is taken
        gathered.sort()
        return gathered

    def _facts(self, name: str, public_size: int) -> SiteFacts:
        return SiteFacts(
            name=name,
            public_key=self.facts.public_key,
            public_size=public_size,
            unit=self.facts.unit,
            audit_head=self.facts.audit_head,
        )


def find_hosts(introduction: Introduction, nodes: Sequence[int]) -> Hosts:
    """Asks nodes whether they are those of one host.

    Raises:
        QuorumNotMet: one gives no answer, or another than the first.
    """
    grid, timeout_s = introduction.grid, introduction.federation.round_timeout_s
    hello = hello_content(HelloRequest(run=introduction.run, proposal=introduction.proposal))
    found: list[HostFacts] = []
    for _, answer in collect(grid, dict.fromkeys(nodes, hello), HELLO, timeout_s):
        try:
            if isinstance(answer, str):
                raise QuorumNotMet(f"The host of the simulated sites gave no answer: {answer}.")
            found.append(read_host(answer))
        except MalformedMessage as error:
            raise QuorumNotMet(f"A node is no host of simulated sites. {error}") from None
    if len({(facts.sites, facts.unit, facts.public_key) for facts in found}) != 1:
        raise QuorumNotMet("The nodes are those of several hosts, where there should be one.")
    return Hosts(grid, nodes, found[0], introduction.run, introduction.audit, timeout_s)


def _take(
    answer: RecordDict,
    asked: dict[str, SiteFacts],
    request: TrainRequest,
    gathered: Gathered,
    mean: ExactMean,
) -> tuple[str, str] | None:
    """Adds the updates in a host's answer, and notes what its sites say.

    Returns:
        The heads of the host's audit log and ledger as it answered; None where nobody released.

    Raises:
        MalformedMessage: it is not about just the sites that were asked, a receipt does not fit,
            or the receipts of this one answer tell of several heads.
    """
    updates, receipts = read_updates(answer, mean.size)
    if sorted([*receipts.names, *receipts.failed]) != sorted(asked):
        raise MalformedMessage("An answer is not about the sites that were asked.")
    heads = {(receipt.audit_head, receipt.ledger_head) for receipt in receipts.receipts}
    if len(heads) > 1:
        raise MalformedMessage("One answer is one record of the host's log, and has one head.")
    fitting: set[tuple[int, int]] = set()
    for name, of in zip(receipts.names, receipts.of, strict=True):
        # What a receipt has to say depends on a site's public size alone.
        if (of, asked[name].public_size) not in fitting:
            check_receipt(receipts.receipts[of], request, asked[name])
            fitting.add((of, asked[name].public_size))
    gathered.failed |= receipts.failed
    for name, of, update in zip(receipts.names, receipts.of, updates, strict=True):
        try:
            mean.add(name, update)
        except UpdateInvalid as error:
            gathered.failed[name] = type(error).__name__
        else:
            gathered.epsilon[name] = receipts.receipts[of].epsilon
    return next(iter(heads), None)


def _shares(places: list[int], nodes: int) -> list[list[int]]:
    """Splits places evenly and in order."""
    size, longer = divmod(len(places), nodes)
    cuts = [node * size + min(node, longer) for node in range(nodes + 1)]
    return [places[start:stop] for start, stop in itertools.pairwise(cuts)]
