"""SA1 at the site: a pure state machine that answers each of five stages once.

Everything that a site checks before it lets go of something is here; storage (`vault`) and
network (`secure`) stand around it. After any error the round is over for this site: it sends
nothing more but the error's name.
"""

import os
from collections.abc import Callable, Iterator, Sized
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import IntEnum

from lepton_common.arrays import Vector
from lepton_common.errors import (
    ConsistencyFailure,
    DimensionMismatch,
    DuplicateKey,
    InconsistentView,
    MalformedMessage,
    OwnMessageAltered,
    StateError,
    TooFewSites,
)
from lepton_common.identity.keys import SigningKey
from lepton_common.secagg import keys, shamir
from lepton_common.secagg.encoding import Reader, i8, idx, lp, tagged_hash
from lepton_common.secagg.messages import (
    SHARE_BYTES,
    SHARES_BYTES,
    Advertisement,
    Header,
    Signed,
    join_boxes,
    join_by_site,
    split_boxes,
    split_by_site,
    split_signed,
)
from lepton_common.secagg.ring import Integers
from lepton_common.secagg.spec import RoundSpec
from lepton_common.secagg.transcript import hash_adverts, hash_headers, hash_sharers


class Stage(IntEnum):
    """What a site has answered last."""

    BEGUN = 0
    ADVERTISED = 1
    SHARED = 2
    OPENED = 3
    MASKED = 4
    SIGNED = 5
    UNMASKED = 6
    ABORTED = 7


