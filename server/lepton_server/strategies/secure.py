"""SA1 around one of Flower's strategies: ``SecureAggregation(FedAvg(...))``.

The sites run ``ClientApp(mods=[secure_aggregation])``. The inner strategy chooses the nodes and
sees one reply, the weighted mean; what needs single updates runs over the means of groups.
"""

import contextlib
import logging
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp import strategy as flower

from lepton_common.errors import MalformedMessage, SecAggError, SettingsError, TooFewSites
from lepton_common.messages import TRAIN, HelloRequest, SiteFacts, hello_content, read_facts
from lepton_common.secagg.grouping import Draw
from lepton_common.secagg.ring import Ring
from lepton_common.secagg.spec import (
    WEIGHT_BITS,
    RosterEntry,
    RoundSpec,
    default_colluders,
    least_survivors,
    threshold,
)
from lepton_common.stages import SecAggStage, StageRequest, read_masked_only, stage_content
from lepton_common.strict import parse
from lepton_common.summing import run_id_of
from lepton_common.terms import (
    RECORD,
    Terms,
    apply_change,
    flatten,
    hash_content,
    hash_layout,
    hash_model,
    hash_run_config,
    only_arrays,
    terms_record,
)
from lepton_server.rounds.collect import collect
from lepton_server.rounds.conversation import hold_together
from lepton_server.rounds.groups import agree_on_groups, roster_of, split_cohort
from lepton_server.rounds.journal import SumJournal
from lepton_server.rounds.secure_sum import Exchange, SecureSum

_LINEAR = (
    flower.FedAvg,
    flower.FedAvgM,
    flower.FedAdam,
    flower.FedYogi,
    flower.FedAdagrad,
    flower.FedProx,
)
_ROBUST = (
    flower.FedMedian,
    flower.FedTrimmedAvg,
    flower.Krum,
    flower.MultiKrum,
    flower.Bulyan,
)


class _Part(NamedTuple):
    """Sites that sum together, the journal of their sum, and what proves that they are a group."""

    cohort: dict[int, SiteFacts]
    roster: tuple[RosterEntry, ...]
    journal: SumJournal
    evidence: bytes


