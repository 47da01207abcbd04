"""Tests of the fixed-point codec: known answers, round trips, overflow, and packing."""

import hashlib
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lepton_common.errors import EncodingError, MalformedMessage
from lepton_common.secagg.encoding import tagged_hash
from lepton_common.secagg.masks import LANE, add_masks
from lepton_common.secagg.ring import Ring, whole_clip

_WIDTHS = [16, 20, 24, 32]
_LENGTHS = [1, 2, 2**17 + 1, LANE - 1, LANE, LANE + 7]


def _random(ring, seed=0):
    elements = np.random.default_rng(seed).integers(0, 2**ring.width, ring.length)
    return elements.astype(ring.dtype)


def _kat_update(site):
    return np.linspace(-1.5, 1.5, 1000).astype(np.float32) * np.float32(site / 4)


def test_known_sum(vectors):
    known = json.loads((vectors / "sa1.json").read_text())["transcript"]
    ring = Ring(32, 5, 1000, 1.0, 16)
    total = np.zeros(ring.length, ring.dtype)
    for site in (1, 2, 3, 5):
        total += ring.encode(_kat_update(site), site / 8)
    assert total[:4].tolist() == known["sum_first"]
    assert total[-2:].tolist() == known["sum_last"]
    assert hashlib.sha256(total.tobytes()).hexdigest() == known["sum_sha256"]
    values, weight = ring.decode(total)
    expected = sum(np.clip(_kat_update(u), -1, 1).astype(np.float64) * u / 8 for u in (1, 2, 3, 5))
    np.testing.assert_allclose(values, expected, atol=1e-6)
    assert weight == 11 / 8


@pytest.mark.parametrize(
    ("width", "bits"),
    [(16, (11, 8, 7)), (20, (15, 12, 11)), (24, (19, 16, 15)), (32, (27, 24, 23))],
)
def test_fraction_bits_are_those_of_the_protocol(width, bits):
    found = tuple(Ring(width, n, 10, 1.0, 16).scale_bits for n in (10, 100, 200))
    assert found == bits


def test_dimensions():
    ring = Ring(16, 200, 10, 1.0, 16)
    assert (ring.limb_width, ring.limbs, ring.length) == (7, 3, 13)
    assert ring.dtype == np.dtype("<u2")
    assert Ring(32, 2, 10, 1.0, 16).limbs == 1
    assert Ring(24, 2, 10, 1.0, 16).dtype == np.dtype("<u4")


@pytest.mark.parametrize("clip", [1.0, 0.1, 0.3, 1 / 3, 1.7, 163 / 128, 1e-3, 7.99])
@pytest.mark.parametrize("width", _WIDTHS)
def test_a_sum_at_the_bound_never_overflows(width, clip):
    for parties in range(2, 201):
        ring = Ring(width, parties, 2, clip, 16)
        largest = ring.encode(np.array([np.inf, -np.inf], np.float32).clip(-1e30, 1e30), 1.0)
        total = (largest.astype(np.uint64) * parties % 2**width).astype(ring.dtype)
        values, weight = ring.decode(total)
        most = parties * clip
        np.testing.assert_allclose(values, [most, -most], atol=parties * 2.0**-ring.scale_bits)
        assert abs(values).max() * 2**ring.scale_bits < 2 ** (width - 1)
        assert weight == parties


@pytest.mark.parametrize("width", _WIDTHS)
def test_the_scale_is_the_largest_power_of_two_that_fits(width):
    for parties in (2, 3, 10, 200):
        for clip in (1.0, 0.1, 0.25, 3.0):
            ring = Ring(width, parties, 1, clip, 16)
            most = (2 ** (width - 1) - 1) // parties
            assert clip * 2.0**ring.scale_bits <= most < clip * 2.0 ** (ring.scale_bits + 1)


