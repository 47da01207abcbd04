"""Tests that each strategy steps as Flower's own class does, and as its definition says."""

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import strategy as flower

from lepton_common.arrays import Layout
from lepton_common.errors import QuorumNotMet, UnknownName
from lepton_common.settings import LINEAR, ROBUST
from lepton_server.rounds.exact_mean import ExactMean
from lepton_server.strategies.catalog import STRATEGIES, Strategy, make_strategy

pytestmark = pytest.mark.usefixtures("speaking")

_SIZE, _SITES = 30, 7
_LAYOUT = Layout(("weight",), ((_SIZE,),))


@pytest.fixture
def make(make_settings):
    def build(name, **changes):
        fast = name in ("fedadam", "fedyogi", "fedadagrad")
        options = {
            "name": name, "server_learning_rate": 0.01 if fast else 0.7, "proximal_mu": 0.1,
            "server_momentum": 0.9, **changes,
        }  # fmt: skip
        settings = make_settings({f"strategy.{key}": value for key, value in options.items()})
        return make_strategy(settings, _LAYOUT), settings.strategy

    return build


def _updates(rounds, seed=0, sites=_SITES):
    rng = np.random.default_rng(seed)
    shift = rng.standard_normal(_SIZE)
    draws = 0.1 * (rng.standard_normal((rounds, sites, _SIZE)) + shift)
    return draws.astype(np.float32)


def _mean(updates, strategy):
    names = [f"site-{index}" for index in range(len(updates))]
    mean = ExactMean(_SIZE, dict.fromkeys(names, 1), strategy.needs_each)
    for name, update in zip(names, updates, strict=True):
        mean.add(name, update)
    return mean


def _replies(models):
    return [
        Message(
            RecordDict(
                {
                    "arrays": ArrayRecord({"w": Array(model)}),
                    "metrics": MetricRecord({"num-examples": 1}),
                }
            ),
            dst_node_id=0,
            message_type="train",
        )
        for model in models
    ]


def _ordinary(inner, model, rounds):
    """Drives Flower's class with whole models and one reply a site, as Flower's loop does."""
    for round_, updates in enumerate(rounds, start=1):
        if isinstance(inner, flower.FedAvgM):
            inner.current_arrays = ArrayRecord({"w": Array(model)})
        else:
            inner.current_arrays = {"w": model}
        arrays, _ = inner.aggregate_train(round_, _replies([model + each for each in updates]))
        model = arrays["w"].numpy().astype(np.float32)
    return model


@pytest.fixture
def model():
    return np.random.default_rng(9).standard_normal(_SIZE).astype(np.float32)


