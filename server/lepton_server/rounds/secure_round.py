"""One secure sum, tried by the rules of SA1 until it comes out, or lost by name."""

from typing import Any
from weakref import ReferenceType, ref

from flwr.app import ArrayRecord, RecordDict

from lepton_common.arrays import Vector
from lepton_common.errors import RoundLost, SecAggError, TooFewSites
from lepton_common.messages import SiteFacts, TrainRequest, model_record
from lepton_common.secagg.ring import whole_clip
from lepton_common.secagg.spec import (
    WEIGHT_BITS,
    RosterEntry,
    RoundSpec,
    least_survivors,
    threshold,
)
from lepton_common.settings import Settings
from lepton_common.stages import SecAggStage, StageRequest, read_masked, stage_content
from lepton_common.summing import (
    bind,
    bind_layout,
    bind_privacy,
    most_of_a_cell,
    run_id_of,
    summed_as,
    weight_share,
)
from lepton_server.progress import OBSERVER, Observer
from lepton_server.rounds.conversation import Conversation
from lepton_server.rounds.gathered import Gathered, Means, check_receipt
from lepton_server.rounds.journal import SumJournal
from lepton_server.rounds.parked import rest
from lepton_server.rounds.refusal import refusal
from lepton_server.rounds.secure_sum import Exchange, SecureSum


