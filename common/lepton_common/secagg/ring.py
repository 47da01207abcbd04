"""Fixed-point codec: float32 updates as elements of Z / 2**width."""

import hashlib
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lepton_common.errors import EncodingError, MalformedMessage
from lepton_common.secagg.encoding import tagged_hash

_LANE = 1 << 20


@dataclass(frozen=True)
class Ring:
    """The codec of one round."""

    width: int
    parties: int
    dimension: int
    clip: float
    weight_bits: int

    def __post_init__(self):
        if self.width not in (16, 20, 24, 32) or not (0 < self.clip < math.inf) or self.parties < 2:
            raise ValueError("width")
        if self.scale_bits < 0:
            raise ValueError("clip too large")

    @property
    def dtype(self):
        return np.dtype("<u2" if self.width == 16 else "<u4")

    @property
    def limb_width(self):
        return self.width - 1 - math.ceil(math.log2(max(2, self.parties)))

    @property
    def limbs(self):
        return math.ceil((self.weight_bits + 1) / self.limb_width)

    @property
    def length(self):
        return self.dimension + self.limbs

    @property
    def scale_bits(self):
        return math.floor(math.log2(((2 ** (self.width - 1) - 1) // self.parties) / self.clip))

    def encode(self, vector, weight):
        if not (0 < weight <= 1):
            raise EncodingError("weight")
        a = max(1, round(weight * 2**self.weight_bits))
        out = np.empty(self.length, self.dtype)
        clipped = np.clip(vector, np.float32(-self.clip), np.float32(self.clip))
        if not np.isfinite(vector).all():
            raise EncodingError("not finite")
        q = np.rint(clipped * np.float32(2.0**self.scale_bits * a / 2**self.weight_bits))
        out[: self.dimension] = q.astype(np.int32).astype(np.uint32).astype(self.dtype)
        for i in range(self.limbs):
            out[self.dimension + i] = (a >> (i * self.limb_width)) & (2**self.limb_width - 1)
        if self.width in (20, 24):
            out &= self.dtype.type(2**self.width - 1)
        return out

    def decode(self, total):
        v = total.astype(np.int64) & (2**self.width - 1)
        a = sum(int(v[self.dimension + i]) << (i * self.limb_width) for i in range(self.limbs))
        v = v[: self.dimension]
        v = np.where(v >= 2 ** (self.width - 1), v - 2**self.width, v)
        return v / 2.0**self.scale_bits, a / 2**self.weight_bits

    def pack(self, vector):
        if self.width in (16, 32):
            return vector.tobytes()
        low = vector.astype("<u2").tobytes()
        if self.width == 24:
            return low + (vector >> 16).astype(np.uint8).tobytes()
        high = (vector >> 16).astype(np.uint8)
        high = np.append(high, np.zeros(len(high) % 2, np.uint8))
        return low + (high[::2] | high[1::2] << 4).tobytes()

    def unpack(self, data):
        n = self.length
        if self.width in (16, 32):
            if len(data) != n * self.dtype.itemsize:
                raise MalformedMessage("length")
            return np.frombuffer(data, self.dtype)
        high_bytes = n if self.width == 24 else (n + 1) // 2
        if len(data) != 2 * n + high_bytes:
            raise MalformedMessage("length")
        low = np.frombuffer(data[: 2 * n], "<u2").astype(np.uint32)
        high = np.frombuffer(data[2 * n :], np.uint8)
        if self.width == 20:
            if n % 2 and high[-1] >> 4:
                raise MalformedMessage("padding")
            high = np.stack([high & 15, high >> 4], 1).ravel()[:n]
        return low | high.astype(np.uint32) << 16

    def digest(self, vector):
        if self.width in (16, 32):
            parts = [hashlib.sha256(vector[s : s + _LANE]).digest() for s in range(0, len(vector), _LANE)]
        else:
            parts = [hashlib.sha256(self.pack(vector)).digest()]
        return tagged_hash("digest", *parts)
