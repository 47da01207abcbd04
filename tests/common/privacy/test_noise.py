"""Tests that secret randomness is what it claims to be and that no seed reaches it."""

import numpy as np
import pytest
import torch
from mpmath import cos, log, mp, mpf, nint, pi, sin, sqrt
from scipy import stats

from lepton_common.privacy import noise
from lepton_common.privacy.noise import SecretRandom

# Nothing can seed this generator, so each statistical test fails by bad luck about once in a
# million runs: that is what the thresholds of 1e-6 mean.
_LUCK = 1e-6
_MANY = 200_000


@pytest.fixture
def source():
    return SecretRandom()


def test_gaussian_draws_have_the_right_mean_and_deviation(source):
    draws = source.gaussian(_MANY)
    assert draws.dtype == np.float32
    draws = draws.astype(float)
    assert abs(draws.mean()) < 5 / np.sqrt(_MANY)
    # Under N(0, 1) the sum of squares is chi-square with _MANY degrees of freedom.
    low, high = stats.chi2.interval(1 - _LUCK, _MANY)
    assert low < (draws**2).sum() < high


def test_gaussian_draws_follow_the_normal_law(source):
    draws = source.gaussian(_MANY).astype(float)
    assert stats.kstest(draws, stats.norm.cdf).pvalue > _LUCK
    edges = stats.norm.ppf(np.linspace(0, 1, 101))
    counts, _ = np.histogram(draws, edges)
    assert stats.chisquare(counts).pvalue > _LUCK
    assert abs(stats.skew(draws)) < 5 * np.sqrt(6 / _MANY)
    assert abs(stats.kurtosis(draws)) < 5 * np.sqrt(24 / _MANY)


def test_the_two_halves_of_box_and_muller_are_unrelated(source):
    draws = source.gaussian(_MANY).astype(float)
    first, second = np.split(draws, 2)
    bound = 5 / np.sqrt(len(first))
    assert abs(np.corrcoef(first, second)[0, 1]) < bound
    assert abs(np.corrcoef(first**2, second**2)[0, 1]) < bound
    assert abs(np.corrcoef(draws[:-1], draws[1:])[0, 1]) < bound


@pytest.mark.parametrize("count", [0, 1, 2, 3, 7, 2 * (1 << 16) - 1, 2 * (1 << 16) + 3])
def test_any_number_of_draws_can_be_had(source, count):
    draws = source.gaussian(count)
    assert draws.shape == (count,)
    assert np.isfinite(draws).all()
    assert len(np.unique(draws)) >= 0.99 * count  # of many float32 some are alike
    assert source.uniform(count).shape == (count,)
    assert source.words(count).shape == (count,)


@pytest.mark.parametrize("radius", [0, 1, 1000, 1 << 39, (1 << 40) - 2, (1 << 40) - 1])
@pytest.mark.parametrize("angle", [0, 1, 1 << 20, 1 << 22, 1 << 23, (1 << 24) - 1])
def test_float32_draws_are_those_of_box_and_muller(radius, angle):
    drawn = Told([(radius << 24) + angle]).gaussian(2)
    length = (-2 * log((mpf(radius) + 0.5) / 2**40)) ** 0.5
    turned = 2 * pi * angle / 2**24
    # The longest are 7.55; next to 1, a float32 has no room for what is left of a radius.
    assert drawn == pytest.approx(
        [float(length * cos(turned)), float(length * sin(turned))], rel=1e-6, abs=3e-6
    ) or (length < 1e-3 and np.abs(drawn).max() < 1e-3)


@pytest.mark.parametrize("draw", ["gaussian", "add_gaussian", "uniform", "poisson_sample"])
def test_no_seed_reaches_the_noise(draw):
    def seeded():
        torch.manual_seed(0)
        np.random.seed(0)  # noqa: NPY002
        source = SecretRandom()
        if draw == "uniform":
            return source.uniform(64)
        if draw == "add_gaussian":
            return source.add_gaussian(np.zeros(64), 0.5)
        return source.gaussian(64) if draw == "gaussian" else source.poisson_sample(4096, 0.5)

    assert not np.array_equal(seeded(), seeded())


def test_drawing_does_not_move_the_public_generators(source):
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    source.gaussian(100)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_two_sources_are_unrelated_and_one_does_not_repeat_itself(source):
    first, later = source.gaussian(_MANY), source.gaussian(_MANY)
    other = SecretRandom().gaussian(_MANY)
    bound = 5 / np.sqrt(_MANY)
    assert abs(np.corrcoef(first, other)[0, 1]) < bound
    assert abs(np.corrcoef(first, later)[0, 1]) < bound