@dataclass
class Participant:
    """One site's part in one round.

    Attributes:
        spec: the round.
        index: the site's 1-based position in its roster.
        signer: the site's long-term key.
        stage: what was answered last.
    """

    spec: RoundSpec
    index: int
    signer: SigningKey
    random_bytes: Callable[[int], bytes] = os.urandom
    stage: Stage = Stage.BEGUN
    _secrets: tuple[bytes, ...] = ()  # c, s, b; needed until the masked vector is out
    _advert: bytes = b""
    _adverts: dict[int, Advertisement] = field(default_factory=dict)
    _t1: bytes = b""
    _shares: dict[int, bytes] = field(default_factory=dict)  # of b and s, by their owner
    _t2: bytes = b""
    _header: bytes = b""
    _survivors: frozenset[int] = frozenset()
    _t3: bytes = b""
    _last: tuple[bytes, ...] = ()  # hash of the last request, and its answer

    @classmethod
    def begin(
        cls,
        spec: RoundSpec,
        name: str,
        signer: SigningKey,
        random_bytes: Callable[[int], bytes] = os.urandom,
    ) -> "Participant":
        """Begins a round that the site's policy has accepted.

        Raises:
            RosterMismatch: the site is not in the round.
            OwnMessageAltered: the round has another key for it.
        """
        index = spec.index_of(name)
        if spec.key_of(index).hex() != signer.public_hex:
            raise OwnMessageAltered("The round lists this site under a key that is not its own.")
        return cls(spec, index, signer, random_bytes)

    def abort(self) -> None:
        """Ends the round for this site and forgets all secrets."""
        self._forget()
        self.stage = Stage.ABORTED

    def advertise(self) -> bytes:
        """SA1 R0: makes fresh keys and returns the signed advertisement.

        Raises:
            StateError: it was called before.
        """
        self._expect(Stage.BEGUN)
        channel, mask, seed = (self.random_bytes(32) for _ in range(3))
        advert = Advertisement(
            self.index,
            keys.public_of(channel),
            keys.public_of(mask),
            keys.commitment(self.spec.hash, self.index, seed),
        )
        self._secrets, self._advert = (channel, mask, seed), advert.to_bytes()
        self.stage = Stage.ADVERTISED
        return Signed.make(self.signer, "adv", self.spec, self._advert).to_bytes()

    def share(self, adverts: bytes) -> bytes:
        """SA1 R1: checks all advertisements and returns the signed, sealed shares of b and s.

        Raises:
            StateError: out of order.
            SecAggError: the advertisements are not those of the pinned sites, or too few.
        """
        self._expect(Stage.ADVERTISED)
        with self._aborting():
            self._adverts = self._checked_adverts(adverts)
            ordered = [advert.to_bytes() for advert in self._adverts.values()]
            self._t1 = hash_adverts(self.spec.hash, ordered)
            dealt = self._deal()
            self._shares = {self.index: dealt[self.index]}
            boxes = {to: self._seal(to, dealt[to]) for to in self._adverts if to != self.index}
            body = idx(self.index) + join_boxes(boxes)
            reply = Signed.make(self.signer, "shares", self.spec, body).to_bytes()
            self.stage = Stage.SHARED
            return reply

    def open(self, boxes: bytes) -> None:
        """SA1 R2, first half: opens all shares; to be called before anything is computed.

        Args:
            boxes: the shares sealed for this site, by sender.

        Raises:
            StateError: out of order.
            SecAggError: a share does not open, or too few came.
        """
        self._expect(Stage.SHARED)
        with self._aborting():
            self._open_all(split_boxes(boxes))
            self._enough(self._shares, "shares")
            self._t2 = hash_sharers(self._t1, self._shares)
            self.stage = Stage.OPENED

    def mask(
        self, values: Vector | Integers, weight: float = 1.0, *, stochastic: bool = False
    ) -> tuple[bytes, bytes]:
        """SA1 R2, second half: encodes and masks; returns signed header and packed vector.

        Args:
            values: float32, or int64 as they are, shape [d].
            weight: the site's share, in (0, 1].
            stochastic: whether to round at random; see `Ring.encode`.

        Raises:
            StateError: out of order.
            DimensionMismatch: the values are not as many as agreed on.
            EncodingError: a value is not finite, or the weight out of bounds.
        """
        self._expect(Stage.OPENED)
        with self._aborting():
            ring = self.spec.ring
            if values.shape != (self.spec.dimension,):
                raise DimensionMismatch("The update has not the length that was agreed on.")
            dither = self.random_bytes(32) if stochastic else None
            packed, digest = ring.mask(
                values, self._mask_keys(sorted(self._shares)), weight, dither
            )
            header = Header(self.index, self._t2, ring.length, self.spec.width, digest)
            self._header = header.to_bytes()
            signed = Signed.make(self.signer, "masked", self.spec, self._header).to_bytes()
            self._secrets = ()
            self.stage = Stage.MASKED
            return signed, packed

    def sign(self, headers: bytes) -> bytes:
        """SA1 R3: checks that all sites saw the same round and signs who survived, once.

        Raises:
            StateError: out of order.
            SecAggError: views differ, a signature is wrong, or too few survived.
        """
        self._expect(Stage.MASKED)
        with self._aborting():
            survivors = split_signed(headers, Header.LENGTH)
            for index, message in survivors.items():
                message.check("masked", self.spec)
                header = Header.from_bytes(message.body)
                agreed = (self._t2, self.spec.ring.length, self.spec.width)
                if index not in self._shares or agreed != (
                    header.t2,
                    header.length,
                    header.width,
                ):
                    raise InconsistentView(f"Site {index} took part in another round than ours.")
            own = survivors.get(self.index)
            if own is None or own.body != self._header:
                raise OwnMessageAltered("The server shows another masked vector than ours.")
            self._enough(survivors, "survivors", least=self.spec.min_survivors)
            self._survivors = frozenset(survivors)
            bodies = [message.body for message in survivors.values()]
            self._t3 = hash_headers(self._t2, bodies)
            signature = keys.sign(self.signer, "consistency", self.spec.hash, self._t3)
            self.stage = Stage.SIGNED
            return idx(self.index) + signature

    def unmask(self, signatures: bytes) -> bytes:
        """SA1 R4: given t signatures on one survivor list, returns what unmasks that sum only.

        For each survivor a share of b, for each site that dropped out a share of s, never both.
        All secrets are forgotten.

        Raises:
            StateError: out of order.
            ConsistencyFailure: a signature is not on the list that this site signed.
            TooFewSites: fewer than t signatures.
        """
        self._expect(Stage.SIGNED)
        with self._aborting():
            signed = split_by_site(signatures, 64)
            for index, signature in signed.items():
                if index not in self._survivors:
                    raise ConsistencyFailure(f"Site {index} signed, but is no survivor.")
                key = self.spec.key_of(index)
                message = keys.signed_bytes("consistency", self.spec.hash, self._t3)
                if not keys.verified(key, signature, message):
                    raise ConsistencyFailure(f"Site {index} did not sign this survivor list.")
            self._enough(signed, "signatures")
            released = {
                owner: shares[:SHARE_BYTES] if owner in self._survivors else shares[SHARE_BYTES:]
                for owner, shares in self._shares.items()
            }
            body = idx(self.index) + join_by_site(released)
            reply = Signed.make(self.signer, "unmask", self.spec, body).to_bytes()
            self._forget()
            self._last = (tagged_hash("unmask", signatures), reply)
            self.stage = Stage.UNMASKED
            return reply

    def unmask_again(self, signatures: bytes) -> bytes:
        """SA1 R4, where the answer got lost: returns the same bytes to the same request.

        That tells nobody anything new, and lets a server that crashed finish its sum.

        Raises:
            StateError: it was never answered, or the request is another one.
        """
        self._expect(Stage.UNMASKED)
        asked, reply = self._last
        if tagged_hash("unmask", signatures) != asked:
            raise StateError("This site has unmasked one list of survivors, and this is another.")
        return reply

    def to_bytes(self) -> bytes:
        """Returns the whole state, secrets included, for the site's sealed file."""
        adverts = [advert.to_bytes() for advert in self._adverts.values()]
        return lp(
            self.spec.to_bytes(),
            i8(self.index),
            i8(int(self.stage)),
            lp(*self._secrets),
            self._advert,
            lp(*adverts),
            self._t1,
            join_by_site(self._shares),
            self._t2,
            self._header,
            lp(*map(idx, sorted(self._survivors))),
            self._t3,
            lp(*self._last),
        )

    @classmethod
    def from_bytes(cls, data: bytes, signer: SigningKey) -> "Participant":
        """Restores a state that `to_bytes` wrote.

        Raises:
            MalformedMessage: it is none.
        """
        reader = Reader(data)
        spec, index, stage = RoundSpec.from_bytes(reader.item()), reader.number(), reader.number()
        if stage > Stage.ABORTED:
            raise MalformedMessage("The sealed state is of another version.")
        found = cls(spec, index, signer, stage=Stage(stage))
        found._secrets = tuple(Reader(reader.item()).rest(32))
        found._advert = reader.item()
        adverts = map(Advertisement.from_bytes, Reader(reader.item()).rest(Advertisement.LENGTH))
        found._adverts = {advert.index: advert for advert in adverts}
        found._t1 = reader.item()
        found._shares = split_by_site(reader.item(), SHARES_BYTES)
        found._t2, found._header = reader.item(), reader.item()
        found._survivors = frozenset(map(int.from_bytes, Reader(reader.item()).rest(2)))
        found._t3 = reader.item()
        found._last = tuple(Reader(reader.item()).rest())
        reader.end()
        return found

    def _expect(self, stage: Stage) -> None:
        if self.stage is not stage:
            raise StateError(
                f"This site's round is at '{self.stage.name.lower()}', not at "
                f"'{stage.name.lower()}'; each stage answers once."
            )

    @contextmanager
    def _aborting(self) -> Iterator[None]:
        """Ends the round for this site when what happens inside fails."""
        try:
            yield
        except BaseException:
            self.abort()
            raise

    def _forget(self) -> None:
        self._secrets, self._shares = (), {}

    def _enough(self, sites: Sized, what: str, least: int = 0) -> None:
        needed = max(self.spec.threshold, least)
        if len(sites) < needed:
            raise TooFewSites(f"{len(sites)} {what} came and {needed} are needed.")

    def _checked_adverts(self, adverts: bytes) -> dict[int, Advertisement]:
        messages = split_signed(adverts, Advertisement.LENGTH)
        for message in messages.values():
            message.check("adv", self.spec)
        own = messages.get(self.index)
        if own is None or own.body != self._advert:
            raise OwnMessageAltered("The server shows another advertisement than ours.")
        found = {index: Advertisement.from_bytes(m.body) for index, m in messages.items()}
        public = [key for a in found.values() for key in (a.channel_key, a.mask_key)]
        if len(set(public)) != len(public):
            raise DuplicateKey("Two advertised keys are the same; a site is being imitated.")
        self._enough(found, "advertisements")
        return found

    def _deal(self) -> dict[int, bytes]:
        """Returns for each site of the roster its share of b and its share of s, joined."""
        _, mask, seed = self._secrets
        n, t = len(self.spec.roster), self.spec.threshold
        of_seed = shamir.share(seed, t, n, self.random_bytes)
        of_mask = shamir.share(mask, t, n, self.random_bytes)
        return {i: of_seed[i - 1] + of_mask[i - 1] for i in self.spec.indices}

    def _seal(self, to: int, shares: bytes) -> bytes:
        key = self._channel_key(to, self.index, to)
        return keys.seal_share(key, self.spec.hash, self._t1, self.index, to, shares)

    def _channel_key(self, other: int, sender: int, to: int) -> bytes:
        secret = keys.agree(self._secrets[0], self._adverts[other].channel_key, other)
        return keys.derive(secret, self._t1, "share-enc", idx(sender), idx(to))

    def _open_all(self, boxes: dict[int, bytes]) -> None:
        for sender, box in boxes.items():
            if sender == self.index or sender not in self._adverts:
                raise InconsistentView(f"Site {sender} cannot have sent us shares.")
            key = self._channel_key(sender, sender, self.index)
            self._shares[sender] = keys.open_share(
                key, self.spec.hash, self._t1, sender, self.index, box
            )

    def _mask_keys(self, sharers: list[int]) -> list[tuple[bytes, int]]:
        _, mask, seed = self._secrets
        own = (keys.self_mask_key(seed, self._t1, self.index), 1)
        pairs = [
            (
                keys.pair_mask_key(
                    mask, self._adverts[other].mask_key, self._t1, self.index, other
                ),
                keys.pair_sign(self.index, other),
            )
            for other in sharers
            if other != self.index
        ]
        return [own, *pairs]
