"""SA1 at the server: a pure state machine that learns one sum and nothing else.

It takes what the sites say, one stage after another, and checks all of it, so that a faulty
site is named. What protects the sites does not rest on these checks: each site makes its own.
"""

import itertools
from collections.abc import Callable, Container, Iterator, Sequence, Sized
from functools import partial

import numpy as np
from numpy.typing import NDArray

from lepton_common.errors import (
    BadSignature,
    DimensionMismatch,
    DuplicateKey,
    InconsistentView,
    MalformedMessage,
    ShareMismatch,
    StateError,
    TooFewSites,
)
from lepton_common.secagg import keys, shamir
from lepton_common.secagg.encoding import Reader, idx, lp
from lepton_common.secagg.masks import RingVector, add_masks
from lepton_common.secagg.messages import (
    SHARE_BYTES,
    Advertisement,
    Header,
    Signed,
    join_boxes,
    join_by_site,
    join_signed,
    split_boxes,
    split_by_site,
    split_signed,
)
from lepton_common.secagg.spec import RoundSpec
from lepton_common.secagg.transcript import hash_adverts, hash_headers, hash_sharers

_MOST_SUBSETS = 5000  # tried where sites send false shares


class Coordinator:
    """The server's part in one round.

    Attributes:
        spec: the round.
        survivors: the sites whose masked vectors are in the sum, once `close_masked` was called.
    """

    def __init__(self, spec: RoundSpec) -> None:
        self.spec = spec
        self.survivors: tuple[int, ...] = ()
        self._adverts: dict[int, Signed] = {}
        self._boxes: dict[int, dict[int, bytes]] = {}
        self._headers: dict[int, Signed] = {}
        self._signatures: dict[int, bytes] = {}
        self._released: dict[int, dict[int, bytes]] = {}
        self._t1 = self._t2 = self._t3 = b""
        self._false: set[int] = set()  # holders that sent a false share
        ring = spec.ring
        self._sum: RingVector = np.zeros(ring.length, ring.dtype)

    def take_advert(self, index: int, data: bytes) -> None:
        """SA1 R0: takes a site's advertisement.

        Raises:
            SecAggError: it is not the site's, or uses another site's keys.
            MalformedMessage: it is no advertisement.
        """
        message = self._from(index, Signed.from_bytes(data, Advertisement.LENGTH), "adv")
        advert = Advertisement.from_bytes(message.body)
        known = [Advertisement.from_bytes(other.body) for other in self._adverts.values()]
        taken = {key for other in known for key in (other.channel_key, other.mask_key)}
        own = {advert.channel_key, advert.mask_key}
        if len(own) < 2 or own & taken:
            raise DuplicateKey(f"Site {index} advertises a key that is in use.")
        for key in own:
            keys.check_order(key, index)
        self._adverts[index] = message

    def close_adverts(self) -> bytes:
        """Returns what all sites are shown in SA1 R1.

        Raises:
            TooFewSites: fewer than t advertised.
        """
        self._enough(self._adverts, "advertised")
        ordered = [self._adverts[index].body for index in sorted(self._adverts)]
        self._t1 = hash_adverts(self.spec.hash, ordered)
        return join_signed(self._adverts.values())

    @property
    def advertised(self) -> list[int]:
        """The sites that advertised: U1."""
        return sorted(self._adverts)

    def take_shares(self, index: int, data: bytes) -> None:
        """SA1 R1: takes a site's sealed shares.

        Raises:
            SecAggError: they are not the site's, or not for all sites that advertised.
            MalformedMessage: they are none.
        """
        self._in(index, self._adverts)
        message = self._from(index, Signed.from_bytes(data), "shares")
        boxes = split_boxes(message.body[2:])
        if set(boxes) != set(self._adverts) - {index}:
            raise InconsistentView(f"Site {index} shared with other sites than advertised.")
        self._boxes[index] = boxes

    def close_shares(self) -> dict[int, bytes]:
        """Returns, for each site that shared, the boxes it is sent in SA1 R2.

        Raises:
            TooFewSites: fewer than t shared.
        """
        self._enough(self._boxes, "shared")
        self._t2 = hash_sharers(self._t1, self._boxes)
        return {
            to: join_boxes(
                {sender: self._boxes[sender][to] for sender in self._boxes if sender != to}
            )
            for to in sorted(self._boxes)
        }

    def take_masked(self, index: int, header: bytes, packed: bytes) -> None:
        """SA1 R2: adds a site's masked vector.

        Raises:
            SecAggError: header and vector are not the site's or not of this round.
            MalformedMessage: they are none.
        """
        self._in(index, self._boxes)
        if index in self._headers:
            raise StateError(f"Site {index} has sent its masked vector before.")
        message = self._from(index, Signed.from_bytes(header, Header.LENGTH), "masked")
        said, ring = Header.from_bytes(message.body), self.spec.ring
        if (said.length, said.width) != (ring.length, ring.width):
            raise DimensionMismatch(f"Site {index} masked a vector of another form.")
        if said.t2 != self._t2:
            raise InconsistentView(f"Site {index} has seen other participants.")
        masked = ring.unpack(packed)
        if ring.digest(masked) != said.digest:
            raise MalformedMessage(f"The masked vector of site {index} was altered on its way.")
        self._sum += masked
        self._headers[index] = message

    def close_masked(self) -> bytes:
        """Returns the headers that all survivors are shown in SA1 R3.

        Raises:
            TooFewSites: fewer survived than the specification asks for.
        """
        self._enough(self._headers, "masked", max(self.spec.threshold, self.spec.min_survivors))
        self.survivors = tuple(sorted(self._headers))
        bodies = [self._headers[index].body for index in self.survivors]
        self._t3 = hash_headers(self._t2, bodies)
        return join_signed(self._headers.values())

    def take_signature(self, index: int, data: bytes) -> None:
        """SA1 R3: takes a site's signature on the survivors.

        Raises:
            BadSignature: it is not on this list, or not the site's.
        """
        self._in(index, self._headers)
        key, signed = (
            self.spec.key_of(index),
            keys.signed_bytes("consistency", self.spec.hash, self._t3),
        )
        if data[:2] != idx(index) or not keys.verified(key, data[2:], signed):
            raise BadSignature(f"Site {index} did not sign the list of survivors.")
        self._signatures[index] = data[2:]

    def close_signatures(self) -> bytes:
        """Returns the signatures that all survivors are shown in SA1 R4.

        Raises:
            TooFewSites: fewer than t signed.
        """
        self._enough(self._signatures, "signed")
        return join_by_site(self._signatures)

    @property
    def missing(self) -> list[int]:
        """The sites that signed the survivors and have not released their shares yet."""
        return sorted(set(self._signatures) - set(self._released))

    def take_unmasking(self, index: int, data: bytes) -> None:
        """SA1 R4: takes the shares that a site released.

        Raises:
            SecAggError: they are not the site's, or of other sites than those that shared.
            MalformedMessage: they are none.
        """
        self._in(index, self._signatures)
        message = self._from(index, Signed.from_bytes(data), "unmask")
        released = split_by_site(message.body[2:], SHARE_BYTES)
        if set(released) != set(self._boxes):
            raise InconsistentView(f"Site {index} released shares of other sites than asked.")
        self._released[index] = released

    def unmask(self) -> tuple[NDArray[np.float64], float]:
        """Returns the sum of the survivors' weighted vectors, shape [d], and of their weights.

        Raises:
            TooFewSites: fewer than t released their shares.
            ShareMismatch: a site dealt shares that do not rebuild what it committed to.
        """
        self._enough(self._released, "released their shares")
        add_masks(self._sum, self._masks_to_remove(), self.spec.width)
        return self.spec.ring.decode(self._sum)

    def to_bytes(self) -> bytes:
        """Returns the state after SA1 R3, all that finishing from disk takes but the replies."""
        boxed = dict.fromkeys(self._boxes, b"")
        return lp(
            self.spec.to_bytes(),
            join_signed(self._adverts.values()),
            join_by_site(boxed),
            join_signed(self._headers.values()),
            join_by_site(self._signatures),
            self.spec.ring.pack(self._sum),
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> "Coordinator":
        """Restores what `to_bytes` returned.

        Raises:
            MalformedMessage: it is none.
        """
        reader = Reader(data)
        found = cls(RoundSpec.from_bytes(reader.item()))
        found._adverts = split_signed(reader.item(), Advertisement.LENGTH)
        found._boxes = {index: {} for index in split_by_site(reader.item(), 0)}
        found._headers = split_signed(reader.item(), Header.LENGTH)
        found._signatures = split_by_site(reader.item(), 64)
        found._sum = found.spec.ring.unpack(reader.item()).copy()
        reader.end()
        found.survivors = tuple(sorted(found._headers))
        return found

    def _masks_to_remove(self) -> list[tuple[bytes, int]]:
        adverts = {
            index: Advertisement.from_bytes(message.body)
            for index, message in self._adverts.items()
        }
        ordered = [self._adverts[index].body for index in sorted(self._adverts)]
        t1, h0 = hash_adverts(self.spec.hash, ordered), self.spec.hash
        masks = []
        for owner in sorted(self._boxes):
            advert = adverts[owner]
            if owner in self._headers:
                seed = self._rebuild(owner, partial(_committed, h0, advert))
                masks.append((keys.self_mask_key(seed, t1, owner), -1))
                continue
            secret = self._rebuild(owner, partial(_advertised, advert))
            masks += [
                (
                    keys.pair_mask_key(secret, adverts[survivor].mask_key, t1, owner, survivor),
                    -keys.pair_sign(survivor, owner),
                )
                for survivor in self.survivors
            ]
        return masks

    def _rebuild(self, owner: int, fits: Callable[[bytes], bool]) -> bytes:
        """Returns a site's secret from shares that rebuild what it committed to.

        Where some holders send false shares, ever more of them are left out; who is found false
        for one owner is asked last for the others.
        """
        shares = {x: self._released[x][owner] for x in self._released}
        holders = sorted(shares, key=lambda x: (x in self._false, x))
        t = self.spec.threshold
        for chosen in itertools.islice(_leaving_out(holders, t), _MOST_SUBSETS):
            try:
                secret = shamir.reconstruct({x: shares[x] for x in chosen})
            except ValueError:
                continue
            if not fits(secret):
                continue
            if list(chosen) != holders[:t]:
                self._false |= _false_holders(shares, chosen, secret)
            return secret
        raise ShareMismatch(f"The shares that site {owner} dealt do not fit its commitment.")

    def _from(self, index: int, message: Signed, tag: str) -> Signed:
        if message.index != index:
            raise BadSignature(f"Site {index} speaks for site {message.index}.")
        message.check(tag, self.spec)
        return message

    def _in(self, index: int, stage: Container[int]) -> None:
        if index not in stage:
            raise StateError(f"Site {index} is not in this stage of the round.")

    def _enough(self, sites: Sized, what: str, least: int | None = None) -> None:
        needed = least or self.spec.threshold
        if len(sites) < needed:
            raise TooFewSites(f"{len(sites)} sites {what} and {needed} are needed.")


def _committed(h0: bytes, advert: Advertisement, seed: bytes) -> bool:
    return keys.commitment(h0, advert.index, seed) == advert.commitment


def _advertised(advert: Advertisement, secret: bytes) -> bool:
    return keys.public_of(secret) == advert.mask_key


def _leaving_out(holders: list[int], count: int) -> Iterator[tuple[int, ...]]:
    """Yields choices of ``count`` holders, leaving out none of the first ones, then one, ..."""
    for left_out in range(len(holders) - count + 1):
        for excluded in itertools.combinations(holders[: count + left_out], left_out):
            yield tuple(x for x in holders if x not in excluded)[:count]


def _false_holders(shares: dict[int, bytes], good: Sequence[int], secret: bytes) -> set[int]:
    """Returns the holders whose share is not on the polynomial of the good ones."""
    most, found = list(good)[:-1], set()
    for holder in set(shares) - set(good):
        try:
            fits = shamir.reconstruct({x: shares[x] for x in [*most, holder]}) == secret
        except ValueError:
            fits = False
        if not fits:
            found.add(holder)
    return found