class SecureRound:
    """One sum of one training round: over a whole cohort, or over one of its groups."""

    def __init__(
        self,
        settings: Settings,
        sites: dict[int, SiteFacts],
        request: TrainRequest,
        model: Vector,
        journal: SumJournal,
        roster: tuple[RosterEntry, ...],
        evidence: bytes = b"",
    ) -> None:
        """Prepares the sum.

        Args:
            settings: the whole configuration.
            sites: those in the sum that are there, by node.
            request: what the round asks.
            model: float32, shape [size].
            journal: of this sum.
            roster: all sites of the sum, there or not.
            evidence: the encoded grouping, where the sites are a group of their cohort.
        """
        self._settings, self._journal, self._evidence = settings, journal, evidence
        self._request, self._model = request, model
        self._sent: ReferenceType[ArrayRecord] | None = None
        self._roster = roster
        self._facts = {facts.name: facts for facts in sites.values()}
        self._node_of = {facts.name: node for node, facts in sites.items()}
        assert request.masked is not None, "a masked round describes its sum"
        self._form = request.masked
        self._summed = summed_as(request, self._form, len(model))
        self._proposal = self._specification(self._summed.dimension)

    def gather(self) -> Conversation[Gathered]:
        """Comes to the mean of the updates, from disk where a crash left a sum unfinished.

        Raises:
            TooFewSites: each attempt ended below the threshold; the run may be resumed.
            SitesRefused: the same, because of the sites' own policies.
            RoundLost: a site may have helped to unmask, and the sum cannot be finished.
        """
        for attempt in range(1, self._settings.secagg.attempts + 1):
            # First, because a repetition would leave out whoever has helped to unmask.
            finished = yield from self._finished_from_disk()
            if finished is not None:
                return finished
            spec = self._journal.next_spec(self._proposal)
            gathered: dict[str, Any] = {
                "epsilon": {},
                "ledgers": {},
                "weights": self._form.weights,
            }
            exchange = self._exchange(spec, gathered)
            try:
                result = yield from exchange.stages(self._journal)
            except TooFewSites as error:
                failed = exchange.named(exchange.failed)
                stopped = OBSERVER.get(Observer()).stop_requested
                if stopped or attempt == self._settings.secagg.attempts:
                    raise self._given_up(error, failed) from error
            else:
                return self._gathered(exchange, result)
        raise AssertionError("there is at least one attempt")

    def _finished_from_disk(self) -> Conversation[Gathered | None]:
        """Comes to what a crashed server had in hand, asking again for replies that got lost."""
        unfinished = self._journal.unfinished(self._proposal.model_hash)
        if unfinished is None:
            return None
        coordinator, facts = unfinished
        exchange = self._exchange(coordinator.spec, facts)
        try:
            result = yield from exchange.unmasking(coordinator, self._journal)
        except TooFewSites:
            return None
        return self._gathered(exchange, result)

    def _specification(self, dimension: int) -> RoundSpec:
        settings, request = self._settings, self._request
        n, f, quorum = len(self._roster), settings.colluders, settings.federation.quorum
        return RoundSpec(
            federation=settings.federation.name,
            run_id=run_id_of(request.run),
            round=1,
            roster=self._roster,
            colluders=f,
            threshold=threshold(n, f),
            min_survivors=least_survivors(n, f, quorum),
            dimension=dimension,
            width=settings.secagg.width,
            clip=self._clip(n),
            weight_bits=WEIGHT_BITS if self._form.weight_cap else 0,
            layout_hash=bind_layout(request),
            model_hash=bytes.fromhex(request.model_digest),
            app_hash=bind(request),
            dp=bind_privacy(request.privacy),
        )

    def _clip(self, sites: int) -> float:
        secagg, privacy = self._settings.secagg, self._request.privacy
        shared = privacy is not None and privacy.mode != "record"
        if shared:
            return whole_clip(secagg.width, sites)
        if not self._request.grows_trees:
            return secagg.clip
        # Sums over people, which public sizes bound; noise is beyond eight deviations never.
        most = most_of_a_cell(max(facts.public_size for facts in self._facts.values()))
        if privacy is None:
            return most
        noisy = privacy.clipping_norm * (most + 8 * privacy.noise_multiplier)
        return noisy / privacy.sample_rate

    def _model_record(self) -> ArrayRecord:
        """Returns what is sent of the model, one object for all sites as long as anyone has it."""
        record = self._sent() if self._sent is not None else None
        if record is None:
            record = model_record(self._model)
            rest(self._model)
            self._sent = ref(record)
        return record

    def _exchange(self, spec: RoundSpec, gathered: dict[str, Any]) -> Exchange:
        def content(asked: StageRequest) -> RecordDict:
            model = self._model_record() if asked.stage is SecAggStage.MASK else None
            return stage_content(asked, self._request, model)

        def masked(index: int, content: RecordDict) -> tuple[bytes, bytes]:
            site = self._facts[spec.roster[index - 1][0]]
            header, packed, receipt = read_masked(content)
            check_receipt(receipt, self._request, site, spec)
            gathered["epsilon"][site.name] = receipt.epsilon
            gathered["ledgers"][site.name] = receipt.ledger_head
            return header, packed

        return Exchange(
            spec=spec,
            nodes={
                index: self._node_of[name]
                for index, (name, _) in enumerate(spec.roster, start=1)
                if name in self._node_of
            },
            train_content=content,
            read_masked=masked,
            facts=gathered,
            stage_timeout_s=self._settings.secagg.stage_timeout_s,
            train_timeout_s=self._settings.federation.round_timeout_s,
            evidence=self._evidence,
        )

    def _gathered(self, exchange: Exchange, result: SecureSum) -> Gathered:
        spec, facts = exchange.spec, exchange.facts
        # The answers that came after the masked updates show newer hashes.
        heads = facts["heads"] | exchange.named(exchange.heads)
        names = [spec.roster[index - 1][0] for index in result.survivors]
        weight = result.weight
        if self._form.weight_cap is None:
            weight = sum(weight_share(facts["weights"], name) for name in names)
        mean, metrics = self._summed.mean(spec, result.total, weight)
        gathered = Gathered(
            mean=Means([mean], len(names)),
            epsilon=facts["epsilon"],
            heads=heads,
            ledgers=facts["ledgers"],
            failed=facts["failed"],
            specs=[spec.hash.hex()],
            metrics=metrics,
        )
        gathered.sort()
        return gathered

    def _given_up(self, error: TooFewSites, failed: dict[str, str]) -> SecAggError:
        named = ", ".join(f"{site} ({name})" for site, name in list(failed.items())[:5])
        where = f"Round {self._request.round}: {error} Dropped out: {named or 'none'}."
        if self._journal.unmasking_began:
            return RoundLost(
                f"{where} Some sites have helped to unmask a sum that cannot be finished, and "
                "never answer twice for one model. Resume when the others are back; if they do not "
                "come back, start a new run with another seed."
            )
        if refused := refusal(self._request.round, failed):
            return refused
        if "BudgetSpent" in failed.values():
            return TooFewSites(
                f"{where} A site whose budget for this run is spent does not come back: rounds "
                "that a crash interrupted stay charged, and privacy.spare_rounds says how many the "
                "plan allows for. The last finished round is the final model; start a new run."
            )
        return TooFewSites(f"{where} The last finished round is kept; resume when they are back.")
