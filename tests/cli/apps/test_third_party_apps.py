"""Third-party Flower apps run unchanged, and come to what Flower says they come to."""

import importlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, MetricRecord, RecordDict
from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords, aggregate_metricrecords

from lepton_cli.apps.record import STATEMENT, AppRun

NODES = 4


def theirs(app, module):
    """Imports a module of an app's own, to compute with it by hand."""
    sys.path.insert(0, str(app))
    try:
        return importlib.import_module(module)
    finally:
        sys.path.remove(str(app))


def fedavg_by_hand(app, rounds, learning_rate, rows):
    """Runs the app's own training, and Flower's own aggregation, in a loop."""
    task, weights, losses = theirs(app, "numpy_fedavg.task"), np.zeros(4), []
    for _ in range(rounds):
        replies = []
        for node in range(NODES):
            features, targets = task.load_data(node, NODES, rows)
            trained, loss = task.train(weights, features, targets, learning_rate)
            metrics = MetricRecord({"train_loss": loss, "num-examples": len(features)})
            replies.append(RecordDict({"arrays": ArrayRecord([trained]), "metrics": metrics}))
        (weights,) = aggregate_arrayrecords(replies, "num-examples").to_numpy_ndarrays()
        losses.append(aggregate_metricrecords(replies, "num-examples")["train_loss"])
    return weights, losses


def test_numpy_under_the_stock_strategy_comes_to_flowers_own_average(run_app):
    ended = run_app("numpy_fedavg", f"nodes={NODES}")
    assert ended.code == 0, ended.err
    weights, losses = fedavg_by_hand(ended.app, rounds=3, learning_rate=0.1, rows=30)
    saved = np.load(ended.app / "final_model.npz")["arr_0"]
    assert np.allclose(saved, weights, rtol=1e-12)
    (result,) = AppRun(ended.run).results
    assert [m["train_loss"] for m in result["train_metrics_clientapp"].values()] == (
        pytest.approx(losses, rel=1e-12)
    )
    assert list(result["evaluate_metrics_clientapp"]) == [1, 2, 3]
    assert "Running first try" in ended.out


def test_overrides_reach_the_app_and_workers_change_nothing(run_app):
    words = ("config.num-server-rounds=2", "config.learning-rate=0.05", "config.data.rows=12")
    ended = run_app("numpy_fedavg", f"nodes={NODES}", "engine.workers=3", *words,
                    "config.title=second", "config.fraction-evaluate=0")  # fmt: skip
    assert ended.code == 0, ended.err
    weights, _ = fedavg_by_hand(ended.app, rounds=2, learning_rate=0.05, rows=12)
    saved = np.load(ended.app / "final_model.npz")["arr_0"]
    assert np.allclose(saved, weights, rtol=1e-12)
    assert "Running second" in ended.out
    assert {each.type for each in AppRun(ended.run).exchanges} == {"train"}


def test_pytorch_under_a_strategy_of_its_own_is_trained_as_in_one_loop(run_app):
    ended = run_app("torch_cyclic", "nodes=3", "engine.threads_per_site=1")
    assert ended.code == 0, ended.err
    task = theirs(ended.app, "torch_cyclic.task")
    net = task.initial()
    for server_round in range(4):
        task.train(net, task.load_data(server_round % 3, batch_size=8))
    saved = torch.load(ended.app / "final_model.pt")
    truth = net.state_dict()
    assert list(saved) == list(truth)
    for name, value in truth.items():
        torch.testing.assert_close(saved[name].to(value.dtype), value, rtol=1e-6, atol=1e-7)
    right = [task.test(net, task.load_data(node, batch_size=8)) for node in range(3)]
    (result,) = AppRun(ended.run).results
    assert result["evaluate_metrics_clientapp"][4]["accuracy"] == pytest.approx(np.mean(right))
    # Its messages name a round when they evaluate, by their group, and none when they train.
    counts = [(each.round, each.type, each.answered) for each in AppRun(ended.run).exchanges]
    assert counts[0::2] == [(None, "train", 1)] * 4
    assert counts[1::2] == [(r, "evaluate", 3) for r in (1, 2, 3, 4)]


