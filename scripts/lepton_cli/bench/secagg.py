"""Secure aggregation: keystream, masking, a client's whole round, and the server's unmasking.

The reference is the masking stage of Flower's own SecAgg+ client (`_collect_masked_vectors`),
driven with real keys and sealed shares; ours is the whole client round: all five stages, with
keys, shares, signatures, encoding, masks, digest and packing. Both take turns in one process on
the same update.
"""

import importlib
import os
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np

from lepton_cli.bench import Row
from lepton_client.participant import Participant
from lepton_common.arrays import Vector
from lepton_common.identity.keys import SigningKey
from lepton_common.secagg import keys, masks
from lepton_common.secagg.messages import Header, Signed, join_by_site, join_signed
from lepton_common.secagg.spec import RoundSpec, default_colluders, least_survivors, threshold
from lepton_common.secagg.transcript import hash_headers
from lepton_server.rounds.coordinator import Coordinator

_FLOWER = "flwr.client.mod.secure_aggregation.secaggplus_mod"
_PAIRS, _STREAM_BYTES = 7, 1 << 26
_SIZES = {"1e6": 10**6, "1e7": 10**7, "1e8": 10**8}


def rows(quick: bool, with_peers: bool) -> Iterator[Row]:
    """Yields keystream speeds, masking against its limit, client rounds and unmasking."""
    del with_peers
    yield from _keystreams()
    yield from _masking()
    for width in (32, 16):
        yield _client_row(10, "1e7", width, 1 if quick else _PAIRS)
    yield Row("client_peak_memory_n10_1e7", _peak_memory(), "x vector")
    yield from _server_rows(100, 10, "1e7", (32, 16))
    if quick:
        return
    for sites in (10, 50, 100):
        for size in _SIZES:
            if (sites, size) != (10, "1e7"):
                yield _client_row(sites, size, 32, 1)
            if (sites, size) != (100, "1e7"):
                yield from _server_rows(sites, sites // 10, size, (32,))


def _keystreams() -> Iterator[Row]:
    for name in masks.BACKENDS:
        took = _best(partial(_stream, name), 3)
        chosen = ", chosen" if name == masks.chosen_backend() else ""
        yield Row(f"keystream_{name}{chosen}", _STREAM_BYTES / took / 1e9, "GB/s, one thread")


def _stream(backend: str) -> None:
    """Makes a keystream chunk by chunk, as masking does."""
    stream = masks.BACKENDS[backend](bytes(32), 0, 0)
    buffer, zeros = bytearray(masks.CHUNK), memoryview(bytes(masks.CHUNK))
    for _ in range(_STREAM_BYTES // masks.CHUNK):
        stream.update_into(zeros, buffer)


def _masking() -> Iterator[Row]:
    """Cost of one neighbour, and the kernel against keystream and addition measured alone."""
    sixteen = [(os.urandom(32), 1) for _ in range(16)]
    for width in (32, 16):
        vector: masks.RingVector = np.zeros(10**7, f"<u{width // 8}")
        took = _best(partial(masks.add_masks, vector, sixteen, width), 5)
        yield Row(f"per_neighbour_{width}bit_1e7", took / 16 * 1e3, "ms")
    vector = np.zeros(masks.LANE, np.uint32)
    fused = _best(lambda: masks.add_masks(vector, sixteen, 32, threads=1), 9) / 16
    stream = masks.BACKENDS[masks.chosen_backend()](bytes(32), 0, 0)
    buffer, zeros = bytearray(masks.CHUNK), memoryview(bytes(masks.CHUNK))
    words, chunks = np.frombuffer(buffer, np.uint32), vector.nbytes // masks.CHUNK
    piece = vector[: len(words)]

    def keystream_alone() -> None:
        for _ in range(chunks):
            stream.update_into(zeros, buffer)

    def addition_alone() -> None:
        for _ in range(chunks):
            np.add(piece, words, out=piece)

    limit = _best(keystream_alone, 9) + _best(addition_alone, 9)
    yield Row("share_of_limit", limit / fused, "of 1")


def _client_row(sites: int, size: str, width: int, pairs: int) -> Row:
    update = np.random.default_rng(0).normal(0, 0.01, _SIZES[size]).astype(np.float32)
    ours, flower = [], []
    for _ in range(pairs):
        ours.append(_client_round_s(sites, update, width))
        flower.append(_flower_masking_s(sites, update))
    name = f"client_round_{width}bit_n{sites}_{size}_vs_flower"
    return Row(name, min(ours), "s", min(flower) / min(ours))


def _spec(sites: int, dimension: int, width: int) -> tuple[RoundSpec, list[SigningKey]]:
    signers = [SigningKey.generate() for _ in range(sites)]
    colluders = default_colluders(sites)
    roster = tuple(
        (f"site-{i:03}", bytes.fromhex(signer.public_hex)) for i, signer in enumerate(signers)
    )
    spec = RoundSpec(
        federation="bench",
        run_id=bytes(16),
        round=1,
        roster=roster,
        colluders=colluders,
        threshold=threshold(sites, colluders),
        min_survivors=least_survivors(sites, colluders),
        dimension=dimension,
        width=width,
        clip=1.0,
        weight_bits=16,
        layout_hash=bytes(32),
        model_hash=bytes(32),
        app_hash=b"",
        dp=b"none",
    )
    return spec, signers


def _client_round_s(sites: int, update: Vector, width: int) -> float:
    """Returns the wall time of all five stages at the first site, in seconds."""
    spec, signers = _spec(sites, len(update), width)
    parts = [
        Participant.begin(spec, name, signer)
        for (name, _), signer in zip(spec.roster, signers, strict=True)
    ]
    round_, watch = Coordinator(spec), _Watch()
    for part in parts:
        with watch.only(part.index == 1):
            advert = part.advertise()
        round_.take_advert(part.index, advert)
    adverts = round_.close_adverts()
    for part in parts:
        with watch.only(part.index == 1):
            shares = part.share(adverts)
        round_.take_shares(part.index, shares)
    boxes, client = round_.close_shares(), parts[0]
    with watch.only(True):
        client.open(boxes[1])
        header, packed = client.mask(update, 0.5)
    del packed
    headers, t3 = _headers_of_all(spec, signers, Signed.from_bytes(header))
    signatures = join_by_site(
        {i: keys.sign(signers[i - 1], "consistency", spec.hash, t3) for i in spec.indices}
    )
    with watch.only(True):
        client.sign(headers)
        client.unmask(signatures)
    return watch.seconds


class _Watch:
    """Adds up the time of what is marked.

    Attributes:
        seconds: so far.
    """

    def __init__(self) -> None:
        self.seconds = 0.0

    @contextmanager
    def only(self, counts: bool) -> Iterator[None]:
        began = time.perf_counter()
        yield
        if counts:
            self.seconds += time.perf_counter() - began


def _headers_of_all(spec: RoundSpec, signers: list[SigningKey], own: Signed) -> tuple[bytes, bytes]:
    """Returns the headers of a round in which all survived, and their hash T3."""
    mine = Header.from_bytes(own.body)
    signed = [own]
    for index in spec.indices[1:]:
        header = Header(index, mine.t2, mine.length, mine.width, bytes(32))
        signed.append(Signed.make(signers[index - 1], "masked", spec, header.to_bytes()))
    return join_signed(signed), hash_headers(mine.t2, [message.body for message in signed])


def _flower_masking_s(sites: int, update: Vector) -> float:
    """Returns the wall time of Flower's masking stage for the same update, in seconds."""
    from flwr.app import ConfigRecord
    from flwr.common import ndarrays_to_parameters
    from flwr.common.secure_aggregation.secaggplus_constants import Key

    flower: Any = importlib.import_module(_FLOWER)
    state = flower.SecAggPlusState(nid=1)
    terms: dict[str, Any] = {
        Key.SAMPLE_NUMBER: sites,
        Key.SHARE_NUMBER: sites,
        Key.THRESHOLD: threshold(sites, default_colluders(sites)),
        Key.CLIPPING_RANGE: 1.0,
        Key.TARGET_RANGE: 1 << 22,
        Key.MOD_RANGE: 1 << 32,
        Key.MAX_WEIGHT: 1000.0,
    }
    own = flower._setup(state, ConfigRecord(terms))
    public = {str(1): (own[Key.PUBLIC_KEY_1], own[Key.PUBLIC_KEY_2])}
    for nid in range(2, sites + 1):
        pair = [flower.public_key_to_bytes(flower.generate_key_pairs()[1]) for _ in range(2)]
        public[str(nid)] = (pair[0], pair[1])
    flower._share_keys(state, public)
    others = list(range(2, sites + 1))
    sealed = [
        flower.encrypt(
            state.ss2_dict[nid],
            flower.share_keys_plaintext_concat(nid, 1, bytes(48), bytes(48)),
        )
        for nid in others
    ]
    asked = {Key.CIPHERTEXT_LIST: sealed, Key.SOURCE_LIST: others}
    parameters = ndarrays_to_parameters([update])
    began = time.perf_counter()
    flower._collect_masked_vectors(state, asked, 500, parameters)
    return time.perf_counter() - began


def _server_rows(sites: int, dropped: int, size: str, widths: tuple[int, ...]) -> Iterator[Row]:
    """Yields the time to unmask: rebuild the secrets, remove the masks, decode."""
    for width in widths:
        rebuild_s, keystreams = _rebuild_s(sites, dropped, width)
        spec, _ = _spec(2, _SIZES[size], width)
        total = np.zeros(spec.ring.length, spec.ring.dtype)
        began = time.perf_counter()
        masks.add_masks(total, [(os.urandom(32), -1) for _ in range(keystreams)], width)
        spec.ring.decode(total)
        seconds = rebuild_s + time.perf_counter() - began
        bits = "" if width == 32 else f"_{width}bit"
        yield Row(f"server_n{sites}_drop{dropped}_{size}{bits}_s", seconds, "s")


def _rebuild_s(sites: int, dropped: int, width: int) -> tuple[float, int]:
    """Returns the time to rebuild and check all secrets of a real, small round, in seconds.

    And how many keystreams that leaves to remove.
    """
    spec, signers = _spec(sites, 16, width)
    round_ = Coordinator(spec)
    parts = [
        Participant.begin(spec, name, signer)
        for (name, _), signer in zip(spec.roster, signers, strict=True)
    ]
    for part in parts:
        round_.take_advert(part.index, part.advertise())
    adverts = round_.close_adverts()
    for part in parts:
        round_.take_shares(part.index, part.share(adverts))
    boxes, survivors = round_.close_shares(), parts[dropped:]
    for part in survivors:
        part.open(boxes[part.index])
        header, masked = part.mask(np.zeros(16, np.float32))
        round_.take_masked(part.index, header, masked)
    headers = round_.close_masked()
    for part in survivors:
        round_.take_signature(part.index, part.sign(headers))
    signatures = round_.close_signatures()
    for part in survivors:
        round_.take_unmasking(part.index, part.unmask(signatures))
    began = time.perf_counter()
    round_.unmask()
    return time.perf_counter() - began, len(survivors) * (1 + dropped)


def _peak_memory() -> float:
    """Returns the client's peak of allocated memory over the size of its float32 update."""
    update = np.zeros(_SIZES["1e7"], np.float32)
    tracemalloc.start()
    try:
        _client_round_s(10, update, 32)
        # Update and all that was allocated, less the sum of the coordinator that drives it.
        return tracemalloc.get_traced_memory()[1] / update.nbytes
    finally:
        tracemalloc.stop()


def _best(work: Callable[[], object], times: int) -> float:
    """Returns the least wall time of some calls, in seconds."""
    took = []
    for _ in range(times):
        began = time.perf_counter()
        work()
        took.append(time.perf_counter() - began)
    return min(took)