@given(
    st.sampled_from(_WIDTHS),
    st.integers(2, 8),
    hnp.arrays(np.float32, st.integers(1, 40), elements=st.floats(-2, 2, width=32)),
    st.floats(2**-16, 1),
)
def test_round_trip_of_a_sum(width, parties, vector, weight):
    ring = Ring(width, parties, len(vector), 1.0, 16)
    total = np.zeros(ring.length, ring.dtype)
    for _ in range(parties):
        total += ring.encode(vector, weight)
    values, weights = ring.decode(total)
    applied = round(weight * 2**16) / 2**16
    assert weights == parties * applied
    expected = parties * applied * np.clip(vector, -1, 1).astype(np.float64)
    rounding = parties * (0.5 * 2.0**-ring.scale_bits + 2.0**-24)
    np.testing.assert_allclose(values, expected, rtol=0, atol=rounding)


@pytest.mark.parametrize("weight_bits", [0, 1, 16, 20, 32])
@pytest.mark.parametrize("width", _WIDTHS)
def test_weights_add_up_exactly(width, weight_bits):
    ring = Ring(width, 5, 3, 1.0, weight_bits)
    weights = [1.0, 0.5, 2.0**-weight_bits, 1e-12, 0.7]
    total = np.zeros(ring.length, ring.dtype)
    for weight in weights:
        total += ring.encode(np.zeros(3, np.float32), weight)
    units = sum(max(1, round(weight * 2**weight_bits)) for weight in weights)
    assert ring.decode(total)[1] == units / 2**weight_bits


@pytest.mark.parametrize("length", _LENGTHS)
@pytest.mark.parametrize("width", _WIDTHS)
def test_pack_round_trip(width, length):
    ring = Ring(width, 3, length, 1.0, 16)
    vector = _random(ring)
    packed = ring.pack(vector)
    assert len(packed) == ring.packed_bytes == math.ceil(ring.length * width / 8)
    found = ring.unpack(packed)
    assert found.dtype == ring.dtype
    np.testing.assert_array_equal(found, vector)


def test_packing_is_laid_out_in_planes():
    ring = Ring(20, 2, 2, 1.0, 8)
    assert ring.length == 3
    packed = ring.pack(np.array([0x12345, 0x6789A, 0xBCDEF], "<u4"))
    assert packed.hex() == "4523" + "9a78" + "efcd" + "61" + "0b"
    ring = Ring(24, 2, 1, 1.0, 8)
    packed = ring.pack(np.array([0x123456, 0x789ABC], "<u4"))
    assert packed.hex() == "5634" + "bc9a" + "12" + "78"
    ring = Ring(16, 2, 1, 1.0, 8)
    assert ring.pack(np.array([0x1234, 0x5678], "<u2")).hex() == "34127856"


@pytest.mark.parametrize("width", _WIDTHS)
def test_refuses_another_length(width):
    ring = Ring(width, 2, 10, 1.0, 16)
    packed = ring.pack(_random(ring))
    for wrong in (b"", packed[:-1], packed + b"\0"):
        with pytest.raises(MalformedMessage, match="should have"):
            ring.unpack(wrong)


def test_refuses_bits_behind_the_end():
    ring = Ring(20, 2, 10, 1.0, 16)
    assert ring.length % 2
    packed = bytearray(ring.pack(_random(ring)))
    packed[-1] |= 0x10
    with pytest.raises(MalformedMessage, match="last element"):
        ring.unpack(bytes(packed))


@pytest.mark.parametrize("length", [5, LANE + 7])
@pytest.mark.parametrize("width", _WIDTHS)
def test_digest(width, length):
    ring = Ring(width, 2, length, 1.0, 16)
    vector = _random(ring)
    pieces = [ring.pack(vector)]
    if width in (16, 32):
        step = LANE * ring.dtype.itemsize
        pieces = [pieces[0][at : at + step] for at in range(0, len(pieces[0]), step)]
    digests = [hashlib.sha256(piece).digest() for piece in pieces]
    assert ring.digest(vector) == tagged_hash("digest", *digests)
    vector[-1] ^= 1
    assert ring.digest(vector) != tagged_hash("digest", *digests)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, LANE - 1, LANE, -1])
