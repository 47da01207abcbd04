"""Whole runs: what they leave behind, one seed one model, and going on after a stop."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

import lepton_cli
from lepton_cli.run import find_run, list_runs
from lepton_cli.simulation import resume
from lepton_common.errors import Interrupted
from lepton_server.progress import Observer

QUICK = ("task=breast_cancer", "sites=3", "rounds=3")
PLAIN = (*QUICK, "privacy=none")


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def weights(run):
    return load_file(run.folder.final_model)


def same(first, second):
    return all(np.array_equal(first[name], second[name]) for name in first)


def test_a_run_leaves_everything_that_repeats_and_proves_it():
    run = lepton_cli.simulate(*QUICK, baselines=True)
    assert run.status == "finished"
    present = {path.name for path in run.folder.path.iterdir()}
    assert present >= {
        "config.yaml", "about.json", "metrics.jsonl", "metrics.csv", "checkpoint.safetensors",
        "model.safetensors", "best_model.safetensors", "model_card.md", "report.html",
        "learning_curve.png", "partition.png", "epsilon.png", "outcome.json", "baselines.json",
    }  # fmt: skip
    about = json.loads(run.folder.about.read_text())
    assert about["versions"]["flwr"] == "1.41.0"
    assert about["seed"] == 1
    with run.folder.metrics_csv.open() as file:
        rows = list(csv.DictReader(file))
    assert [row["round"] for row in rows] == ["1", "2", "3"]
    assert float(rows[-1]["accuracy"]) == run.metrics["accuracy"]
    assert set(run.baselines) == {"pooled", "pooled_without_privacy", "local"}
    spent = [site.epsilon for site in run.evidence.sites.values()]
    assert max(spent) <= 3.0
    assert all(value > 0.5 for value in spent)


def test_the_report_opens_offline_and_says_what_is_protected():
    run = lepton_cli.simulate(*QUICK)
    html = run.report.read_text()
    assert not re.findall(r"(?:src|href)=(?!\"data:)", html)
    assert "http" not in re.sub(r"<pre>.*?</pre>", "", html, flags=re.S)
    assert "per row, not per person" in html
    assert 'class="statement red"' not in html
    card = (run.folder.path / "model_card.md").read_text()
    assert "differential privacy at each site" in card


def test_without_privacy_every_report_is_red(lepton):
    ended = lepton("simulate", *PLAIN)
    assert ended.code == 0
    assert "NOT PRIVATE" in ended.out
    run = list_runs()[-1]
    assert 'class="statement red"' in run.report.read_text()
    assert "NOT PRIVATE" in (run.folder.path / "model_card.md").read_text()


@pytest.mark.parametrize("decay", [0, 0.9])
def test_the_returned_run_holds_a_model_that_predicts_as_measured(decay):
    from lepton_common.datasets.catalog import load_dataset
    from lepton_common.tasks.catalog import find_task

    run = lepton_cli.simulate(*PLAIN, strategy={"average_decay": decay})
    test = load_dataset("breast_cancer", None, "public_ranges").test
    again = find_task("breast_cancer").evaluate(run.model(), test.features, test.labels)
    # The loss on the sites' own records comes out of the masked sum, not out of the model.
    assert again | {"train_loss": run.metrics["train_loss"]} == run.metrics


CARRIERS = ((1, False), (2, False), (5, False), (2, True))


@pytest.mark.parametrize(
    ("task", "carriers"),
    [
        ("breast_cancer", CARRIERS[::3]),
        pytest.param("breast_cancer", CARRIERS, marks=pytest.mark.slow),
        pytest.param("digits", CARRIERS, marks=pytest.mark.slow),
    ],
)
def test_one_seed_gives_the_same_bits_for_any_number_of_workers_and_any_carrier(task, carriers):
    common = {"task": task, "sites": 5, "rounds": 2, "privacy": "none", "seed": 7}
    runs = [
        lepton_cli.simulate(**common, engine={"workers": workers, "serialise": serialise})
        for workers, serialise in carriers
    ]
    for run in runs[1:]:
        assert same(weights(runs[0]), weights(run))
    other = lepton_cli.simulate(**{**common, "seed": 8})
    assert not same(weights(runs[0]), weights(other))


def test_with_privacy_two_runs_of_one_seed_differ_in_their_noise():
    torch.manual_seed(0)
    first = lepton_cli.simulate(*QUICK, seed=3)
    torch.manual_seed(0)
    second = lepton_cli.simulate(*QUICK, seed=3)
    assert not same(weights(first), weights(second))


class StopsAfter(Observer):
    """Asks to stop after a round."""

    def __init__(self, round_):
        super().__init__()
        self.last = round_

    def on_round(self, report):
        self.stop_requested = report.round == self.last


@pytest.mark.parametrize(
    "strategy",
    ["fedavg", *(pytest.param(name, marks=pytest.mark.slow) for name in ("fedadam", "fedavgm"))],
)
def test_a_stopped_run_goes_on_to_the_same_model(strategy):
    from lepton_cli.compose import compose_settings
    from lepton_cli.simulation import start

    words = [*PLAIN, f"strategy={strategy}", "federation.cohort=2"]
    unbroken = start(compose_settings(words))
    with pytest.raises(Interrupted, match="lepton simulate resume="):
        start(compose_settings(words), StopsAfter(1))
    stopped = list_runs()[-1]
    assert stopped.status == "stopped"
    assert len(stopped.rounds) == 1
    finished = resume(stopped)
    assert finished.status == "finished"
    assert same(weights(unbroken), weights(finished))
    accuracy = [report.metrics for report in unbroken.rounds]
    assert [report.metrics for report in finished.rounds] == accuracy


class StopsAmongBaselines(Observer):
    """Asks to stop once a first model to compare with is trained, of which it notes the number."""

    came = 0

    def on_baseline(self, came, of):
        self.came, self.stop_requested = came, came > 0


def test_who_stops_among_the_baselines_has_no_round_and_may_go_on():
    from lepton_cli.compose import compose_settings
    from lepton_cli.simulation import start

    settings, observer = compose_settings([*PLAIN, "baselines=true"]), StopsAmongBaselines()
    with pytest.raises(Interrupted, match="Stopped before the first round"):
        start(settings, observer)
    stopped = list_runs()[-1]
    assert (stopped.status, stopped.rounds, stopped.baselines) == ("stopped", [], {})
    assert observer.came < settings.sites
    finished = resume(stopped)
    assert finished.status == "finished"
    assert set(finished.baselines) == {"pooled", "local"}


def test_a_crash_between_the_last_checkpoint_and_its_metrics_loses_nothing():
    run = lepton_cli.simulate(*PLAIN)
    expected, metrics = weights(run), run.folder.metrics_jsonl.read_text()
    run.folder.metrics_jsonl.write_text("".join(metrics.splitlines(keepends=True)[:-1]))
    run.folder.final_model.unlink()
    run.folder.outcome.unlink()
    finished = resume(find_run("last"))
    assert finished.status == "finished"
    assert finished.folder.metrics_jsonl.read_text() == metrics
    assert same(weights(finished), expected)


def test_a_stop_before_the_first_round_is_resumable(lepton):
    from lepton_cli.compose import compose_settings
    from lepton_cli.simulation import start

    eager = Observer()
    eager.stop_requested = True
    with pytest.raises(Interrupted, match="Stopped before the first round"):
        start(compose_settings(list(PLAIN)), eager)
    assert lepton("simulate", "resume=last").code == 0


def test_a_finished_run_is_not_resumed(lepton):
    lepton("simulate", *PLAIN)
    ended = lepton("simulate", "resume=last")
    assert ended.code == 5
    assert "finished; start a new one" in ended.err


def test_a_resumed_run_takes_no_other_settings(lepton):
    ended = lepton("simulate", "resume=last", "rounds=9")
    assert ended.code == 2
    assert "drop rounds=9" in ended.err


@pytest.mark.slow
@pytest.mark.parametrize("privacy", ["none", "record"])
def test_a_run_that_was_killed_goes_on_exactly(privacy):
    words = ["task=digits", "sites=4", "rounds=6", f"privacy={privacy}", "engine.workers=2"]
    process = subprocess.Popen(
        [sys.executable, "-m", "lepton_cli", "simulate", *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 60
    while not list(Path("runs").glob("*/metrics.jsonl")) and time.monotonic() < deadline:
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    killed = find_run("last")
    done = len(killed.rounds)
    assert killed.status == "interrupted"
    assert 1 <= done < 6
    finished = resume(killed)
    assert finished.status == "finished"
    assert [report.round for report in finished.rounds] == [1, 2, 3, 4, 5, 6]
    assert finished.evidence.witnessed >= 6 * 4
    if privacy == "none":
        assert same(weights(finished), weights(lepton_cli.simulate(*words)))
    else:
        # The round that was cut short is spent too, and the spare round pays for it.
        for site in finished.evidence.sites.values():
            assert 6 <= len(site.events) <= 7
            assert site.epsilon <= 3.0


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT")
def test_ctrl_c_stops_after_the_round_and_says_how_to_go_on():
    process = subprocess.Popen(
        [sys.executable, "-m", "lepton_cli", "simulate", "task=digits", "rounds=500"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not list(Path("runs").glob("*/metrics.jsonl")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "lepton simulate resume=" in err
    stopped = find_run("last")
    assert stopped.status == "stopped"
    assert stopped.report.exists()


def test_a_folder_that_cannot_be_written_is_one_sentence(lepton, tmp_path):
    (tmp_path / "runs").write_text("a file where the folder should be")
    ended = lepton("simulate", *PLAIN)
    assert ended.code == 2
    assert "Traceback" not in ended.err
    assert "runs" in ended.err


def test_json_is_one_document_and_nothing_else(lepton):
    ended = lepton("simulate", *PLAIN, "secagg=none", "--json")
    document = json.loads(ended.out)
    assert document["status"] == "finished"
    assert document["sites"]["site-1"]["epsilon"] is None
    assert document["sites"]["site-1"]["bytes_left"]["unprotected"] > 0
    assert ended.err == ""


def test_runs_and_reports_are_listed(lepton):
    lepton("simulate", *PLAIN)
    assert "finished" in lepton("runs").out
    assert json.loads(lepton("runs", "--json").out)[0]["status"] == "finished"
    assert "server's test set" in lepton("report").out
    assert lepton("report", "nothing").code == 5


@pytest.mark.slow
def test_a_sweep_runs_in_processes_of_its_own_and_ends_in_one_table(lepton):
    ended = lepton("simulate", "-m", *PLAIN, "seed=1,2", "--json")
    documents = json.loads(ended.out)["runs"]
    assert (ended.code, ended.err) == (0, "")
    assert [document["overrides"][-1] for document in documents] == ["seed=1", "seed=2"]
    alone = lepton_cli.simulate(*PLAIN, seed=2)
    assert documents[1]["metrics"] == alone.metrics


def test_a_sweep_with_a_fault_starts_nothing(lepton):
    ended = lepton("simulate", "-m", *PLAIN, "train.learning_rate=0.1,-1")
    assert ended.code == 2
    assert "train.learning_rate=-1" in ended.err
    assert not Path("runs").exists()


def test_configuration_and_help_teach(lepton):
    assert "learning_rate" in lepton("config", "task=mnist").out
    text = lepton("simulate", "--help").out
    for word in ("strategy:", "privacy:", "none, record", "resume=RUN"):
        assert word in text
    assert text.count("lepton simulate ") >= 3
    assert lepton("--version").out.startswith("lepton 0.")
