"""What the server must not forget in mid-round: attempts, masked updates asked for, the sum.

A site lets each update go once. So before a sum is unmasked, everything needed to finish it is
on disk, and after a crash it is finished from there; and every attempt at a model's round is
listed, because a repetition must declare the earlier ones.
"""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lepton_common.durable import append_synced, write_atomic
from lepton_common.errors import CheckpointUnreadable, LeptonError, MalformedMessage
from lepton_common.secagg.encoding import Reader, idx, lp
from lepton_common.secagg.grouping import Draw, Grouping
from lepton_common.secagg.spec import RoundSpec
from lepton_server.rounds.coordinator import Coordinator

_GROUP = "group-"


@dataclass
class _Attempts:
    """Attributes: last number used; model and specs of the round that is under way."""

    last: int = 0
    model: str = ""
    specs: list[str] = field(default_factory=list)
    unmasking: bool = False


class SumJournal:
    """The journal of one run's secure sums, in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        """Opens or begins the journal.

        Raises:
            CheckpointUnreadable: it is damaged.
        """
        self.folder = folder
        self._attempts = _Attempts()
        try:
            if self._attempts_file.exists():
                self._attempts = _Attempts(**json.loads(self._attempts_file.read_text()))
        except (ValueError, TypeError) as error:
            raise CheckpointUnreadable(f"{self._attempts_file} is damaged; start anew.") from error

    def next_spec(self, spec: RoundSpec) -> RoundSpec:
        """Returns the specification with its number, and with the attempts that it repeats."""
        if self._attempts.model != spec.model_hash.hex():
            self._attempts = _Attempts(self._attempts.last, spec.model_hash.hex())
        self._attempts.last += 1
        self._write()
        repeated = tuple(map(bytes.fromhex, self._attempts.specs))
        return replace(spec, round=self._attempts.last, retry_of=repeated)

    def masking(self, spec: RoundSpec) -> None:
        """Notes that masked updates are about to be asked for."""
        self._attempts.specs.append(spec.hash.hex())
        self._write()

    def unmasking(self, coordinator: Coordinator, facts: dict[str, Any] | None = None) -> None:
        """Keeps what it takes to finish the sum, before any site helps to unmask it."""
        self._replies.unlink(missing_ok=True)
        write_atomic(self._sum, lp(json.dumps(facts or {}).encode(), coordinator.to_bytes()))
        self._attempts.unmasking = True
        self._write()

    def unmasked(self, index: int, reply: bytes) -> None:
        """Keeps a site's reply to the unmasking."""
        append_synced(self._replies, lp(idx(index) + reply))

    def unfinished(self, model_hash: bytes) -> tuple[Coordinator, dict[str, Any]] | None:
        """Returns the sum of a model's round that a crash left, with the replies that came.

        Raises:
            CheckpointUnreadable: its file is damaged.
        """
        attempts = self._attempts
        if not attempts.unmasking or attempts.model != model_hash.hex():
            return None
        try:
            reader = Reader(self._sum.read_bytes())
            facts = json.loads(reader.item())
            coordinator = Coordinator.from_bytes(reader.item())
            reader.end()
        except (OSError, ValueError, LeptonError) as error:
            raise CheckpointUnreadable(f"{self._sum} is damaged; start anew.") from error
        for item in self._whole_replies():
            coordinator.take_unmasking(int.from_bytes(item[:2]), item[2:])
        return coordinator, facts

    def done(self) -> None:
        """Forgets the sums of a round that is finished and kept elsewhere."""
        if self._attempts.unmasking:
            self._attempts.unmasking = False
            self._write()
        for path in (self._sum, self._replies, self._grouping):
            path.unlink(missing_ok=True)
        for folder in self.folder.glob(f"{_GROUP}*"):
            SumJournal(folder).done()

    def keep_grouping(self, grouping: Grouping) -> None:
        """Keeps the groups that were drawn for a round; a repetition must keep to them."""
        self.folder.mkdir(exist_ok=True)
        write_atomic(self._grouping, grouping.to_bytes())

    def grouping(self, model_hash: bytes) -> Grouping | None:
        """Returns the groups that were drawn for a model's round, if any were.

        Raises:
            CheckpointUnreadable: their file is damaged.
        """
        if not self._grouping.exists():
            return None
        try:
            found = Grouping.from_bytes(self._grouping.read_bytes())
        except LeptonError as error:
            raise CheckpointUnreadable(f"{self._grouping} is damaged; start anew.") from error
        return found if found.draw.model_hash == model_hash else None

    def masking_began(self, draw: Draw) -> bool:
        """Whether an update on the draw's model may have left for one of its groups."""
        paths = (self.folder / f"{_GROUP}{group}" for group in range(1, draw.groups + 1))
        attempts = [SumJournal(path)._attempts for path in paths]
        return any(a.specs and a.model == draw.model_hash.hex() for a in attempts)

    def groups(self, count: int) -> list["SumJournal"]:
        """Returns a journal for each group of the next round.

        A site may be in another group than before, and its attempts must be numbered upwards.
        """
        self.folder.mkdir(exist_ok=True)
        journals = [SumJournal(self.folder / f"{_GROUP}{group}") for group in range(1, count + 1)]
        newest = max(journal._attempts.last for journal in journals)
        for journal in journals:
            journal._attempts.last = newest
        return journals

    @property
    def unmasking_began(self) -> bool:
        """Whether a site may have helped to unmask the round under way."""
        return self._attempts.unmasking

    def _whole_replies(self) -> list[bytes]:
        data = self._replies.read_bytes() if self._replies.exists() else b""
        reader, found = Reader(data), []
        try:
            while True:
                found.append(reader.item())
        except MalformedMessage:  # the end, or a reply torn by the crash
            if (whole := lp(*found)) != data:
                write_atomic(self._replies, whole)  # or the next one would be read as its end
            return found

    def _write(self) -> None:
        self.folder.mkdir(exist_ok=True)
        write_atomic(self._attempts_file, json.dumps(vars(self._attempts)).encode())

    @property
    def _attempts_file(self) -> Path:
        return self.folder / "attempts.json"

    @property
    def _sum(self) -> Path:
        return self.folder / "sum"

    @property
    def _grouping(self) -> Path:
        return self.folder / "grouping"

    @property
    def _replies(self) -> Path:
        return self.folder / "replies"
