"""Secure aggregation: what a round of SA1 costs a site and the server, beside Flower's SecAgg+.

A site's round is all of its cryptography and arithmetic in the five stages, without network and
training. Flower's time is that of its masking stage alone, by the function that its
``secaggplus_mod`` calls; its stages before and after would only add to it. Times are the best of
several, taken in turns with what they are compared with.
"""

import os
import time
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
from flwr.app import ConfigRecord
from flwr.client.mod.secure_aggregation.secaggplus_mod import (
    SecAggPlusState,
    _collect_masked_vectors,
)
from flwr.common import ndarrays_to_parameters
from flwr.common.secure_aggregation.crypto.symmetric_encryption import (
    encrypt,
    generate_shared_key,
)
from flwr.common.secure_aggregation.secaggplus_utils import share_keys_plaintext_concat
from flwr.supercore.primitives.asymmetric import (
    generate_key_pairs,
    private_key_to_bytes,
    public_key_to_bytes,
)
from numpy.typing import NDArray

from lepton_cli.bench import Row
from lepton_common.identity.keys import SigningKey, verify
from lepton_common.secagg import keys, masks, shamir
from lepton_common.secagg.encoding import idx
from lepton_common.secagg.ring import Ring
from lepton_common.secagg.spec import default_colluders, threshold

_PAIRS = 7
_MEGA = 10**6
_STREAM_BYTES = 1 << 28
_H0, _T1 = bytes(32), bytes(31) + b"\x01"


def rows(quick: bool, _: bool) -> Iterator[Row]:
    """Yields the rows of keystreams, masks, sites' rounds and the server's unmasking."""
    yield from _keystream_rows()
    yield from _neighbour_rows()
    yield _share_of_limit()
    for width in (32, 16):
        yield _against_flower(width, 10, 10 * _MEGA)
    yield from _memory_rows(10 * _MEGA)
    yield from _client_rows(quick)
    yield from _server_rows(quick)


@dataclass
class Site:
    """The first site of a round, with what it is sent by the others.

    Attributes:
        sites: n.
        ring: the codec.
        update: float32, shape [d].
    """

    sites: int
    ring: Ring
    update: NDArray[np.float32]

    def __post_init__(self) -> None:
        self._signer, self._channel, self._mask, self._seed = (
            SigningKey.generate(),
            os.urandom(32),
            os.urandom(32),
            os.urandom(32),
        )
        self._t = threshold(self.sites, default_colluders(self.sites))
        self._others = range(2, self.sites + 1)
        self._channels = {v: keys.public_of(os.urandom(32)) for v in self._others}
        self._masks = {v: keys.public_of(os.urandom(32)) for v in self._others}
        peers = {v: SigningKey.generate() for v in self._others}
        self._signed = {v: (p.public_hex, p.sign(bytes(98))) for v, p in peers.items()}
        self._boxes = {
            v: keys.seal_share(self._channel_key(v, v, 1), _H0, _T1, v, 1, bytes(66))
            for v in self._others
        }

    def round(self) -> bytes:
        """Does all that the site computes in the five stages; returns its packed vector."""
        self._advertise()
        self._share()
        packed = self._masked()
        self._check_signatures(self.sites - 1)
        self._signer.sign(bytes(32))
        self._check_signatures(self._t)
        return packed

    def mask_keys(self) -> list[tuple[bytes, int]]:
        """Returns the keys of the site's own mask and of the pair masks."""
        own = (keys.self_mask_key(self._seed, _T1, 1), 1)
        pairs = (keys.pair_mask_key(self._mask, self._masks[v], _T1, 1, v) for v in self._others)
        return [own, *((key, 1) for key in pairs)]

    def _advertise(self) -> None:
        for secret in (self._channel, self._mask):
            keys.public_of(secret)
        keys.commitment(_H0, 1, self._seed)
        self._signer.sign(bytes(98))

    def _share(self) -> None:
        self._check_signatures(self.sites - 1)
        of_seed = shamir.share(self._seed, self._t, self.sites, os.urandom)
        of_mask = shamir.share(self._mask, self._t, self.sites, os.urandom)
        for v in self._others:
            shares = of_seed[v - 1] + of_mask[v - 1]
            keys.seal_share(self._channel_key(v, 1, v), _H0, _T1, 1, v, shares)
        self._signer.sign(bytes(32))

    def _masked(self) -> bytes:
        for v, box in self._boxes.items():
            keys.open_share(self._channel_key(v, v, 1), _H0, _T1, v, 1, box)
        masked = self.ring.encode(self.update, 0.5)
        masks.add_masks(masked, self.mask_keys(), self.ring.width)
        self._signer.sign(self.ring.digest(masked))
        return self.ring.pack(masked)

    def _channel_key(self, other: int, sender: int, to: int) -> bytes:
        shared = keys.agree(self._channel, self._channels[other], other)
        return keys.derive(shared, _T1, "share-enc", idx(sender), idx(to))

    def _check_signatures(self, count: int) -> None:
        for public, signature in list(self._signed.values())[:count]:
            if not verify(public, signature, bytes(98)):
                raise AssertionError("A signature made here does not verify.")