def test_refuses_what_is_not_finite(bad, place):
    vector = np.zeros(LANE + 7, np.float32)
    vector[place] = bad
    with pytest.raises(EncodingError, match="not finite"):
        Ring(32, 2, len(vector), 1.0, 16).encode(vector, 1.0)


@pytest.mark.parametrize("weight", [0.0, -0.5, 1.0001, math.nan, math.inf])
def test_refuses_a_weight_out_of_bounds(weight):
    with pytest.raises(EncodingError, match="weight"):
        Ring(32, 2, 3, 1.0, 16).encode(np.zeros(3, np.float32), weight)


@pytest.mark.parametrize(
    "vector", [np.zeros(2, np.float32), np.zeros(3), np.zeros((3, 1), np.float32)]
)
def test_refuses_another_shape_or_type(vector):
    with pytest.raises(EncodingError, match="3 values of type float32"):
        Ring(32, 2, 3, 1.0, 16).encode(vector, 1.0)


@pytest.mark.parametrize("length", _LENGTHS)
@pytest.mark.parametrize("width", _WIDTHS)
def test_encodes_as_defined(width, length):
    ring = Ring(width, 7, length, 0.5, 16)
    vector = np.random.default_rng(1).normal(0, 0.3, length).astype(np.float32)
    factor = np.float32(2.0**ring.scale_bits * round(0.3 * 2**16) / 2**16)
    expected = np.rint(np.clip(vector, np.float32(-0.5), np.float32(0.5)) * factor)
    found = ring.encode(vector, 0.3)
    assert found.dtype == ring.dtype
    np.testing.assert_array_equal(found[:length], expected.astype(np.int64) % 2**width)


@pytest.mark.parametrize(
    ("width", "parties", "dimension", "clip", "weight_bits"),
    [
        (8, 2, 1, 1.0, 16),
        (31, 2, 1, 1.0, 16),
        (32, 1, 1, 1.0, 16),
        (32, 2, 0, 1.0, 16),
        (32, 2, 1, 0.0, 16),
        (32, 2, 1, -1.0, 16),
        (32, 2, 1, math.nan, 16),
        (32, 2, 1, math.inf, 16),
        (32, 2, 1, 1e-50, 16),
        (32, 2, 1, 1e-20, 16),
        (32, 2, 1, 2.0**31, 16),
        (16, 200, 1, 164.0, 16),
        (16, 40_000, 1, 1e-3, 16),
        (32, 2, 1, 1.0, -1),
        (32, 2, 1, 1.0, 33),
    ],
)
def test_refuses_a_ring_that_cannot_work(width, parties, dimension, clip, weight_bits):
    with pytest.raises(ValueError, match=r"should be|too large or too small"):
        Ring(width, parties, dimension, clip, weight_bits)


@pytest.mark.parametrize("parties", [2, 10, 200])
def test_stochastic_rounding_is_right_on_average_and_off_by_less_than_one(parties):
    ring = Ring(16, parties, 400_000, 1.0, 0)
    unit = 2.0**-ring.scale_bits
    for part in (0.0, 0.25, 0.5, 0.9):
        value = np.float32((3 + part) * unit)
        values = np.full(ring.dimension, value, np.float32)
        found, _ = ring.decode(ring.encode(values, dither=b"k" * 32))
        steps = np.unique(found / unit)
        assert set(steps) <= ({3.0} if part == 0 else {3.0, 4.0})
        # A mean of 400,000 draws of 0 or 1; 1/512 is the grid of the dither.
        tolerance = 5 * np.sqrt(part * (1 - part) / ring.dimension) + 1 / 512
        assert abs(found.mean() / unit - value / unit) <= tolerance


