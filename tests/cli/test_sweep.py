"""Sweeps: what they stand for, how many go at a time, what is kept, and the summary of it all."""

import contextlib
import csv
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from matplotlib.figure import Figure

import lepton_cli
from lepton_cli.compose import expand_sweep
from lepton_cli.run import find_run, list_runs
from lepton_cli.sweep import lanes as lanes_module
from lepton_cli.sweep import run as sweep_run
from lepton_cli.sweep.folder import find_sweep, new_sweep
from lepton_cli.sweep.lanes import Lanes, free_memory, lanes_in
from lepton_cli.sweep.picture import draw_sweep
from lepton_cli.sweep.results import Result, grouped, table
from lepton_common.errors import LeptonError, RunNotFound, SettingsError

PLAIN = ("task=breast_cancer", "sites=3", "rounds=2", "privacy=none")
GB = 10**9


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


class InThisProcess(Lanes):
    """Runs a sweep's commands here, one by one, which spares the start of a Python for each."""

    def run(self, numbers):
        from lepton_cli.main import main

        for number in numbers:
            out, err = self.outputs(number)
            words = self.command(number, 1)[3:]
            assert not self.telling(number)  # rounds of an earlier process tell nothing
            printed, complained = io.StringIO(), io.StringIO()
            before, sys.argv = sys.argv, ["lepton", *words]
            try:
                with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(complained):
                    main()
            except SystemExit as ended:
                code = int(ended.code or 0)
            finally:
                sys.argv = before
            out.write_text(printed.getvalue())
            err.write_text(complained.getvalue())
            self.look([number])
            new = code == 0 and not words[-1].startswith("resume=")
            assert self.telling(number) == new
            self.ended(number, code)


@pytest.fixture
def here(monkeypatch):
    monkeypatch.setattr(sweep_run, "Lanes", InThisProcess)


@pytest.mark.parametrize(
    ("word", "values"),
    [
        ("model=glob(cnn_*)", ["cnn_reference", "cnn_rnn", "cnn_small"]),
        ("model=glob([m*,log*],exclude=mo*)", ["logistic", "mlp"]),
        ("seed=choice(3,1)", ["3", "1"]),
        ("seed=sort(3,1,2)", ["1", "2", "3"]),
        ("train.learning_rate=range(0.25,1,0.25)", ["0.25", "0.5", "0.75"]),
        ("layers=[a,b],[c]", ["[a,b]", "[c]"]),
    ],
)
def test_hydras_syntax_of_sweeps(word, values):
    name = word.partition("=")[0]
    assert expand_sweep([word]) == [[f"{name}={value}"] for value in values]


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("seed=interval(1,3)", "is no list of values"),
        ("seed=glob(1*)", "is for groups"),
        ("model=glob(zz*)", "No model is like"),
    ],
)
def test_what_stands_for_no_values_is_named(word, said):
    with pytest.raises(SettingsError, match=said):
        expand_sweep([word])


def test_a_sweep_has_one_folder_of_runs():
    with pytest.raises(SettingsError, match="runs is one folder"):
        new_sweep([*PLAIN, "runs=a,b"])


def test_cores_and_memory_bound_what_goes_at_a_time():
    assert lanes_in(free=100 * GB, need=GB, cores=8) == 8
    assert lanes_in(free=10 * GB, need=2 * GB, cores=8) == 4  # a fifth stays free
    assert lanes_in(free=GB, need=5 * GB, cores=8) == 1
    assert lanes_in(free=GB, need=0, cores=2) == 2


def test_a_container_may_use_no_more_than_it_has(tmp_path):
    whole = free_memory(tmp_path / "none")
    assert whole > 0
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("700000\n")
    (tmp_path / "memory.stat").write_text("anon 5\ninactive_file 200000\n")
    assert free_memory(tmp_path) == 500_000
    (tmp_path / "memory.max").write_text("max\n")
    assert free_memory(tmp_path) > 500_000


class Commands:
    """Small commands in lanes, and what was seen of them."""

    def __init__(self, folder, code="", *, free=100 * GB, cores=3, told=True):
        self.folder, self.threads, self.codes, self.most = folder, {}, {}, 0
        self.lines, self.code, self.told = [], code, told
        self.lanes = Lanes(
            command=self.command,
            outputs=lambda number: (folder / f"{number}.out", folder / f"{number}.err"),
            telling=lambda number: self.told,
            look=self.look,
            ended=self.codes.__setitem__,
            say=self.lines.append,
            cores=cores,
            free=lambda: free,
        )

    def command(self, number, threads):
        self.threads[number] = threads
        text = f"import os, signal, sys, time; number = {number}\n{self.code}"
        return [sys.executable, "-S", "-c", text]

    def look(self, running):
        self.most = max(self.most, len(running))