@dataclass
class Server:
    """The server after a round, which takes the masks off a sum.

    Attributes:
        sites: n.
        dropped: sites that shared and then sent no vector.
        ring: the codec.
    """

    sites: int
    dropped: int
    ring: Ring

    def __post_init__(self) -> None:
        self._t = threshold(self.sites, default_colluders(self.sites))
        self._shares = [
            dict(enumerate(shamir.share(os.urandom(32), self._t, self.sites, os.urandom), start=1))
            for _ in range(self.sites)
        ]
        self._public = [keys.public_of(os.urandom(32)) for _ in range(self.sites)]
        self._sum = np.zeros(self.ring.length, self.ring.dtype)

    def unmask(self) -> None:
        """Rebuilds the secrets, checks them, takes all masks off and decodes the sum."""
        found = []
        for owner, shares in enumerate(self._shares, start=1):
            chosen = {x: shares[x] for x in range(1, self._t + 1)}
            secret = shamir.reconstruct(chosen)
            if owner > self.dropped:
                keys.commitment(_H0, owner, secret)
                found.append((keys.self_mask_key(secret, _T1, owner), -1))
                continue
            keys.public_of(secret)
            found += [
                (keys.pair_mask_key(secret, self._public[v - 1], _T1, owner, v), 1)
                for v in range(self.dropped + 1, self.sites + 1)
            ]
        masks.add_masks(self._sum, found, self.ring.width)
        self.ring.decode(self._sum)


class FlowerSite:
    """A node of Flower's SecAgg+ that has all keys and shares and is asked for its vector."""

    def __init__(self, sites: int, update: NDArray[np.float32]) -> None:
        self._state = SecAggPlusState()
        self._state.nid, self._state.threshold = 1, sites // 2 + 1
        # The defaults of Flower's SecAggPlusWorkflow.
        self._state.clipping_range, self._state.target_range = 8.0, 1 << 22
        self._state.mod_range, self._state.max_weight = 1 << 32, 1000.0
        self._state.rd_seed = os.urandom(32)
        self._state.rd_seed_share_dict, self._state.sk1_share_dict = {}, {}
        self._state.ss2_dict, self._state.public_keys_dict = {}, {}
        secret, _ = generate_key_pairs()
        self._state.sk1 = private_key_to_bytes(secret)
        self._boxes = [self._box_from(node) for node in range(2, sites + 1)]
        self._update = ndarrays_to_parameters([update])

    def mask(self) -> None:
        """Does Flower's stage "collect masked vectors"."""
        configs = ConfigRecord({"ctxts": self._boxes, "srcs": list(range(2, len(self._boxes) + 2))})
        _collect_masked_vectors(self._state, configs, 500, self._update)

    def _box_from(self, node: int) -> bytes:
        secret, public = generate_key_pairs()
        self._state.public_keys_dict[node] = (public_key_to_bytes(public), b"")
        shared = generate_shared_key(secret, public)
        self._state.ss2_dict[node] = shared
        text = share_keys_plaintext_concat(node, 1, bytes(36), bytes(340))
        return encrypt(shared, text)


def _site(width: int, sites: int, dimension: int) -> Site:
    update = np.random.default_rng(1).normal(0, 0.1, dimension).astype(np.float32)
    return Site(sites, Ring(width, sites, dimension, 1.0, 16), update)


def _seconds(*jobs: Callable[[], object], repeats: int = _PAIRS) -> list[float]:
    """Returns the shortest time of each job in seconds; they take turns."""
    best = [float("inf")] * len(jobs)
    for _ in range(repeats):
        for at, job in enumerate(jobs):
            began = time.perf_counter()
            job()
            best[at] = min(best[at], time.perf_counter() - began)
    return best


