"""Tests that integer noise has exactly the distribution it states."""

from collections import Counter
from fractions import Fraction

import mpmath
import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from scipy import special, stats

from lepton_common.privacy import integer_noise
from lepton_common.privacy.integer_noise import discrete_gaussian, skellam
from lepton_common.privacy.noise import SecretRandom

_MANY = 1_000_000
_SAMPLERS = {"skellam": skellam, "gaussian": discrete_gaussian}
# What the laws are made of; the Skellam parameter is a variance, the Gaussian one a deviation.
_RATIOS = {
    "skellam": integer_noise._skellam_ratios,
    "gaussian": integer_noise._gaussian_ratios,
}
_VARIANCE = {"skellam": float, "gaussian": lambda scale: float(scale) ** 2}
_LAWS = [
    *(("skellam", v) for v in (0.01, 0.1, 1.0, 16.0, 123.456, 4096.0, 2.0**20)),
    *(("gaussian", s) for s in (0.1, 0.5, 1.0, 4.0, 11.11, 64.0, 1024.0, 2.0**14)),
]
_NARROW = [("skellam", 0.3), ("skellam", 7.7), ("gaussian", 0.5), ("gaussian", 3.0)]


class _FixedRandom:
    """A keystream under a known key, so that the tests always see the same draws."""

    def __init__(self, key=0):
        cipher = Cipher(algorithms.AES(key.to_bytes(32)), modes.CTR(bytes(16)))
        self._keystream = cipher.encryptor()
        self.drawn = 0

    def words(self, count):
        self.drawn += count
        return np.frombuffer(self._keystream.update(bytes(8 * count)), dtype=np.uint64)


class _Spent(Exception):
    """Raised when more words are asked for than were given."""


class _Given:
    """Gives these words and no others."""

    def __init__(self, *words):
        self._left = list(words)

    def words(self, count):
        if count > len(self._left):
            raise _Spent
        given, self._left = self._left[:count], self._left[count:]
        return np.array(given, dtype=np.uint64)


def _table(law, parameter, bits):
    return integer_noise._table(_RATIOS[law], parameter, _VARIANCE[law](parameter), bits)


def _cells(law, parameter, bits):
    return integer_noise._cells(_RATIOS[law], parameter, _VARIANCE[law](parameter), bits)


def _pmf(law, parameter):
    """Returns the values up to ten deviations and more, and their probabilities as floats."""
    top = int(10 * _VARIANCE[law](parameter) ** 0.5) + 20
    values = np.arange(-top, top + 1)
    if law == "skellam":
        return values, special.ive(abs(values), parameter)
    weights = np.exp(-((values / parameter) ** 2) / 2)
    return values, weights / weights.sum()


def _precise_sizes(law, parameter, count):
    """Returns P(|X| <= m) for m below ``count`` by mpmath, in its precision at the time."""
    if law == "skellam":
        v = mpmath.mpf(parameter)
        weights = [mpmath.besseli(k, v) for k in range(count)]
        total = mpmath.exp(v)
    else:
        weights = [mpmath.exp(-((k / mpmath.mpf(parameter)) ** 2) / 2) for k in range(count)]
        total = mpmath.jtheta(3, 0, weights[1])
    sizes = [weights[0] / total]
    for weight in weights[1:]:
        sizes.append(sizes[-1] + 2 * weight / total)
    return sizes


def _fits(draws, law, parameter):
    """Returns the p-value of the chi-square test, neighbours pooled to at least 20 expected."""
    values, probabilities = _pmf(law, parameter)
    assert abs(draws).max() <= values[-1]
    expected = probabilities * len(draws)
    starts, done = [0], 0.0
    for i, sofar in enumerate(np.cumsum(expected)):
        if sofar - done >= 20 and len(draws) - sofar >= 20:
            starts.append(i + 1)
            done = sofar
    observed = np.bincount(draws + values[-1], minlength=len(values))
    observed = np.add.reduceat(observed, starts)
    expected = np.add.reduceat(expected, starts)
    return stats.chisquare(observed, expected * (observed.sum() / expected.sum())).pvalue


@pytest.mark.parametrize(
    ("law", "parameter"),
    [
        *(("skellam", v) for v in (2.0**-8, 0.1, 1.0, 3.7, 64.0, 300.0)),
        *(("gaussian", s) for s in (2.0**-4, 0.1, 1 / 3, 1.0, 17.5, 200.0)),
    ],
)
def test_boundaries_are_those_of_the_law_to_126_bits(law, parameter):
    cells = _cells(law, parameter, 126)
    with mpmath.workdps(100):
        sizes = _precise_sizes(law, parameter, max(2, len(cells)))[: len(cells)]
        assert cells == [int(mpmath.floor(mpmath.ldexp(size, 126))) for size in sizes]
    assert cells[-1] == 2**126 - 1
    assert cells.count(cells[-1]) == 1