def test_words_are_uniform_bit_by_bit(source):
    words = source.words(_MANY)
    assert words.dtype == np.uint64
    for bit in range(64):
        ones = int(((words >> np.uint64(bit)) & np.uint64(1)).sum())
        assert stats.binomtest(ones, _MANY).pvalue > _LUCK / 64


def test_uniform_draws_are_uniform_and_strictly_inside(source):
    draws = source.uniform(_MANY)
    assert draws.min() > 0.0
    assert draws.max() < 1.0
    assert stats.kstest(draws, "uniform").pvalue > _LUCK


@pytest.mark.parametrize("word", [0, (1 << 64) - 1])
def test_uniform_stays_inside_even_for_the_outermost_words(source, word):
    class Fixed(SecretRandom):
        def words(self, count):
            return np.full(count, word, np.uint64)

    draws = Fixed().uniform(2)
    assert 0.0 < draws[0] < 1.0
    assert draws[0] * 2.0**53 % 2 == 1
    gaussian = Fixed().gaussian(2)
    assert np.isfinite(gaussian).all()
    assert np.abs(gaussian).max() < 7.6


@pytest.mark.parametrize("rate", [0.01, 0.3, 0.5, 0.99])
def test_each_unit_is_kept_at_the_given_rate(source, rate):
    kept = source.poisson_sample(_MANY, rate)
    assert stats.binomtest(len(kept), _MANY, rate).pvalue > _LUCK
    assert (np.diff(kept) > 0).all()
    assert kept.min() >= 0
    assert kept.max() < _MANY


def test_every_unit_has_the_same_chance_and_none_drags_another(source):
    rounds, population = 4000, 20
    kept = np.zeros((rounds, population))
    for row in kept:
        row[source.poisson_sample(population, 0.5)] = 1
    for column in kept.T:
        assert stats.binomtest(int(column.sum()), rounds, 0.5).pvalue > _LUCK / population
    related = np.corrcoef(kept.T)[np.triu_indices(population, 1)]
    assert np.abs(related).max() < 6 / np.sqrt(rounds)
    # Poisson, not a fixed size: the number kept varies as a binomial does.
    assert kept.sum(axis=1).var() == pytest.approx(population / 4, rel=0.2)


def test_a_rate_of_one_keeps_all(source):
    np.testing.assert_array_equal(source.poisson_sample(1000, 1.0), np.arange(1000))


def test_an_empty_population_gives_an_empty_sample(source):
    assert source.poisson_sample(0, 0.5).shape == (0,)
    assert source.poisson_sample(0, 1.0).shape == (0,)


def test_a_sample_may_be_empty(source):
    assert any(len(source.poisson_sample(2, 0.1)) == 0 for _ in range(100))


WHOLE = (1 << 64) - 1


class Told(SecretRandom):
    """Draws the words that it is told, and then one word for ever."""

    def __init__(self, words, more=None):
        super().__init__()
        self.told, self.more, self.asked = words, more, 0

    def words(self, count):
        self.asked += 1
        if self.told is not None:
            words, self.told = self.told, None
            return np.resize(np.asarray(words, np.uint64), count)
        return super().words(count) if self.more is None else np.full(count, self.more, np.uint64)


def pair(words, place=0.5):
    """The two draws of a pair of words, to sixty places, from within their intervals."""
    share, turn = ((mpf(int(word) >> 12) + place) / 2**52 for word in words)
    radius = sqrt(-2 * log(share))
    return radius * cos(2 * pi * turn), radius * sin(2 * pi * turn)


def test_draws_are_as_near_to_the_exact_ones_as_is_counted_on(monkeypatch):
    monkeypatch.setattr(mp, "dps", 60)
    words = np.random.default_rng(0).integers(0, 1 << 64, 1000, np.uint64)
    words[:4] = 1 << 44, (1 << 64) - (1 << 44) - 1, 1 << 46, (1 << 64) - (1 << 46)  # of radii
    drawn = noise._box_muller(words, 1.0)
    for place in (mpf(0), mpf(1)):
        exact = np.array([pair(of, place) for of in words.reshape(2, -1).T]).T
        assert np.abs(exact.flatten() - drawn).max() < noise._ERROR / 8


def test_what_is_released_is_on_a_grid_and_follows_the_law(source):
    values = np.random.default_rng(0).normal(0, 50.0, _MANY)
    for deviation in (0.7, 2.0, 1e-5):
        noisy = source.add_gaussian(values * deviation, deviation)
        grid = 2.0 ** np.floor(np.log2(deviation)) / 1024
        assert (noisy / grid == np.rint(noisy / grid)).all()
        drawn = noisy / deviation - values
        assert stats.kstest(drawn, "norm").pvalue > _LUCK
        low, high = stats.chi2.interval(1 - _LUCK, _MANY)
        assert low < (drawn**2).sum() < high