def test_mods_and_queries_by_name_and_a_grid_used_by_hand(run_app):
    ended = run_app("mods_queries", f"nodes={NODES}")
    assert ended.code == 0, ended.err
    found = ended.found()
    values = [np.random.default_rng(node).normal(size=40) for node in range(NODES)]
    assert [answer["mean"] for answer in found["mean_of"]] == pytest.approx(
        [value[:20].mean() for value in values]
    )
    # A mod doubled the question at each node, in place, and neither another node nor the
    # server's own object felt it.
    assert [answer["counts"] for answer in found["histogram"]] == [
        np.histogram(value, bins=4, range=(-2, 2))[0].tolist() for value in values
    ]
    assert found["question"] == {"sample": 20}
    assert found["mean_of_trace"] == found["histogram_trace"] == [["in", "out"]] * NODES
    assert found["nodes"] == NODES
    assert found["who"] == {"partition": 0}
    assert found["group"] == "7"
    assert found["nobody"] == []
    assert (found["again"], found["late"]) == (3, [])
    code, reason, *rest = found["expired"]
    assert (code, rest) == (3, [1, "system"])
    assert reason.startswith("Error: Message Unavailable")
    code, reason = found["unknown"]
    assert code == 2
    assert reason == "<class 'ValueError'>:<'No query function registered with name 'nonsense''>"
    assert ended.err.count("Incoming message size: 20 bytes") == 2 * NODES + 2
    assert ended.err.count("Total array elements sent: 0 bytes") == NODES


def test_nodes_keep_their_state_and_what_a_failing_call_changed_is_gone(run_app):
    ended = run_app("stateful", "nodes=3", "engine.workers=2")
    assert ended.code == 0, ended.err  # the server's own assertions held
    assert "answered: [3, 2, 3, 3]" in ended.out
    assert ended.out.count("in 2") == ended.out.count("out 2") == 4
    assert "the second round fails here" in ended.err


def test_failing_nodes_are_answered_by_flowers_errors_and_the_strategy_goes_on(run_app):
    ended = run_app("failing", "nodes=9")
    assert ended.code == 0, ended.err
    crashed = [8, "ClientApp stopped responding."]
    text = "The `run_config` field of the `Context` object cannot be modified (run_id: 1)."
    for server_round in (1, 2):
        errors = {node: rest for r, node, *rest in ended.found()["errors"] if r == server_round}
        assert errors == {
            3: [2, "<class 'ZeroDivisionError'>:<'nothing to divide by'>"],
            4: crashed,  # returned nothing
            5: crashed,  # returned a dictionary
            6: crashed,  # ended its process
            7: crashed,  # returned the question
            8: [0, f"<class 'ValueError'>:<'{text}'>"],
        }
    # The others are partitions 0, 7 and 8, which add 1, 8 and 9 in each round.
    step = (10 * 1 + 17 * 8 + 18 * 9) / 45
    assert ended.found()["weights"] == pytest.approx([2 * step] * 2)
    assert 'raise ZeroDivisionError("nothing to divide by")' in ended.err
    assert "engines/guest.py" not in ended.err
    run = AppRun(ended.run)
    assert [(each.sent, each.answered, each.failed) for each in run.exchanges] == [(9, 3, 6)] * 2
    assert 'raise ZeroDivisionError("nothing to divide by")' in run.log.read_text()