def test_one_that_fails_does_not_stop_the_others(tmp_path, monkeypatch):
    monkeypatch.setattr(lanes_module, "_LOOK_S", 0.02)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    code = "print(os.environ['OMP_NUM_THREADS']); time.sleep(0.3); sys.exit(number == 1)"
    commands = Commands(tmp_path, code, cores=4)
    commands.lanes.run([0, 1, 2])
    assert commands.codes == {0: 0, 1: 1, 2: 0}
    assert commands.most == 3
    assert commands.threads == {0: 1, 1: 1, 2: 1}  # four cores among three
    assert (tmp_path / "2.out").read_text() == "1\n"
    (line,) = commands.lines
    assert line.startswith("Up to 4 at a time: 4 cores, and one run needs 0.0 GB of the ")


def test_threads_are_divided_among_fewer_runs_than_cores(tmp_path, monkeypatch):
    monkeypatch.setattr(lanes_module, "_LOOK_S", 0.02)
    commands = Commands(tmp_path, cores=8)
    commands.lanes.run([0, 1])
    assert commands.threads == {0: 4, 1: 4}


def test_where_memory_is_short_they_take_turns(tmp_path, monkeypatch):
    monkeypatch.setattr(lanes_module, "_LOOK_S", 0.02)
    monkeypatch.setattr(lanes_module, "_held", lambda pid: GB)
    commands = Commands(tmp_path, "time.sleep(0.1)", free=GB // 2)
    commands.lanes.run([0, 1, 2])
    assert commands.most == 1
    assert commands.codes == {0: 0, 1: 0, 2: 0}
    assert commands.lines == ["Up to 1 at a time: 3 cores, and one run needs 1.0 GB of the 1.5 GB "
                              "that are free."]  # fmt: skip


def test_the_first_is_measured_before_others_join_it(tmp_path, monkeypatch):
    monkeypatch.setattr(lanes_module, "_LOOK_S", 0.02)
    commands = Commands(tmp_path, "time.sleep(0.2)", told=False, cores=2)
    commands.lanes.run([0])
    assert commands.lanes._need > 0  # by its peak, once it has ended
    commands = Commands(tmp_path, "time.sleep(0.1)", told=False, cores=2)
    monkeypatch.setattr(commands.lanes, "_reap", lambda: None)
    threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    threading.Timer(0.5, Lanes._reap, [commands.lanes]).start()
    commands.lanes.run([0, 1])
    assert commands.most == 1


def test_ctrl_c_reaches_what_was_only_starting_once_it_listens(tmp_path, monkeypatch):
    monkeypatch.setattr(lanes_module, "_LOOK_S", 0.02)
    code = (
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\ntime.sleep(0.5)\n"
        "signal.signal(signal.SIGINT, lambda *_: sys.exit(130))\nprint('up', flush=True)\n"
        "time.sleep(20)"
    )
    commands = Commands(tmp_path, code, cores=2, told=True)
    command = commands.lanes.command

    def pressed_meanwhile(number, threads):
        if number == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return command(number, threads)

    commands.lanes.command = pressed_meanwhile
    commands.lanes.telling = lambda number: (tmp_path / f"{number}.out").read_text() == "up\n"
    commands.lanes.run([0, 1, 2])
    assert commands.codes == {0: 130, 1: 130}


def test_ctrl_c_reaches_what_has_no_round_yet_once_it_must_be_up(tmp_path, monkeypatch):
    monkeypatch.setattr(lanes_module, "_LOOK_S", 0.02)
    monkeypatch.setattr(lanes_module, "_UP_S", 1.0)
    code = "signal.signal(signal.SIGINT, lambda *_: sys.exit(130))\ntime.sleep(20)"
    commands = Commands(tmp_path, code, told=False)
    threading.Timer(0.1, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    commands.lanes.run([0, 1])
    assert commands.codes == {0: 130}


@pytest.mark.parametrize("presses", [1, 2])
def test_ctrl_c_ends_what_runs_and_starts_no_more(tmp_path, monkeypatch, presses):
    monkeypatch.setattr(lanes_module, "_LOOK_S", 0.02)
    code = (
        "def asked(*_):\n    global over\n    over = True\n"
        "over = False\nsignal.signal(signal.SIGINT, asked)\nprint('up', flush=True)\n"
        "while not over or sys.argv[0] == 'x': time.sleep(0.01)\n"
        "time.sleep(60 * (number == 9))\nsys.exit(130)"
    )
    commands = Commands(tmp_path, code, cores=2, told=True)
    numbers = [0, 1, 2] if presses == 1 else [9, 1, 2]

    def press():
        deadline = time.monotonic() + 20
        files = [tmp_path / f"{number}.out" for number in numbers[:2]]
        while not all(file.exists() and file.read_text() for file in files):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        for _ in range(presses):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.3)

    pressing = threading.Thread(target=press)
    pressing.start()
    began = time.monotonic()
    commands.lanes.run(numbers)
    pressing.join()
    assert time.monotonic() - began < 30
    ended = dict.fromkeys(numbers[:2], 130)
    assert commands.codes == (ended if presses == 1 else {9: -signal.SIGKILL, 1: 130})
    assert commands.lanes.stops == presses
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_sweep_ends_in_a_table_files_and_a_picture(lepton, here):
    ended = lepton("simulate", "-m", *PLAIN, "sites=3,1000", "seed=1,2")
    assert ended.code == 3  # of the two that have too few records
    (folder,) = Path("runs").glob("sweep-*")
    assert "1/4  sites=3 seed=1  accuracy 0." in ended.err
    assert "sites=1000 seed=2  TooFewRecords" in ended.err
    assert "TooFewRecords" in ended.out
    assert f"Picture:      {folder.resolve()}/sweep.png" in ended.out
    assert (folder / "sweep.png").read_bytes().startswith(b"\x89PNG")
    summary = json.loads((folder / "summary.json").read_text())
    reached = [run["metrics"]["accuracy"] for run in summary["runs"][:2]]
    first, second = summary["groups"]
    assert first["knobs"] == {"sites": "3"}
    assert (first["runs"], first["failed"]) == (2, 0)
    assert first["reached"] == pytest.approx(sum(reached) / 2)
    assert first["deviation"] == pytest.approx(abs(reached[0] - reached[1]) / 2**0.5)
    assert (second["runs"], second["failed"], second["reached"]) == (0, 2, None)
    rows = list(csv.DictReader((folder / "summary.csv").read_text().splitlines()))
    assert [row["status"] for row in rows] == ["finished", "finished", *["TooFewRecords"] * 2]
    assert (folder / "summary.txt").read_text().count("\n") > 5
    # The runs of a sweep are runs like others.
    assert len(list_runs()) == 2
    name = Path(summary["runs"][0]["run"]).name
    assert find_run(name).name == name
    assert "finished" in lepton("runs").out


@pytest.mark.slow
def test_a_sweep_goes_on_with_what_did_not_finish(lepton, here):
    words = [*PLAIN, "rounds=2,3", "--json"]
    first = json.loads(lepton("simulate", "-m", *words).out)
    assert [run["status"] for run in first["runs"]] == ["finished", "finished"]
    # As if the machine had gone down in the midst of the second.
    (Path(first["runs"][1]["run"]) / "outcome.json").unlink()
    metrics = Path(first["runs"][0]["run"]) / "metrics.jsonl"
    before = metrics.stat().st_mtime_ns
    ended = lepton("simulate", "-m", f"resume={first['sweep']}", "--json")
    assert ended.code == 0
    again = json.loads(ended.out)
    for name in ("overrides", "run", "status", "metrics"):
        assert [run[name] for run in again["runs"]] == [run[name] for run in first["runs"]]
    assert again["groups"] == first["groups"]
    assert metrics.stat().st_mtime_ns == before
    assert len(list_runs()) == 2
    assert lepton("simulate", "-m", "resume=last", "rounds=9").code == 2
    assert find_sweep(["resume=last"]).path == Path(first["sweep"])
    with pytest.raises(RunNotFound, match="No sweep 'gone'"):
        find_sweep(["resume=gone"])


@pytest.mark.slow
def test_a_run_is_known_by_its_settings_whatever_its_workers():
    sweep = new_sweep([*PLAIN, "seed=1,2", "runs='odd, path'"])
    for number in (1, 0):
        words = sweep.command(number, 2)
        assert words[-1] == "engine.workers=2"
        run = lepton_cli.simulate(*words)
        assert sweep.run(number).name == run.name
    assert sweep.command(0, 2) == [f"resume={sweep.run(0).folder.path}"]
    assert sweep.rounds(0) == 2
    assert sweep.knobs == [{"seed": "1"}, {"seed": "2"}]
    assert find_sweep([f"resume={sweep.path}"]).run(1).settings.seed == 2


def result(accuracy, epsilon=None, **knobs):
    names = {name.replace("__", "."): str(value) for name, value in knobs.items()}
    document = {
        "status": "finished",
        "headline": "accuracy",
        "metrics": {"accuracy": accuracy},
        "sites": {"a": {"epsilon": epsilon}, "b": {"epsilon": epsilon and epsilon / 2}},
    }
    return Result([], names, document, 1.0)


def test_groups_are_means_over_seeds():
    results = [result(0.8, 2.0, model="a", seed=1), result(0.9, 2.5, model="a", seed=2),
               Result([], {"model": "a", "seed": "3"}, {"error": "QuorumNotMet"}),
               result(0.5, None, model="b", seed=1)]  # fmt: skip
    first, second = grouped(results)
    assert (first.runs, first.failed, first.epsilon) == (2, 1, 2.5)
    assert first.reached == pytest.approx(0.85)
    assert first.deviation == pytest.approx(0.0707, abs=1e-4)
    # Student's t of one degree of freedom is 12.706 at 97.5 %: a mean of two says little.
    assert (first.low, first.high) == pytest.approx((0.85 - 12.706 * 0.05, 0.85 + 12.706 * 0.05),
                                                    abs=1e-4)  # fmt: skip
    assert (second.deviation, second.low, second.epsilon) == (None, None, None)
    cells = [list(column.cells) for column in table(results).columns]
    assert cells == [["a", "b"], ["0.8500 ± 0.0707", "0.5000"],
                     ["0.2147 to 1.4853", "-"],
                     ["2.500", "[bold red]none[/]"], ["2", "1"],
                     ["[red]QuorumNotMet[/]", ""]]  # fmt: skip


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """Returns what draws results, and gives the axes it drew."""
    kept = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, dpi: kept.append(figure.axes[0]))

    def draw(results):
        assert draw_sweep(results, "title", tmp_path / "x.png")
        return kept[-1]

    return draw