@pytest.mark.parametrize("name", [*LINEAR, "fedmedian", "fedtrimmedavg", "krum", "multikrum"])
def test_three_rounds_give_the_model_of_flowers_own_class(make, model, name):
    strategy, chosen = make(name)
    expected = _ordinary(STRATEGIES[name](chosen), model, _updates(3))
    came = model
    for round_, updates in enumerate(_updates(3), start=1):
        came = strategy.step(round_, came, _mean(updates, strategy))
    assert came.dtype == np.float32
    assert np.abs(came - model).max() > 0.01
    np.testing.assert_allclose(came, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", LINEAR)
def test_a_linear_strategy_never_sees_a_single_update(make, name):
    strategy, _ = make(name)
    assert not strategy.needs_each
    assert _mean(_updates(1)[0], strategy).each() == []


@pytest.mark.parametrize("name", LINEAR)
def test_a_restored_strategy_goes_on_to_the_bit(make, model, name):
    rounds = _updates(4)
    unbroken, _ = make(name)
    broken, _ = make(name)
    came = other = model
    for round_, updates in enumerate(rounds, start=1):
        came = unbroken.step(round_, came, _mean(updates, unbroken))
        other = broken.step(round_, other, _mean(updates, broken))
        state = {key: value.copy() for key, value in broken.snapshot().items()}
        broken, _ = make(name)
        broken.restore(state)
        assert came.tobytes() == other.tobytes()
    has_state = name in ("fedavgm", "fedadam", "fedyogi", "fedadagrad")
    assert bool(unbroken.snapshot()) == has_state


def test_the_average_of_models_is_kept_beside_them(make, model):
    rounds = _updates(30)
    plain, _ = make("fedavg")
    averaging, _ = make("fedavg", average_decay=0.8)
    came = expected = model.astype(np.float64)
    for round_, updates in enumerate(rounds, start=1):
        before = came.astype(np.float32)
        came = averaging.step(round_, before, _mean(updates, averaging))
        assert np.array_equal(came, plain.step(round_, before, _mean(updates, plain)))
        decay = min(0.8, round_ / (round_ + 9))
        expected = decay * expected + (1 - decay) * came
        state = averaging.snapshot()
        assert np.allclose(state["average"], expected)
        averaging, _ = make("fedavg", average_decay=0.8)
        averaging.restore(state)
    assert not np.allclose(expected, came)
    assert "average" not in plain.snapshot()


def test_a_snapshot_is_a_copy(make, model):
    strategy, _ = make("fedadam")
    strategy.step(1, model, _mean(_updates(1)[0], strategy))
    strategy.snapshot()["m_t"].fill(99)
    assert np.abs(strategy.snapshot()["m_t"]).max() < 1


def test_fedprox_is_fedavg_at_the_server(make, model):
    prox, average = make("fedprox")[0], make("fedavg")[0]
    for round_, updates in enumerate(_updates(3), start=1):
        mean = _mean(updates, average)
        assert (
            prox.step(round_, model, mean).tobytes() == average.step(round_, model, mean).tobytes()
        )


def test_fedavg_adds_the_mean(make, model):
    strategy, _ = make("fedavg")
    updates = _updates(1)[0]
    expected = model + updates.astype(np.float64).mean(axis=0)
    came = strategy.step(1, model, _mean(updates, strategy))
    np.testing.assert_allclose(came, expected, atol=1e-6)


def _krum_order(updates, malicious):
    wide = updates.astype(np.float64)
    distances = ((wide[:, None] - wide[None]) ** 2).sum(axis=2)
    nearest = np.sort(distances, axis=1)[:, 1 : len(updates) - malicious - 1]
    return np.argsort(nearest.sum(axis=1))


def _reference(name, updates):
    if name == "fedmedian":
        return np.median(updates, axis=0)
    if name == "fedtrimmedavg":
        return np.sort(updates, axis=0)[1:-1].mean(axis=0)
    return updates[_krum_order(updates, 1)[: 1 if name == "krum" else 3]].mean(axis=0)


@pytest.mark.parametrize("name", ["fedmedian", "fedtrimmedavg", "krum", "multikrum"])
@pytest.mark.parametrize("seed", range(4))
def test_a_robust_strategy_matches_its_definition(make, model, name, seed):
    strategy, _ = make(name)
    assert strategy.needs_each
    updates = _updates(1, seed)[0]
    updates[seed] = 50.0  # one site tries to drag the model away
    came = strategy.step(1, model, _mean(updates, strategy)) - model
    np.testing.assert_allclose(came, _reference(name, updates), atol=1e-5)
    assert np.abs(came).max() < 1


@pytest.mark.slow
def test_bulyan_is_not_dragged_away_by_one_site(make, model):
    strategy, _ = make("bulyan")
    updates = _updates(1, sites=9)[0]
    updates[4] = 50.0
    came = strategy.step(1, model, _mean(updates, strategy)) - model
    assert np.abs(came - np.delete(updates, 4, axis=0).mean(axis=0)).max() < 0.3


@pytest.mark.parametrize(("name", "needed"), [("krum", 5), ("multikrum", 5), ("bulyan", 7)])
def test_too_few_updates_for_the_promise_are_refused(make, model, name, needed):
    strategy, _ = make(name)
    enough = _updates(1, sites=needed)[0]
    assert strategy.step(1, model, _mean(enough, strategy)).shape == (_SIZE,)
    with pytest.raises(QuorumNotMet, match="Round 2"):
        strategy.step(2, model, _mean(enough[:-1], strategy))


def test_the_catalog_holds_what_the_settings_allow(make):
    assert set(STRATEGIES) == set(LINEAR) | set(ROBUST)
    assert not set(LINEAR) & set(ROBUST)
    assert all(isinstance(make(name)[0], Strategy) for name in STRATEGIES)


def test_an_unknown_strategy_is_refused(make_settings):
    from dataclasses import replace

    settings = make_settings()
    unknown = replace(settings, strategy=replace(settings.strategy, name="fedavgg"))
    with pytest.raises(UnknownName, match="did you mean 'fedavg"):
        make_strategy(unknown, _LAYOUT)
