"""SA1 around one of Flower's strategies: ``SecureAggregation(FedAvg(...))``.

The sites run ``ClientApp(mods=[secure_aggregation])``. The inner strategy chooses the nodes and
sees one reply, the weighted mean; what needs single updates is refused.
"""

import hashlib
import logging
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp import strategy as flower

from lepton_common.errors import SettingsError, TooFewSites
from lepton_common.messages import TRAIN, HelloRequest, SiteFacts, hello_content, read_facts
from lepton_common.secagg.spec import (
    WEIGHT_BITS,
    RoundSpec,
    default_colluders,
    least_survivors,
    threshold,
)
from lepton_common.stages import SecAggStage, StageRequest, read_masked_only, stage_content
from lepton_common.terms import (
    RECORD,
    Terms,
    apply_change,
    flatten,
    hash_layout,
    hash_model,
    only_arrays,
    terms_record,
)
from lepton_server.rounds.collect import collect
from lepton_server.rounds.journal import SumJournal
from lepton_server.rounds.secure_sum import Exchange

_LINEAR = (
    flower.FedAvg,
    flower.FedAvgM,
    flower.FedAdam,
    flower.FedYogi,
    flower.FedAdagrad,
    flower.FedProx,
)


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
        timeout_s: float = 3600.0,
        stage_timeout_s: float = 60.0,
    ) -> None:
        """Wraps a strategy.

        Args:
            inner: a linear strategy of Flower's.
            federation: the name in the sites' roster.
            journal: folder for what a crash must not lose.
            metrics: training metrics to average, masked; others stay at the sites.
            weight_cap: most examples a site counts for; choose it near the largest site, since
                what it leaves unused costs precision.
            width: bits of a ring element: 16, 20, 24 or 32.
            clip: bound on what training changes in any one weight.
            colluders: sites tolerated to collude with the server; None: a third of the nodes.
            timeout_s: longest wait for training.
            stage_timeout_s: longest wait for each other stage.

        Raises:
            SettingsError: the strategy needs single updates.
        """
        if type(inner) not in _LINEAR:
            names = ", ".join(cls.__name__ for cls in _LINEAR)
            raise SettingsError(
                f"{type(inner).__name__} is not known to be linear and may need single updates, "
                f"which secure aggregation hides; choose one of {names}."
            )
        self._inner, self._federation, self._colluders = inner, federation, colluders
        self._terms = Terms(
            metrics=list(metrics), weighted_by=inner.weighted_by_key, weight_cap=weight_cap
        )
        self._width, self._clip = width, clip
        self._timeout_s, self._stage_timeout_s = timeout_s, stage_timeout_s
        journal.mkdir(parents=True, exist_ok=True)
        self._journal = SumJournal(journal)
        self._sites: dict[int, SiteFacts] = {}
        self._reply: Message | None = None

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Runs the whole masked round; nothing is left to send."""
        messages = list(self._inner.configure_train(server_round, arrays, config, grid))
        self._reply = self._sum(grid, messages) if messages else None
        return []

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Gives the inner strategy the one reply that holds the mean."""
        del replies
        return self._inner.aggregate_train(server_round, [self._reply] if self._reply else [])

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

    def _sum(self, grid: Grid, messages: list[Message]) -> Message | None:
        cohort = self._introduce(grid, [message.metadata.dst_node_id for message in messages])
        ordered = sorted(cohort, key=lambda node: cohort[node].name)
        content = messages[0].content
        arrays = only_arrays(content)
        spec = self._journal.next_spec(self._specification(arrays, [cohort[n] for n in ordered]))

        def asking(asked: StageRequest) -> RecordDict:
            beside = content if asked.stage is SecAggStage.MASK else RecordDict()
            records = beside.copy()
            records.update(stage_content(asked))
            records[RECORD] = terms_record(self._terms)
            return records

        exchange = Exchange(
            grid=grid,
            spec=spec,
            nodes=dict(enumerate(ordered, start=1)),
            train_content=asking,
            read_masked=lambda _, reply: read_masked_only(reply),
            facts={},
            stage_timeout_s=self._stage_timeout_s,
            train_timeout_s=self._timeout_s,
        )
        try:
            result = exchange.run(self._journal)
        except TooFewSites as error:
            logging.getLogger("flwr").warning("No sum in this round: %s %s", error, exchange.failed)
            return None
        self._journal.done()
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
            if not isinstance(answer, str):
                self._sites[node] = read_facts(answer)
        return {node: self._sites[node] for node in nodes if node in self._sites}

    def _specification(self, arrays: ArrayRecord, sites: list[SiteFacts]) -> RoundSpec:
        n = len(sites)
        f = default_colluders(n) if self._colluders is None else self._colluders
        return RoundSpec(
            federation=self._federation,
            run_id=hashlib.sha256(str(self._journal.folder).encode()).digest()[:16],
            round=1,
            roster=tuple((site.name, bytes.fromhex(site.public_key)) for site in sites),
            colluders=f,
            threshold=threshold(n, f),
            min_survivors=least_survivors(n, f),
            dimension=flatten(arrays).size + len(self._terms.metrics),
            width=self._width,
            clip=self._clip,
            weight_bits=WEIGHT_BITS,
            layout_hash=hash_layout(arrays, self._terms),
            model_hash=hash_model(arrays),
            app_hash=self._terms.hash,
            dp=b"none",
        )
