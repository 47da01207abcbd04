"""Tests that secret randomness is what it claims to be and that no seed reaches it."""

import numpy as np
import pytest
import torch
from scipy import stats

from lepton_common.privacy.noise import SecretRandom

# Nothing can seed this generator, so each statistical test fails by bad luck about once in a
# million runs: that is what the thresholds of 1e-6 mean.
_LUCK = 1e-6
_MANY = 200_000


@pytest.fixture
def source():
    return SecretRandom()


@pytest.mark.parametrize("deviation", [1.0, 0.01, 250.0])
def test_gaussian_draws_have_the_right_mean_and_deviation(source, deviation):
    draws = source.gaussian(_MANY, deviation) / deviation
    assert draws.dtype == np.float64
    assert abs(draws.mean()) < 5 / np.sqrt(_MANY)
    # Under N(0, 1) the sum of squares is chi-square with _MANY degrees of freedom.
    low, high = stats.chi2.interval(1 - _LUCK, _MANY)
    assert low < (draws**2).sum() < high


def test_gaussian_draws_follow_the_normal_law(source):
    draws = source.gaussian(_MANY, 2.0)
    assert stats.kstest(draws, stats.norm(scale=2.0).cdf).pvalue > _LUCK
    edges = stats.norm.ppf(np.linspace(0, 1, 101))
    counts, _ = np.histogram(draws / 2.0, edges)
    assert stats.chisquare(counts).pvalue > _LUCK
    assert abs(stats.skew(draws)) < 5 * np.sqrt(6 / _MANY)
    assert abs(stats.kurtosis(draws)) < 5 * np.sqrt(24 / _MANY)


def test_the_two_halves_of_box_and_muller_are_unrelated(source):
    draws = source.gaussian(_MANY, 1.0)
    first, second = np.split(draws, 2)
    bound = 5 / np.sqrt(len(first))
    assert abs(np.corrcoef(first, second)[0, 1]) < bound
    assert abs(np.corrcoef(first**2, second**2)[0, 1]) < bound
    assert abs(np.corrcoef(draws[:-1], draws[1:])[0, 1]) < bound


@pytest.mark.parametrize("count", [0, 1, 2, 3, 7, 2 * (1 << 16) - 1, 2 * (1 << 16) + 3])
def test_any_number_of_draws_can_be_had(source, count):
    draws = source.gaussian(count, 1.0)
    assert draws.shape == (count,)
    assert np.isfinite(draws).all()
    assert len(np.unique(draws)) == count
    assert source.uniform(count).shape == (count,)
    assert source.words(count).shape == (count,)


def test_a_deviation_of_zero_gives_zeros(source):
    assert not source.gaussian(5, 0.0).any()


@pytest.mark.parametrize("draw", ["gaussian", "uniform", "poisson_sample"])
def test_no_seed_reaches_the_noise(draw):
    def seeded():
        torch.manual_seed(0)
        np.random.seed(0)  # noqa: NPY002
        source = SecretRandom()
        if draw == "uniform":
            return source.uniform(64)
        return getattr(source, draw)(64 if draw == "gaussian" else 4096, 0.5)

    assert not np.array_equal(seeded(), seeded())


def test_drawing_does_not_move_the_public_generators(source):
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    source.gaussian(100, 1.0)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_two_sources_are_unrelated_and_one_does_not_repeat_itself(source):
    first, later = source.gaussian(_MANY, 1.0), source.gaussian(_MANY, 1.0)
    other = SecretRandom().gaussian(_MANY, 1.0)
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
    gaussian = Fixed().gaussian(2, 1.0)
    assert np.isfinite(gaussian).all()
    assert np.abs(gaussian).max() < 8.6


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


def test_noise_is_the_inverse_of_the_uniform_values_bit_for_bit(monkeypatch):
    given = np.concatenate(
        [np.array([0, 1 << 12, (1 << 63) - 1, 1 << 63, (1 << 64) - 1], np.uint64),
         np.random.default_rng(0).integers(0, 1 << 64, 20_000, np.uint64)]
    )  # fmt: skip
    secret = SecretRandom()
    monkeypatch.setattr(secret, "words", lambda count: given[:count])
    uniform = torch.from_numpy(secret.uniform(len(given)))
    assert 0.0 < float(uniform.min()) < float(uniform.max()) < 1.0
    expected = uniform.mul(2.0).sub(1.0).erfinv().mul(np.sqrt(2.0) * 0.7)
    assert np.array_equal(secret.gaussian(len(given), 0.7), expected.numpy())
    assert np.isfinite(expected.numpy()).all()
