"""One round of secure aggregation over a Flower Grid: five exchanges, and only a sum comes out."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from flwr.app import RecordDict
from numpy.typing import NDArray

from lepton_common.secagg.spec import RoundSpec
from lepton_common.stages import (
    SecAggStage,
    StageRequest,
    read_head,
    read_stage_reply,
    stage_content,
)
from lepton_server.rounds.conversation import Ask, Conversation
from lepton_server.rounds.coordinator import Coordinator
from lepton_server.rounds.journal import SumJournal

Prepare = Callable[[StageRequest], RecordDict]


@dataclass
class SecureSum:
    """What came out of a round.

    Attributes:
        total: sum of the survivors' weighted values, float64, shape [d].
        weight: sum of their masked weights.
        survivors: their positions in the round's roster, ascending.
    """

    total: NDArray[np.float64]
    weight: float
    survivors: tuple[int, ...]


@dataclass
class Exchange:
    """Asks the sites of one round, stage by stage.

    Attributes:
        spec: the round.
        nodes: Flower's node of each site that is there, by its position in the round's roster.
        train_content: makes the content that asks for an advertisement or a masked update; it
            carries the training request, and the latter the model too.
        read_masked: returns header and packed vector of a site's masked update.
        facts: what the journal keeps beside the sum; filled while masked updates come.
        stage_timeout_s: longest wait for a stage without training.
        train_timeout_s: longest wait for the masked updates.
        evidence: what proves to the sites that they are a group of their cohort; may be empty.
        failed: error names of the sites that dropped out, by position.
        heads: newest hashes of the sites' audit logs.
    """

    spec: RoundSpec
    nodes: Mapping[int, int]
    train_content: Prepare
    read_masked: Callable[[int, RecordDict], tuple[bytes, bytes]]
    facts: dict[str, Any]
    stage_timeout_s: float
    train_timeout_s: float
    evidence: bytes = b""
    failed: dict[int, str] = field(default_factory=dict)
    heads: dict[int, str] = field(default_factory=dict)

    def stages(self, journal: SumJournal) -> Conversation[SecureSum]:
        """Goes through all five stages.

        Raises:
            TooFewSites: below the threshold at some stage; the round may be repeated.
            ShareMismatch: a site dealt false shares.
        """
        coordinator = Coordinator(self.spec)
        yield self._plain(
            SecAggStage.ADVERTISE, dict.fromkeys(self.nodes, self.evidence), coordinator.take_advert
        )
        adverts = coordinator.close_adverts()
        shown = dict.fromkeys(coordinator.advertised, adverts)
        yield self._plain(SecAggStage.SHARE, shown, coordinator.take_shares)
        boxes = coordinator.close_shares()
        journal.masking(self.spec)

        def take(index: int, content: RecordDict) -> None:
            coordinator.take_masked(index, *self.read_masked(index, content))
            self.heads[index] = read_head(content)

        yield self._ask(SecAggStage.MASK, boxes, take, self.train_timeout_s)
        headers = coordinator.close_masked()
        yield self._plain(
            SecAggStage.SIGN,
            dict.fromkeys(coordinator.survivors, headers),
            coordinator.take_signature,
        )
        coordinator.close_signatures()
        # Who failed after masking is in the sum all the same.
        survivors = coordinator.survivors
        failed = {index: name for index, name in self.failed.items() if index not in survivors}
        self.facts |= {"failed": self.named(failed), "heads": self.named(self.heads)}
        # From here on a repetition may be refused, so all it takes to finish is on disk first.
        journal.unmasking(coordinator, self.facts)
        return (yield from self.unmasking(coordinator, journal))

    def unmasking(self, coordinator: Coordinator, journal: SumJournal) -> Conversation[SecureSum]:
        """Goes through the last stage; after a crash, with those whose answers are missing.

        Raises:
            TooFewSites: fewer than t sites released their shares.
            ShareMismatch: a site dealt false shares.
        """

        def keep(index: int, data: bytes) -> None:
            coordinator.take_unmasking(index, data)
            journal.unmasked(index, data)

        signatures = coordinator.close_signatures()

        yield self._plain(SecAggStage.UNMASK, dict.fromkeys(coordinator.missing, signatures), keep)
        total, weight = coordinator.unmask()
        return SecureSum(total, weight, coordinator.survivors)

    def named(self, values: Mapping[int, str]) -> dict[str, str]:
        """Returns the same by the sites' names, in their order."""
        return {self.spec.roster[index - 1][0]: value for index, value in sorted(values.items())}

    def _plain(
        self, stage: SecAggStage, bodies: Mapping[int, bytes], take: Callable[[int, bytes], None]
    ) -> Ask:
        def take_answer(index: int, content: RecordDict) -> None:
            take(index, read_stage_reply(content))
            self.heads[index] = read_head(content)

        return self._ask(stage, bodies, take_answer, self.stage_timeout_s)

    def _ask(
        self,
        stage: SecAggStage,
        bodies: Mapping[int, bytes],
        take: Callable[[int, RecordDict], None],
        timeout_s: float,
    ) -> Ask:
        there = {index: body for index, body in bodies.items() if index in self.nodes}
        index_of = {self.nodes[index]: index for index in there}
        return Ask(
            step=stage.value,
            contents={self.nodes[i]: self._content(stage, body) for i, body in there.items()},
            take=lambda node, content: take(index_of[node], content),
            fail=lambda node, name: self.failed.update({index_of[node]: name}),
            timeout_s=timeout_s,
        )

    def _content(self, stage: SecAggStage, body: bytes) -> RecordDict:
        named = self.spec.to_bytes() if stage is SecAggStage.ADVERTISE else self.spec.hash
        request = StageRequest(stage, named, body)
        if stage in (SecAggStage.ADVERTISE, SecAggStage.MASK):
            return self.train_content(request)
        return stage_content(request)
