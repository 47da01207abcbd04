"""A round of SA1 driven by hand: real participants, a real coordinator, and hooks to tamper."""

import copy
import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from lepton_client.participant import Participant
from lepton_common.errors import LeptonError
from lepton_common.identity.keys import SigningKey
from lepton_common.secagg.spec import RoundSpec, default_colluders, least_survivors, threshold
from lepton_server.rounds.coordinator import Coordinator

STAGES = ("advertise", "share", "mask", "sign", "unmask")


def counted(label: bytes) -> Callable[[int], bytes]:
    """Returns a source of bytes that is the same in every run: SHAKE-256 of a counter."""
    calls = [0]

    def draw(count: int) -> bytes:
        calls[0] += 1
        return hashlib.shake_256(label + calls[0].to_bytes(8)).digest(count)

    return draw


def make_signers(count: int) -> list[SigningKey]:
    """Returns fresh identities."""
    return [SigningKey.generate() for _ in range(count)]


def make_spec(signers: list[SigningKey], **changes: object) -> RoundSpec:
    """Returns a sound specification for these sites, with some fields changed."""
    n = len(signers)
    f = default_colluders(n)
    roster = tuple((f"site-{i:03}", bytes.fromhex(s.public_hex)) for i, s in enumerate(signers, 1))
    spec = RoundSpec(
        federation="fed",
        run_id=b"R" * 16,
        round=1,
        roster=roster,
        colluders=f,
        threshold=threshold(n, f),
        min_survivors=least_survivors(n, f),
        dimension=8,
        width=32,
        clip=1.0,
        weight_bits=16,
        layout_hash=b"L" * 32,
        model_hash=b"M" * 32,
        app_hash=b"",
        dp=b"none",
    )
    return replace(spec, **changes)  # type: ignore[arg-type]


Tamper = Callable[[str, str, int, bytes], bytes]


def untouched(stage: str, towards: str, index: int, data: bytes) -> bytes:
    """Leaves a message as it is."""
    del stage, towards, index
    return data


@dataclass
class Drive:
    """One round.

    Attributes:
        spec: the round.
        signers: the sites' identities, in order.
        drops: at which stage each site stops answering; a site not in it answers all.
        tamper: (stage, "server" or "site", site, message) -> the message that arrives.
        values: float32, shape [n, d].
        weights: one a site.
        random_bytes: randomness of all sites.
        refused: (stage, site, error) of every refusal, wherever it was raised.
        masked: packed vector of each site.
    """

    spec: RoundSpec
    signers: list[SigningKey]
    drops: dict[int, str] = field(default_factory=dict)
    tamper: Tamper = untouched
    values: np.ndarray | None = None
    weights: list[float] | None = None
    random_bytes: Callable[[int], bytes] = os.urandom
    refused: list[tuple[str, int, LeptonError]] = field(default_factory=list)
    masked: dict[int, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        n, d = len(self.signers), self.spec.dimension
        if self.values is None:
            self.values = np.random.default_rng(0).uniform(-1, 1, (n, d)).astype(np.float32)
        self.weights = self.weights or [1.0] * n
        self.parts = {
            i: Participant.begin(self.spec, self.spec.roster[i - 1][0], s, self.random_bytes)
            for i, s in enumerate(self.signers, 1)
        }
        self.coordinator = Coordinator(self.spec)
        self._gone: set[int] = set()

    def run(self) -> tuple[np.ndarray, float]:
        """Runs all stages and returns the sum and its weight.

        Raises:
            LeptonError: what the coordinator raised between the stages.
        """
        return self.finish(self.begin())

    def begin(self) -> dict[int, bytes]:
        """Runs the stages before the masked vectors; returns each site's sealed shares."""
        server, everyone = self.coordinator, list(self.parts)
        self._ask("advertise", everyone, lambda i: self.parts[i].advertise(), server.take_advert)
        adverts = server.close_adverts()
        self._ask(
            "share",
            server.advertised,
            lambda i: self.parts[i].share(self._to_site("share", i, adverts)),
            server.take_shares,
        )
        return server.close_shares()

    def fork(self, drops: dict[int, str]) -> "Drive":
        """Returns a copy of a round that has begun, which goes on with other dropouts."""
        other = copy.copy(self)
        other.drops, other.refused, other.masked = drops, [], {}
        other._gone = set(self._gone)
        other.parts = {
            i: Participant.from_bytes(part.to_bytes(), part.signer)
            for i, part in self.parts.items()
        }
        other.coordinator = copy.copy(self.coordinator)
        for name, value in vars(self.coordinator).items():
            if isinstance(value, dict | np.ndarray):
                setattr(other.coordinator, name, value.copy())
        return other

    def finish(self, boxes: dict[int, bytes]) -> tuple[np.ndarray, float]:
        """Runs the stages from the masked vectors on; returns the sum and its weight."""
        server = self.coordinator
        self._ask("mask", list(boxes), lambda i: self._mask(i, boxes[i]), self._take_masked)
        headers = server.close_masked()
        self._ask(
            "sign",
            list(server.survivors),
            lambda i: self.parts[i].sign(self._to_site("sign", i, headers)),
            server.take_signature,
        )
        signatures = server.close_signatures()
        self._ask(
            "unmask",
            server.missing,
            lambda i: self.parts[i].unmask(self._to_site("unmask", i, signatures)),
            server.take_unmasking,
        )
        return server.unmask()

    def expected(self) -> tuple[np.ndarray, float]:
        """Returns the plain sum modulo 2**width over the survivors, decoded."""
        ring = self.spec.ring
        total = np.zeros(ring.length, np.uint64)
        for i in self.coordinator.survivors:
            total += ring.encode(self.values[i - 1], self.weights[i - 1])
        return ring.decode((total % 2**ring.width).astype(ring.dtype))

    def _mask(self, index: int, boxes: bytes) -> bytes:
        part = self.parts[index]
        part.open(self._to_site("mask", index, boxes))
        values, weight = self.values[index - 1], self.weights[index - 1]
        header, self.masked[index] = part.mask(values, weight)
        return header

    def _take_masked(self, index: int, header: bytes) -> None:
        packed = self.tamper("vector", "server", index, self.masked[index])
        self.coordinator.take_masked(index, header, packed)

    def _to_site(self, stage: str, index: int, data: bytes) -> bytes:
        return self.tamper(stage, "site", index, data)

    def _ask(self, stage, sites, answer, take) -> None:
        for index in sites:
            if self.drops.get(index) == stage:
                self._gone.add(index)
            if index in self._gone:
                continue
            try:
                take(index, self.tamper(stage, "server", index, answer(index)))
            except LeptonError as error:
                self.refused.append((stage, index, error))
                self._gone.add(index)