def _stream(backend: str) -> None:
    stream = masks.BACKENDS[backend](bytes(32), 0, 0)
    zeros, buffer = memoryview(bytes(masks.CHUNK)), bytearray(masks.CHUNK)
    for _ in range(_STREAM_BYTES // masks.CHUNK):
        stream.update_into(zeros, buffer)


def _add() -> None:
    total = np.zeros(masks.CHUNK // 4, np.uint32)
    words = np.ones_like(total)
    for _ in range(_STREAM_BYTES // masks.CHUNK):
        np.add(total, words, out=total)


def _keystream_rows() -> Iterator[Row]:
    took = _seconds(*(partial(_stream, name) for name in masks.BACKENDS))
    speeds = {
        name: _STREAM_BYTES / 1e9 / each for name, each in zip(masks.BACKENDS, took, strict=True)
    }
    for name, speed in speeds.items():
        yield Row(f"keystream_{name}_1thread", speed, "GB/s")
    yield Row(f"keystream_chosen_{masks.chosen_backend()}", speeds[masks.chosen_backend()], "GB/s")


def _neighbour_rows() -> Iterator[Row]:
    found = [(os.urandom(32), 1) for _ in range(10)]
    for width, dtype in ((32, "<u4"), (16, "<u2")):
        vector = np.zeros(10 * _MEGA, dtype)
        (took,) = _seconds(partial(masks.add_masks, vector, found, width))
        yield Row(f"per_neighbour_{width}bit_1e7", 1e3 * took / len(found), "ms")


def _share_of_limit() -> Row:
    """Compares the mask kernel with its keystreams and additions measured alone, on one thread."""
    count, vector = 16, np.zeros(_STREAM_BYTES // 16 // 4, np.uint32)
    found = [(os.urandom(32), 1) for _ in range(count)]
    kernel = partial(masks.add_masks, vector, found, 32, 1)
    whole, stream, add = _seconds(kernel, partial(_stream, masks.chosen_backend()), _add)
    return Row("share_of_limit", (stream + add) / whole, "of 1")


def _against_flower(width: int, sites: int, dimension: int) -> Row:
    ours = _site(width, sites, dimension)
    theirs = FlowerSite(sites, ours.update)
    ours_s, flower_s = _seconds(ours.round, theirs.mask)
    name = f"client_round_{width}bit_n{sites}_{_size(dimension)}_vs_flower"
    return Row(name, 1e3 * ours_s, "ms", flower_s / ours_s)


def _memory_rows(dimension: int) -> Iterator[Row]:
    for width in (32, 24, 20, 16):
        site = _site(width, 10, dimension)
        tracemalloc.start()
        site.round()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        share = 1 + peak / site.update.nbytes
        yield Row(f"client_peak_memory_{width}bit", share, "of the float32 vector")


def _client_rows(quick: bool) -> Iterator[Row]:
    sizes = (_MEGA, 10 * _MEGA) if quick else (_MEGA, 10 * _MEGA, 100 * _MEGA)
    for dimension in sizes:
        repeats = 3 if quick or dimension > 10 * _MEGA else _PAIRS
        for sites in (10, 100) if quick else (10, 50, 100):
            for width in (32, 16) if quick else (32, 24, 16):
                site = _site(width, sites, dimension)
                (took,) = _seconds(site.round, repeats=repeats)
                yield Row(f"client_round_{width}bit_n{sites}_{_size(dimension)}", 1e3 * took, "ms")


def _server_rows(quick: bool) -> Iterator[Row]:
    """Yields the times to unmask with every tenth site dropped; under ``quick`` the named row."""
    cases = [(32, 100, 10 * _MEGA)]
    if not quick:
        everything = [(32, n, d * _MEGA) for d in (1, 10, 100) for n in (10, 50, 100)]
        cases += [(16, 100, 10 * _MEGA), *(case for case in everything if case not in cases)]
    for width, sites, dimension in cases:
        server = Server(sites, sites // 10, Ring(width, sites, dimension, 1.0, 16))
        repeats = 1 if quick or dimension > 10 * _MEGA else 3
        (took,) = _seconds(server.unmask, repeats=repeats)
        bits = "" if width == 32 else f"_{width}bit"
        yield Row(f"server_n{sites}_drop{sites // 10}_{_size(dimension)}{bits}_s", took, "s")


def _size(dimension: int) -> str:
    return f"1e{len(str(dimension)) - 1}"
