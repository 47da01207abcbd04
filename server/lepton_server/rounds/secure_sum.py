"""One round of secure aggregation over a Flower Grid: five exchanges, and only a sum comes out."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from flwr.app import RecordDict
from flwr.serverapp import Grid
from numpy.typing import NDArray

from lepton_common.errors import LeptonError
from lepton_common.messages import TRAIN
from lepton_common.secagg.spec import RoundSpec
from lepton_common.stages import SecAggStage, StageRequest, read_stage_reply, stage_content
from lepton_server.rounds.collect import collect
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
        grid: the way to the sites.
        spec: the round.
        nodes: Flower's node of each site, by its position in the round's roster.
        train_content: makes the content that asks for an advertisement or a masked update; it
            carries the training request, and the latter the model too.
        read_masked: returns header and packed vector of a site's masked update.
        facts: what the journal keeps beside the sum; filled while masked updates come.
        stage_timeout_s: longest wait for a stage without training.
        train_timeout_s: longest wait for the masked updates.
        failed: error names of the sites that dropped out, by position.
    """

    grid: Grid
    spec: RoundSpec
    nodes: Mapping[int, int]
    train_content: Prepare
    read_masked: Callable[[int, RecordDict], tuple[bytes, bytes]]
    facts: dict[str, Any]
    stage_timeout_s: float
    train_timeout_s: float
    failed: dict[int, str] = field(default_factory=dict)

    def run(self, journal: SumJournal) -> SecureSum:
        """Runs all five stages.

        Raises:
            TooFewSites: below the threshold at some stage; the round may be repeated.
            ShareMismatch: a site dealt false shares.
        """
        coordinator = Coordinator(self.spec)
        self._ask_plain(
            SecAggStage.ADVERTISE, dict.fromkeys(self.nodes, b""), coordinator.take_advert
        )
        adverts = coordinator.close_adverts()
        shown = dict.fromkeys(coordinator.advertised, adverts)
        self._ask_plain(SecAggStage.SHARE, shown, coordinator.take_shares)
        boxes = coordinator.close_shares()
        journal.masking(self.spec)

        def take(index: int, content: RecordDict) -> None:
            coordinator.take_masked(index, *self.read_masked(index, content))

        self._ask(SecAggStage.MASK, boxes, take, self.train_timeout_s)
        headers = coordinator.close_masked()
        self._ask_plain(
            SecAggStage.SIGN,
            dict.fromkeys(coordinator.survivors, headers),
            coordinator.take_signature,
        )
        coordinator.close_signatures()
        # Who failed after masking is in the sum all the same.
        self.facts["failed"] = {
            self.spec.roster[index - 1][0]: name
            for index, name in self.failed.items()
            if index not in coordinator.survivors
        }
        # From here on a repetition may be refused, so all it takes to finish is on disk first.
        journal.unmasking(coordinator, self.facts)
        return self.unmask(coordinator, journal)

    def unmask(self, coordinator: Coordinator, journal: SumJournal) -> SecureSum:
        """Runs the last stage, also again after a crash, with those whose answers are missing.

        Raises:
            TooFewSites: fewer than t sites released their shares.
            ShareMismatch: a site dealt false shares.
        """

        def keep(index: int, data: bytes) -> None:
            coordinator.take_unmasking(index, data)
            journal.unmasked(index, data)

        signatures = coordinator.close_signatures()

        self._ask_plain(SecAggStage.UNMASK, dict.fromkeys(coordinator.missing, signatures), keep)
        total, weight = coordinator.unmask()
        return SecureSum(total, weight, coordinator.survivors)

    def _ask_plain(
        self, stage: SecAggStage, bodies: Mapping[int, bytes], take: Callable[[int, bytes], None]
    ) -> None:
        self._ask(
            stage,
            bodies,
            lambda index, content: take(index, read_stage_reply(content)),
            self.stage_timeout_s,
        )

    def _ask(
        self,
        stage: SecAggStage,
        bodies: Mapping[int, bytes],
        take: Callable[[int, RecordDict], None],
        timeout_s: float,
    ) -> None:
        """Asks some sites; whoever fails has dropped out, by name."""
        index_of = {self.nodes[index]: index for index in bodies}
        contents = {self.nodes[i]: self._content(stage, body) for i, body in bodies.items()}
        for node, answer in collect(self.grid, contents, TRAIN, timeout_s):
            index = index_of[node]
            if isinstance(answer, str):
                self.failed[index] = answer
                continue
            try:
                take(index, answer)
            except LeptonError as error:
                self.failed[index] = type(error).__name__

    def _content(self, stage: SecAggStage, body: bytes) -> RecordDict:
        named = self.spec.to_bytes() if stage is SecAggStage.ADVERTISE else self.spec.hash
        request = StageRequest(stage, named, body)
        if stage in (SecAggStage.ADVERTISE, SecAggStage.MASK):
            return self.train_content(request)
        return stage_content(request)