class SecureAggregation(flower.Strategy):
    """A Flower strategy whose training replies are summed under SA1."""

    def __init__(
        self,
        inner: flower.FedAvg,
        *,
        federation: str = "simulation",
        journal: Path = Path("sums"),
        metrics: tuple[str, ...] = (),
        weight_cap: int = 10_000,
        width: int = 32,
        clip: float = 8.0,
        colluders: int | None = None,
        groups: int = 1,
        run_config: Mapping[str, object] | None = None,
        timeout_s: float = 3600.0,
        stage_timeout_s: float = 60.0,
    ) -> None:
        """Wraps a strategy.

        Args:
            inner: a linear strategy of Flower's, or with groups a robust one.
            federation: the name in the sites' roster.
            journal: folder for what a crash must not lose.
            metrics: training metrics to average, masked; others stay at the sites.
            weight_cap: most examples a site counts for; choose it near the largest site, since
                what it leaves unused costs precision.
            width: bits of a ring element: 16, 20, 24 or 32.
            clip: bound on what training changes in any one weight.
            colluders: sites tolerated to collude with the server; None: a third of the nodes.
            groups: sums that the nodes are split into, for a robust strategy; one poisoned site
                poisons its whole group.
            run_config: the ServerApp's ``context.run_config``; all sites must have the same.
            timeout_s: longest wait for training.
            stage_timeout_s: longest wait for each other stage.

        Raises:
            SettingsError: the strategy needs single updates.
        """
        if type(inner) not in (_LINEAR if groups == 1 else _ROBUST):
            linear, robust = (", ".join(c.__name__ for c in known) for known in (_LINEAR, _ROBUST))
            raise SettingsError(
                f"{type(inner).__name__} may need single updates, which secure aggregation hides; "
                f"choose one of {linear}, or set groups, more than one, for one of {robust}."
            )
        self._inner, self._federation, self._colluders = inner, federation, colluders
        self._terms = _sound_terms(
            metrics=list(metrics),
            weighted_by=inner.weighted_by_key,
            weight_cap=weight_cap,
            groups=groups,
            round=1,
            content="0" * 64,  # each round's own
            run_config=hash_run_config(run_config or {}),
        )
        try:
            Ring(width, 2, 1, clip, WEIGHT_BITS)
        except ValueError as error:
            raise SettingsError(f"width={width} and clip={clip} cannot be used: {error}") from None
        self._width, self._clip = width, clip
        self._timeout_s, self._stage_timeout_s = timeout_s, stage_timeout_s
        journal.mkdir(parents=True, exist_ok=True)
        self._journal = SumJournal(journal)
        self._sites: dict[int, SiteFacts] = {}
        self._replies: list[Message] = []

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Runs the whole masked round; nothing is left to send."""
        messages = list(self._inner.configure_train(server_round, arrays, config, grid))
        self._replies = self._sums(grid, messages, server_round) if messages else []
        return []

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Gives the inner strategy one reply with the mean of all, or of each group."""
        del replies
        return self._inner.aggregate_train(server_round, self._replies)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Asks nothing: the replies would be readable; use ``evaluate_fn`` at the server."""
        del server_round, arrays, config, grid
        return []

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Has nothing to aggregate."""
        del server_round, replies
        return None

    def summary(self) -> None:
        """Describes the inner strategy."""
        self._inner.summary()

    def _sums(self, grid: Grid, messages: list[Message], round_: int) -> list[Message]:
        """Returns one reply with the weighted mean for each group that came to a sum."""
        cohort = self._introduce(grid, [message.metadata.dst_node_id for message in messages])
        content = messages[0].content
        terms = replace(self._terms, round=round_, content=hash_content(content))
        try:
            parts = self._parts(grid, cohort, only_arrays(content), terms)
        except TooFewSites as error:
            logging.getLogger("flwr").warning("No sum in this round: %s", error)
            return []
        exchanges = [self._exchange(part, content, terms, len(cohort)) for part in parts]
        conversations = [
            exchange.stages(part.journal) for exchange, part in zip(exchanges, parts, strict=True)
        ]
        replies = []
        for exchange, result in zip(exchanges, hold_together(grid, conversations), strict=True):
            if isinstance(result, SecAggError):
                logging.getLogger("flwr").warning("No sum: %s %s", result, exchange.failed)
            else:
                replies.append(self._reply(result, only_arrays(content)))
        self._journal.done()
        return replies

    def _parts(
        self, grid: Grid, cohort: dict[int, SiteFacts], arrays: ArrayRecord, terms: Terms
    ) -> list[_Part]:
        """Returns the groups of a round, drawn by the sites, or the whole cohort as one.

        Raises:
            TooFewSites: for so many groups.
        """
        if terms.groups == 1:
            return [_Part(cohort, roster_of(cohort.values()), self._journal, b"")]
        draw = Draw(
            federation=self._federation,
            run_id=self._run_id,
            round=terms.round,
            roster=(),
            groups=terms.groups,
            model_hash=hash_model(arrays),
        )
        least = self._tolerated(len(cohort)) + 2
        grouping, failed = agree_on_groups(
            grid, draw, cohort, self._journal, least, self._stage_timeout_s
        )
        if failed:
            logging.getLogger("flwr").warning("Not in a group: %s", failed)
        journals = self._journal.groups(terms.groups)
        return [
            _Part(sites, group, journal, grouping.to_bytes())
            for sites, group, journal in zip(
                split_cohort(cohort, grouping), grouping.groups, journals, strict=True
            )
        ]

    def _exchange(self, part: _Part, content: RecordDict, terms: Terms, nodes: int) -> Exchange:
        node_of = {facts.name: node for node, facts in part.cohort.items()}
        proposal = self._specification(only_arrays(content), part.roster, terms, nodes)

        def asking(asked: StageRequest) -> RecordDict:
            beside = content if asked.stage is SecAggStage.MASK else RecordDict()
            records = beside.copy()
            records.update(stage_content(asked))
            records[RECORD] = terms_record(terms)
            return records

        return Exchange(
            spec=part.journal.next_spec(proposal),
            nodes={
                index: node_of[name]
                for index, (name, _) in enumerate(part.roster, start=1)
                if name in node_of
            },
            train_content=asking,
            read_masked=lambda _, reply: read_masked_only(reply),
            facts={},
            stage_timeout_s=self._stage_timeout_s,
            train_timeout_s=self._timeout_s,
            evidence=part.evidence,
        )

    def _reply(self, result: SecureSum, arrays: ArrayRecord) -> Message:
        """Returns the mean of a sum as the reply of one node that is all of its sites."""
        mean = (result.total / result.weight).astype(np.float32)
        d = len(mean) - len(self._terms.metrics)
        figures = dict(zip(self._terms.metrics, map(float, mean[d:]), strict=True))
        figures[self._terms.weighted_by] = result.weight * self._terms.weight_cap
        records: dict[str, ArrayRecord | MetricRecord | ConfigRecord] = {
            self._inner.arrayrecord_key: apply_change(arrays, mean[:d]),
            "metrics": MetricRecord(dict(figures)),
        }
        return Message(RecordDict(records), dst_node_id=0, message_type=MessageType.TRAIN)

    def _introduce(self, grid: Grid, nodes: list[int]) -> dict[int, SiteFacts]:
        """Returns the public facts of the nodes; who does not answer takes no part."""
        hello = hello_content(HelloRequest(run=f"flower-{grid.run.run_id}"))
        unknown = [node for node in nodes if node not in self._sites]
        contents = dict.fromkeys(unknown, hello)
        for node, answer in collect(grid, contents, TRAIN, self._stage_timeout_s):
            with contextlib.suppress(MalformedMessage):
                if not isinstance(answer, str):
                    self._sites[node] = read_facts(answer)
        names = [site.name for site in self._sites.values()]
        return {
            node: self._sites[node]
            for node in nodes
            if node in self._sites and names.count(self._sites[node].name) == 1
        }

    @property
    def _run_id(self) -> bytes:
        return run_id_of(str(self._journal.folder))

    def _tolerated(self, nodes: int) -> int:
        return default_colluders(nodes) if self._colluders is None else self._colluders

    def _specification(
        self, arrays: ArrayRecord, roster: tuple[RosterEntry, ...], terms: Terms, nodes: int
    ) -> RoundSpec:
        n, f = len(roster), self._tolerated(nodes)
        return RoundSpec(
            federation=self._federation,
            run_id=self._run_id,
            round=1,
            roster=roster,
            colluders=f,
            threshold=threshold(n, f),
            min_survivors=least_survivors(n, f),
            dimension=flatten(arrays).size + len(terms.metrics),
            width=self._width,
            clip=self._clip,
            weight_bits=WEIGHT_BITS,
            layout_hash=hash_layout(arrays, terms),
            model_hash=hash_model(arrays),
            app_hash=terms.hash,
            dp=b"none",
        )


def _sound_terms(**values: object) -> Terms:
    terms, faults = parse(Terms, values)
    if terms is None:
        raise SettingsError([f"SecureAggregation: {fault}" for fault in faults])
    return terms
