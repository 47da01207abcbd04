"""Plans to audit, and the ways in which DP-SGD has been broken before."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from lepton_client.training import private, unit_norms
from lepton_common.privacy.noise import SecretRandom
from lepton_common.privacy.plan import PrivacyPlan, calibrated_noise

STEPS = 12


@pytest.fixture(autouse=True)
def one_thread():
    """Small steps on two threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def make_plan():
    """Returns a maker of plans calibrated to an epsilon."""

    def make(epsilon=3.0, sample_rate=1.0, steps=STEPS, clipping_norm=0.7):
        noise = calibrated_noise(
            target_epsilon=epsilon, delta=1e-5, sample_rate=sample_rate, max_steps=steps
        )
        return PrivacyPlan(
            unit="row",
            delta=1e-5,
            sample_rate=sample_rate,
            noise_multiplier=noise,
            clipping_norm=clipping_norm,
            steps_per_round=1,
            max_steps=steps,
            denominator=16.0,
        )

    return make


def _noise(drawn):
    """Secret randomness that adds other noise."""

    def add_gaussian(self, values, standard_deviation):
        return values + drawn(self, len(values), standard_deviation)

    return {(SecretRandom, "add_gaussian"): add_gaussian}


def _noise_times(factor):
    honest = SecretRandom.gaussian

    def gaussian(self, count, standard_deviation):
        return factor * standard_deviation * honest(self, count)

    return _noise(gaussian)


def _clipping_off():
    """What is clipped at a thousand times the norm that the noise is made for is not clipped."""
    honest = private.clipped_sum

    def loose(engine, task, records, units, batch_size, plan, *more):
        plan = replace(plan, clipping_norm=1e3 * plan.clipping_norm)
        return honest(engine, task, records, units, batch_size, plan, *more)

    return {(private, "clipped_sum"): loose}


def _clipper():
    """The mistake of our engine alone: norms without their roots."""

    def factors(squared_norms, clipping_norm):
        return (clipping_norm / squared_norms.sqrt().sqrt().clamp(min=1e-30)).clamp(max=1.0)

    return {(unit_norms, "clip_factors"): factors}


def _seeded():
    def gaussian(self, count, standard_deviation):
        return (torch.randn(count, dtype=torch.float64) * standard_deviation).numpy()

    return _noise(gaussian)


def _cut_tails():
    honest = SecretRandom.gaussian

    def gaussian(self, count, standard_deviation):
        return standard_deviation * np.clip(honest(self, count), -3.2, 3.2)

    return _noise(gaussian)


def _reused():
    """One noise for all steps of a release."""
    honest = SecretRandom.gaussian

    def gaussian(self, count, standard_deviation):
        if not hasattr(self, "kept"):
            self.kept = standard_deviation * honest(self, count)
        return self.kept.copy()

    return _noise(gaussian)


def _laplace():
    def gaussian(self, count, standard_deviation):
        uniform = self.uniform(count) - 0.5
        scale = standard_deviation / np.sqrt(2)
        return -scale * np.sign(uniform) * np.log1p(-2 * np.abs(uniform))

    return _noise(gaussian)


def _fixed_size():
    """Batches of exactly the expected size, as of a loader without replacement."""

    def sample(self, population, rate):
        order = np.argsort(self.uniform(population))
        return np.sort(order[: round(rate * population)])

    return {(SecretRandom, "poisson_sample"): sample}


def _shuffled():
    """Epochs: every record once in 1/rate steps, in a new order each time."""
    queue = []

    def sample(self, population, rate):
        if not queue:
            queue.extend(np.array_split(np.argsort(self.uniform(population)), round(1 / rate)))
        return np.sort(queue.pop())

    return {(SecretRandom, "poisson_sample"): sample}


def _same_batch():
    """One batch for all steps of a release."""
    honest = SecretRandom.poisson_sample

    def sample(self, population, rate):
        if not hasattr(self, "batch"):
            self.batch = honest(self, population, rate)
        return self.batch

    return {(SecretRandom, "poisson_sample"): sample}


def _together():
    """Records sampled two by two."""
    honest = SecretRandom.poisson_sample

    def sample(self, population, rate):
        first = 2 * honest(self, (population + 1) // 2, rate)
        both = np.sort(np.concatenate([first, first + 1]))
        return both[both < population]

    return {(SecretRandom, "poisson_sample"): sample}


_WAYS = {
    "noise cut to an eighth": lambda: _noise_times(0.125),
    "no noise": lambda: _noise_times(0.0),
    "noise 2 % too small": lambda: _noise_times(0.98),
    "noise a tenth too small": lambda: _noise_times(0.9),
    "clipping off": _clipping_off,
    "broken clipper": _clipper,
    "seeded noise": _seeded,
    "noise without tails": _cut_tails,
    "one noise for all steps": _reused,
    "Laplace noise": _laplace,
    "batches of fixed size": _fixed_size,
    "shuffled epochs": _shuffled,
    "one batch for all steps": _same_batch,
    "records sampled together": _together,
}


@pytest.fixture
def break_it(monkeypatch):
    """Returns a breaker of the private training in this process, until the test ends."""

    def how(way):
        for (place, name), broken in _WAYS[way]().items():
            monkeypatch.setattr(place, name, broken)

    return how