@pytest.mark.parametrize("count", [0, 1, 2, 3, 2 * (1 << 16) - 1, 2 * (1 << 16) + 3])
def test_any_number_of_values_can_be_noised(source, count):
    values = np.arange(float(count)) * 1e6
    # One value in 2,500 is rounded to itself: a few values alone would tell nothing.
    tries = range(max(1, 1000 // max(count, 1)))
    noisy = np.stack([source.add_gaussian(values, 1.0) for _ in tries])
    assert noisy.shape == (len(tries), count)
    assert (np.abs(noisy - values) < 9).all()
    assert (noisy != values).mean() > 0.99 if count else noisy.size == 0


def test_a_zero_has_no_sign(source):
    noisy = source.add_gaussian(np.zeros(500_000), 1.0)
    assert (noisy == 0).sum() > 100
    assert not np.signbit(noisy[noisy == 0]).any()


@pytest.mark.parametrize("deviation", [0.0, -1.0, np.nan, np.inf, 5e-324, 1e300])
def test_a_deviation_that_is_none_is_refused(source, deviation):
    with pytest.raises(ValueError, match="Expected a deviation"):
        source.add_gaussian(np.zeros(3), deviation)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 2.0**42, -(2.0**42)])
def test_a_value_that_no_clipped_sum_has_is_refused(source, value):
    with pytest.raises(ValueError, match="within 2\\*\\*41 deviations"):
        source.add_gaussian(np.array([0.0, value, 1.0]), 1.0)


@pytest.mark.parametrize("deviation", [1e-170, 1e170])
def test_the_smallest_and_the_largest_noise_is_noise(source, deviation):
    draws = source.add_gaussian(np.zeros(20_000), deviation)
    assert stats.kstest(draws / deviation, "norm").pvalue > _LUCK


def test_float64_and_interval_arithmetic_decide_alike(monkeypatch):
    words = np.random.default_rng(2).integers(0, 1 << 64, 601, np.uint64)
    values = np.random.default_rng(3).normal(0, 100.0, 599)
    fast = Told(words).add_gaussian(values, 0.7)
    monkeypatch.setattr(noise, "_ERROR", 1.0)  # float64 is trusted with nothing
    assert np.array_equal(Told(words).add_gaussian(values, 0.7), fast)


@pytest.mark.parametrize("steps", [1000.5, 1001.5, -1000.5, -1001.5])
@pytest.mark.parametrize("place", [0, 1])
def test_where_float64_cannot_tell_more_bits_decide(monkeypatch, steps, place):
    """The interval of a draw lies around the middle between two steps; its ends lie apart."""
    monkeypatch.setattr(mp, "dps", 60)
    grid, decided = 1.0 / 1024, set()
    words = [(1 << 62) + (5 << 12), (1 << 58) + (3 << 12)]
    exact = sum(pair(words, at)[place] for at in (0, 1)) / 2
    values = np.zeros(2)
    values[place] = mpf(steps) * grid - exact  # the sum is in the middle, give or take
    for more in (0, WHOLE):
        source = Told(words, more)
        noisy = source.add_gaussian(values, 1.0)[place]
        assert source.asked > 1
        draw = pair(words, 0 if more == 0 else 1)[place]
        assert noisy == int(nint((values[place] + draw) / grid)) * grid
        decided.add(noisy)
    assert len(decided) == 2


@pytest.mark.parametrize(("word", "different"), [(0, 3), (1 << 12, 2), (WHOLE, 1)])
def test_no_tail_is_cut(word, different):
    """A radius of the outermost words is as long, or short, as more bits of it say."""
    sizes = set()
    for more in (1, 1 << 40, WHOLE):
        (noisy,) = Told([word, 0], more).add_gaussian(np.zeros(1), 1.0)
        sizes.add(noisy)
        assert 8.4 < noisy < 12.7 if word < WHOLE else noisy == 0.0
    assert len(sizes) == different


def test_a_sum_far_beyond_its_noise_is_noised_exactly_too(monkeypatch):
    monkeypatch.setattr(mp, "dps", 60)
    words = np.random.default_rng(4).integers(0, 1 << 64, 40, np.uint64)
    values = np.resize([2.0**41, -(2.0**41)], 40)  # of which float64 has half steps
    draws = np.array([pair(of) for of in words.reshape(2, -1).T]).T.flatten()
    exact = [
        float(nint((value + draw) * 1024)) / 1024 for value, draw in zip(values, draws, strict=True)
    ]
    assert Told(words).add_gaussian(values, 1.0).tolist() == exact