@pytest.mark.parametrize(
    ("law", "parameter"), [("skellam", 2000.0), ("skellam", 2.0**22), ("gaussian", 2000.0)]
)
def test_boundaries_of_wide_laws_are_those_of_the_law(law, parameter):
    # The precise values cost too much to have them all: these add up a few hundred of them.
    cells = _cells(law, parameter, 63)
    with mpmath.workdps(60):
        sizes = _precise_sizes(law, parameter, 300)
        assert cells[:300] == [int(mpmath.floor(mpmath.ldexp(size, 63))) for size in sizes]
    assert len(cells) < 9.5 * _VARIANCE[law](parameter) ** 0.5


@pytest.mark.parametrize(
    ("law", "parameter"), [*_NARROW, ("skellam", 2.0**28), ("gaussian", 2.0**14)]
)
@pytest.mark.parametrize("precision", [40, 64, 191])
def test_the_bounds_hold_the_ratios(law, parameter, precision):
    steps = _RATIOS[law](parameter, precision, 50)
    assert len(steps) > 50
    with mpmath.workdps(100):
        for k, (low, high) in enumerate(steps):
            if law == "skellam":
                ratio = mpmath.besseli(k + 1, parameter) / mpmath.besseli(k, parameter)
            else:
                ratio = mpmath.exp(-(2 * k + 1) / (2 * mpmath.mpf(parameter) ** 2))
            assert low < mpmath.ldexp(ratio, precision) < high


@pytest.mark.parametrize(("law", "parameter"), _NARROW)
@pytest.mark.parametrize("guard", [0, 8, 40])
def test_too_little_precision_is_raised_and_not_rounded(law, parameter, guard, monkeypatch):
    expected = _cells(law, parameter, 63)
    monkeypatch.setattr(integer_noise, "_GUARD_BITS", guard)
    assert _cells(law, parameter, 63) == expected


@pytest.mark.parametrize(("law", "parameter"), _LAWS)
def test_draws_follow_the_law(law, parameter):
    draws = _SAMPLERS[law](_FixedRandom(), parameter, _MANY)
    assert draws.dtype == np.int64
    assert draws.shape == (_MANY,)
    values, probabilities = _pmf(law, parameter)
    if (probabilities * _MANY > 20).sum() > 1:
        assert _fits(draws, law, parameter) > 1e-3
    # The moments behind mean, variance, skewness and kurtosis, each within 4.5 of its deviations.
    scale = _VARIANCE[law](parameter) ** 0.5
    for power in range(1, 5):
        moment, square = (probabilities @ (values / scale) ** p for p in (power, 2 * power))
        spread = np.sqrt((square - moment**2) / _MANY)
        assert abs(((draws / scale) ** power).mean() - moment) <= 4.5 * spread


def test_the_moments_of_skellam_noise_are_its_closed_ones():
    draws = skellam(_FixedRandom(), 2.5, _MANY)
    assert abs(draws.mean()) < 4.5 * np.sqrt(2.5 / _MANY)
    assert draws.var() == pytest.approx(2.5, rel=4.5 * np.sqrt((2 + 1 / 2.5) / _MANY))
    assert stats.kurtosis(draws) == pytest.approx(1 / 2.5, abs=0.05)


@pytest.mark.parametrize(("law", "parameter"), _NARROW)
def test_the_last_bit_of_a_word_is_the_sign_and_nothing_else(law, parameter):
    words = _FixedRandom().words(10_000)
    draws = _SAMPLERS[law](_Given(*words), parameter, 10_000)
    flipped = _SAMPLERS[law](_Given(*(words ^ np.uint64(1))), parameter, 10_000)
    np.testing.assert_array_equal(draws, -flipped)


@pytest.mark.parametrize(("sites", "variance"), [(2, 0.25), (5, 0.75), (10, 100.0)])
def test_skellam_noise_adds_up_to_skellam_noise(sites, variance):
    sums = sum(skellam(_FixedRandom(site), variance, _MANY) for site in range(sites))
    assert _fits(sums, "skellam", sites * variance) > 1e-3