def test_the_server_evaluates_with_a_file_beside_the_app(run_app):
    from flwr.serverapp.strategy import FedAdam

    ended = run_app("server_eval", "nodes=3")
    assert ended.code == 0, ended.err
    # Flower's own strategy, asked step by step; every node adds 1.5.
    strategy, weights, truth = FedAdam(fraction_evaluate=0.0), np.zeros(3), [6.0]
    strategy.current_arrays = {"0": weights}
    for server_round in (1, 2):
        content = {"metrics": MetricRecord({"num-examples": 1})}
        replies = [RecordDict({"arrays": ArrayRecord([weights + 1.5]), **content})] * 3
        messages = [_Reply(each) for each in replies]
        arrays, _ = strategy.aggregate_train(server_round, messages)
        strategy.current_arrays = {name: a.numpy() for name, a in arrays.items()}
        (weights,) = arrays.to_numpy_ndarrays()
        truth.append(float(np.abs(weights - [1.0, 2.0, 3.0]).sum()))
    (result,) = AppRun(ended.run).results
    metrics = result["evaluate_metrics_serverapp"]
    assert [metrics[r]["distance"] for r in (0, 1, 2)] == pytest.approx(truth)


class _Reply(SimpleNamespace):
    """A reply without a wire."""

    def __init__(self, content):
        super().__init__(content=content, metadata=SimpleNamespace(src_node_id=1))

    def has_error(self):
        return False

    def has_content(self):
        return True


def test_an_app_in_flowers_older_form_runs_too(run_app):
    ended = run_app("legacy", "nodes=3")
    assert ended.code == 0, ended.err
    # Partitions 0, 1, 2 weigh 1, 2, 3: each round adds (0 + 2 + 6) / 6.
    assert ended.found("model.json") == pytest.approx([16 / 6] * 2)
    run = AppRun(ended.run)
    assert [(each.round, each.type) for each in run.exchanges] == [
        (1, "train"), (1, "evaluate"), (2, "train"), (2, "evaluate"),
    ]  # fmt: skip
    assert "round 2:" in run.log.read_text()


def test_report_summary_and_json_say_in_red_that_it_ran_outside_the_door(run_app, lepton):
    ended = run_app("numpy_fedavg", "nodes=3", "--json", "config.num-server-rounds=1")
    document = json.loads(ended.out)  # and nothing else: what the app printed went elsewhere
    assert document["outside_the_door"] is True
    assert document["run"] == str(ended.run)
    assert (document["status"], document["rounds"], document["nodes"]) == ("finished", 1, 3)
    assert document["config"]["num-server-rounds"] == 1
    assert [each["answered"] for each in document["exchanges"]] == [3, 3]
    assert "Running first try" in ended.err
    html = (ended.run / "report.html").read_text()
    assert f'<p class="statement red">{STATEMENT.replace(chr(39), "&#39;")}</p>' in html
    assert "num-server-rounds" in html
    assert "(changed on the command line)" in html
    assert "Running first try" in html
    log = (ended.run / "log.txt").read_text()
    assert "[ROUND 1/1]" in log
    assert "\x1b" not in log
    shown = lepton("report", str(ended.run))
    assert "OUTSIDE THE DOOR" in shown.out


def test_runs_report_audit_and_resume_know_such_a_run(run_app, lepton, monkeypatch, tmp_path):
    lepton("simulate", "task=breast_cancer", "sites=3", "rounds=1", "privacy=none")
    run_app("stateful", "nodes=2")
    listed = lepton("runs")
    assert listed.code == 0
    assert "breast_cancer" in listed.out
    assert "app stateful" in listed.out
    assert "outside" in listed.out
    rows = json.loads(lepton("runs", "--json").out)
    assert [row.get("outside_the_door", False) for row in rows] == [False, True]
    assert json.loads(lepton("report", "last", "--json").out)["app"] == "stateful"
    for words in (
        ["audit", "verify", "last"],
        ["simulate", "resume=last"],
        ["privacy", "audit", "last"],
    ):
        ended = lepton(*words)
        assert ended.code == 5, words
        assert ended.err.startswith("OutsideTheDoor: The run ")


def test_what_an_app_imports_and_where_it_works_is_given_back(run_app, tmp_path):
    path, folder = list(sys.path), Path.cwd()
    assert run_app("server_eval", "nodes=2").code == 0
    assert sys.path == path
    assert Path.cwd() == folder