def test_stochastic_rounding_at_the_bound_never_overflows():
    for parties in (2, 3, 10, 100):
        for clip in (1.0, 0.3, 1.7):
            ring = Ring(16, parties, 2000, clip, 16)
            values = np.repeat(np.float32([1e30, -1e30]), 1000)
            most = (2**15 - 1) // parties
            steps = ring.encode(values, dither=b"k" * 32)[: ring.dimension].view("<i2")
            assert np.abs(steps.astype(int)).max() <= most


def test_lanes_dither_apart_and_each_key_dithers_anew():
    ring = Ring(16, 2, 2 * LANE, 1.0, 0)
    half = np.full(ring.dimension, 2.0 ** -(ring.scale_bits + 1), np.float32)
    one, other = ring.encode(half, dither=b"k" * 32), ring.encode(half, dither=b"l" * 32)
    assert 0.45 < (one[:LANE] == one[LANE:-1]).mean() < 0.55
    assert 0.45 < (one == other).mean() < 0.55


@pytest.mark.parametrize("width", [20, 24, 32])
def test_wider_rings_refuse_stochastic_rounding(width):
    with pytest.raises(EncodingError):
        Ring(width, 2, 1, 1.0, 0).encode(np.zeros(1, np.float32), dither=b"k" * 32)


@pytest.mark.parametrize("length", [*_LENGTHS, 2 * 2**18 - 1, 8 * LANE - 1])
@pytest.mark.parametrize(
    ("width", "dither"), [(16, None), (16, b"k" * 32), (20, None), (24, None), (32, None)]
)
def test_masking_in_one_pass_is_encoding_masking_packing_and_digesting(width, dither, length):
    values = np.random.default_rng(3).uniform(-2, 2, length).astype(np.float32)
    ring = Ring(width, 5, length, 1.0, 16)
    keys = [(b"a" * 32, 1), (b"b" * 32, -1)]
    vector = ring.encode(values, 0.3, dither)
    add_masks(vector, keys, width)
    packed, digest = ring.mask(values, keys, 0.3, dither)
    assert packed == ring.pack(vector)
    assert digest == ring.digest(vector)


@pytest.mark.parametrize("width", _WIDTHS)
def test_masking_refuses_what_encoding_refuses(width):
    values = np.zeros(2 * LANE, np.float32)
    values[LANE + 5] = np.nan
    with pytest.raises(EncodingError, match="not finite"):
        Ring(width, 2, len(values), 1.0, 0).mask(values, [])


@pytest.mark.parametrize("width", [16, 20, 24, 32])
def test_whole_numbers_are_taken_modulo_the_ring(width):
    ring = Ring(width, 3, 5, whole_clip(width, 3), 0)
    assert ring.scale_bits == 0
    values = np.array([0, 1, -1, 2**width + 5, -(2**40) - 7], np.int64)
    encoded = ring.encode(values)
    assert [int(value) for value in encoded[:5]] == [int(value) % 2**width for value in values]
    packed, digest = ring.mask(values, [])
    assert packed == ring.pack(encoded)
    assert digest == ring.digest(encoded)


@pytest.mark.parametrize("parties", [2, 3, 10, 1000])
def test_sums_of_whole_numbers_are_exact(parties):
    rng = np.random.default_rng(parties)
    ring = Ring(32, parties, 1000, whole_clip(32, parties), 0)
    most = (2**31 - 1) // parties
    parts = rng.integers(-most, most + 1, size=(parties, 1000))
    total = sum((ring.encode(part) for part in parts), np.zeros(ring.length, ring.dtype))
    values, _ = ring.decode(total)
    assert np.array_equal(values, parts.sum(axis=0))


def test_whole_numbers_are_neither_weighted_nor_rounded_nor_scaled():
    values = np.zeros(5, np.int64)
    for ring, weight, dither in (
        (Ring(32, 3, 5, whole_clip(32, 3), 0), 0.5, None),
        (Ring(16, 3, 5, whole_clip(16, 3), 0), 1.0, bytes(32)),
        (Ring(32, 3, 5, 8.0, 0), 1.0, None),
    ):
        with pytest.raises(EncodingError, match="Whole numbers"):
            ring.encode(values, weight, dither)