@pytest.mark.parametrize(("law", "parameter"), _NARROW)
@pytest.mark.parametrize(("bits", "count"), [(3, 20_000), (6, 50_000), (18, 500_000)])
def test_draws_from_few_bits_follow_the_law_too(law, parameter, bits, count):
    source = _FixedRandom(bits)
    draws = _table(law, parameter, bits).draw(source, count)
    opened = len(set(_cells(law, parameter, bits))) / 2**bits
    further = source.drawn - count
    assert further > 0.9 * opened * count - 5 * np.sqrt(opened * count)
    assert _fits(draws, law, parameter) > 1e-3


@pytest.mark.parametrize(("law", "parameter"), _NARROW)
@pytest.mark.parametrize("bits", [2, 4])
def test_every_value_gets_exactly_its_probability(law, parameter, bits):
    table = _table(law, parameter, bits)
    masses = Counter()
    left_open = Fraction(0)
    unfinished = [(word,) for word in range(2**bits)]
    while unfinished:
        words = unfinished.pop()
        given = [word << (64 - bits) for word in words]
        mass = Fraction(1, 2 ** (bits * len(words)))
        try:
            (draw,) = table.draw(_Given(*given), 1)
            assert table.draw(_Given(given[0] | 1, *given[1:]), 1) == -draw
            masses[int(draw)] += mass
        except _Spent:
            if len(words) < 4:
                unfinished += [(*words, word) for word in range(2**bits)]
            else:
                left_open += mass
    resolution = 2.0 ** (-4 * bits)
    assert sum(masses.values()) + left_open == 1
    # A value lies between two boundaries, and only the cells of boundaries are left open.
    values, probabilities = _pmf(law, parameter)
    for size, probability in zip(values, probabilities, strict=True):
        if size >= 0:
            missing = probability * (1 + (size > 0)) - float(masses.pop(int(size), 0))
            assert -1e-12 < missing < 2 * resolution
    assert not masses


@pytest.mark.parametrize(("law", "parameter"), [*_NARROW, ("gaussian", 64.0)])
def test_a_word_on_a_boundary_is_decided_by_further_words(law, parameter):
    ones = 2**64 - 1
    sampler = _SAMPLERS[law]
    cells = _cells(law, parameter, 63)
    for size in range(min(5, len(cells) - 1)):
        if cells.count(cells[size]) == 1:
            word = cells[size] << 1
            assert sampler(_Given(word, 0), parameter, 1) == size
            assert sampler(_Given(word | 1, 0), parameter, 1) == -size
            assert sampler(_Given(word, ones), parameter, 1) == size + 1
            with pytest.raises(_Spent):
                sampler(_Given(word), parameter, 1)


@pytest.mark.parametrize(("law", "parameter"), [*_NARROW, ("gaussian", 64.0)])
def test_the_tail_has_no_end(law, parameter):
    high = 2**64 - 2  # the largest size, with the sign plus
    for words in ([high, 0], [high, high, 0, 0], [high, high, high, 0]):
        drawn = 0
        for word in words:
            drawn = drawn << 63 | word >> 1
        (draw,) = _SAMPLERS[law](_Given(*words), parameter, 1)
        with mpmath.workdps(120):
            below, size = _precise_sizes(law, parameter, int(draw) + 1)[-2:]
            assert below < mpmath.ldexp(drawn, -63 * len(words)) < size


@pytest.mark.parametrize("sampler", [skellam, discrete_gaussian])
@pytest.mark.parametrize("bad", [0, -1, -16.0, 1e-9, 1e9, 2**28 + 1, np.nan, np.inf, -np.inf])
def test_bad_parameters_are_refused(sampler, bad):
    with pytest.raises(ValueError, match="a coarser grid loses nothing"):
        sampler(_FixedRandom(), bad, 1)


@pytest.mark.parametrize("sampler", [skellam, discrete_gaussian])
def test_any_number_of_draws_can_be_had(sampler):
    for count in (0, 1, 2, integer_noise._CHUNK, integer_noise._CHUNK + 1):
        draws = sampler(_FixedRandom(), 4, count)
        assert draws.shape == (count,)
        assert draws.dtype == np.int64
    with pytest.raises(ValueError, match="negative"):
        sampler(_FixedRandom(), 4, -1)


@pytest.mark.parametrize("sampler", [skellam, discrete_gaussian])
def test_all_randomness_comes_from_the_keystream(sampler):
    def drawn(source):
        np.random.seed(0)  # noqa: NPY002
        return sampler(source, 4.0, 1000)

    np.testing.assert_array_equal(drawn(_FixedRandom(1)), drawn(_FixedRandom(1)))
    assert not np.array_equal(drawn(_FixedRandom(1)), drawn(_FixedRandom(2)))
    assert not np.array_equal(drawn(SecretRandom()), drawn(SecretRandom()))
    source = _FixedRandom()
    assert not np.array_equal(drawn(source), drawn(source))
