"""Contract test: every strategy of Flower's starts by `Strategy.start`, which returns a Result."""

import dataclasses
import json

import numpy as np
import pytest
import torch
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


class Loose(NoRounds):
    """A strategy whose metrics are no record of Flower's."""

    def configure_train(self, server_round, arrays, config, grid):
        return []

    configure_evaluate = configure_train

    def aggregate_train(self, server_round, replies):
        metrics = {"norm": np.float32(0.5), "loss": torch.tensor(2.0), "who": ["a", 1], "x": {1}}
        return ArrayRecord(), metrics

    def aggregate_evaluate(self, server_round, replies):
        return None


class NoGrid:
    """A grid without nodes."""

    def send_and_receive(self, messages, timeout):
        return list(messages)


def test_metrics_that_are_no_plain_numbers_do_not_break_a_run():
    with watched_results() as found:
        Loose().start(NoGrid(), ArrayRecord(), num_rounds=1, evaluate_fn=lambda r, a: None)
    assert json.loads(json.dumps(found)) == [
        {
            "train_metrics_clientapp": {
                "1": {"norm": 0.5, "loss": 2.0, "who": ["a", 1], "x": "{1}"}
            },
            "evaluate_metrics_clientapp": {},
            "evaluate_metrics_serverapp": {},
        }
    ]
