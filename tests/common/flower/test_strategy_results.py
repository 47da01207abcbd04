"""Contract test: every strategy of Flower's starts by `Strategy.start`, which returns a Result."""

import dataclasses

import pytest
from flwr.app import ArrayRecord, MetricRecord
from flwr.serverapp import strategy as strategies
from flwr.serverapp.strategy import FedAvg, Result, Strategy

from lepton_common.flower.strategy_results import KINDS, watched_results


def test_flower_still_names_the_metrics_like_this():
    names = {field.name for field in dataclasses.fields(Result)}
    assert set(KINDS) | {"arrays"} == names, "see flower/strategy_results.py"
    own = [
        name
        for name in strategies.__all__
        if isinstance(kind := getattr(strategies, name), type)
        and issubclass(kind, Strategy)
        and "start" in vars(kind)
        and kind is not Strategy
    ]
    # The wrappers for differential privacy set themselves up, and call their base's.
    assert all(name.startswith("DifferentialPrivacy") for name in own), own


class NoRounds(FedAvg):
    """A strategy that somebody wrote."""

    def summary(self):
        pass


def _started(fails=False):
    def evaluate(server_round, arrays):
        if fails:
            raise LookupError("no test set")
        return MetricRecord({"loss": 0.5})

    return NoRounds().start(None, ArrayRecord(), num_rounds=0, evaluate_fn=evaluate)


def test_what_strategies_return_is_seen_and_left_alone():
    original = Strategy.start
    with watched_results() as found:
        result = _started()
        _started()
    assert isinstance(result, Result)
    assert [each["evaluate_metrics_serverapp"] for each in found] == [{0: {"loss": 0.5}}] * 2
    assert found[0]["train_metrics_clientapp"] == {}
    assert Strategy.start is original
    with pytest.raises(LookupError), watched_results() as found:
        _started(fails=True)
    assert found == []
    assert Strategy.start is original