def test_the_picture_shows_accuracy_against_epsilon_where_it_differs(drawn):
    results = [
        result(0.7 + e / 100 + seed / 1000, e, strategy=name, privacy__epsilon=e, seed=seed)
        for name in ("fedavg", "fedadam")
        for e in (1.0, 3.0, 8.0)
        for seed in (1, 2)
    ]
    axes = drawn([*results, result(0.95, None, strategy="fedavg", privacy__epsilon="null", seed=1)])
    assert axes.get_xlabel() == "epsilon spent, worst site"
    assert "standard deviation of 2 seeds" in axes.get_ylabel()
    names = axes.get_legend_handles_labels()[1]
    assert sorted(names) == [
        "no privacy, strategy fedavg",
        "strategy fedadam",
        "strategy fedavg",
    ]
    line = axes.containers[0].lines[0]
    assert list(line.get_xdata()) == [1, 3, 8]
    assert list(line.get_ydata()) == pytest.approx([0.7115, 0.7315, 0.7815])


def test_else_the_picture_shows_accuracy_against_the_knob(drawn):
    axes = drawn([result(0.8, 2.98, sites=5), result(0.9, 2.99, sites=10)])
    assert axes.get_xlabel() == "sites"
    assert list(axes.containers[0].lines[0].get_xdata()) == [5, 10]
    axes = drawn([result(0.8, model=name) for name in ("mlp", "cnn")])
    assert [text.get_text() for text in axes.get_xticklabels()] == ["mlp", "cnn"]
    axes = drawn([result(0.8, train__learning_rate=rate) for rate in (0.001, 0.01, 1)])
    assert axes.get_xscale() == "log"
    axes = drawn([result(0.8, seed=1), result(0.9, seed=2)])
    assert axes.get_xlabel() == "seed"


def test_nothing_is_drawn_where_nothing_finished(tmp_path):
    failed = Result([], {"seed": "1"}, {"error": "Crashed"})
    assert not draw_sweep([failed], "title", tmp_path / "x.png")
    assert issubclass(RunNotFound, LeptonError)


@pytest.mark.slow
def test_ctrl_c_in_a_sweep_keeps_all_and_says_how_to_go_on():
    command = [sys.executable, "-m", "lepton_cli", "simulate", "-m"]
    words = ["task=digits", "rounds=300", "privacy=none", "seed=1,2,3"]
    process = subprocess.Popen([*command, *words], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not list(Path("runs").glob("sweep-*/*/metrics.jsonl")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "lepton simulate -m resume=" in err
    assert {run.status for run in list_runs()} == {"stopped"}
