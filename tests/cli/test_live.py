"""Live progress: what it says of answers, pace and epsilon, and where it says nothing."""

import io
import time

import pytest
from rich.console import Console

from lepton_cli.live import LiveObserver
from lepton_cli.pace import Pace, records_of
from lepton_common.settings_rules import parse_settings
from lepton_server.progress import Observer, Observers, RoundReport


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def report(round_, *, rounds=4, failed=None, epsilon=None):
    return RoundReport(
        round=round_,
        rounds=rounds,
        metrics={"accuracy": 0.75},
        failed=failed or {},
        epsilon=epsilon or {},
        seconds=2.0,
    )


@pytest.fixture
def settings(setting_values):
    return parse_settings(setting_values({"train.local_epochs": 2}))


def test_records_are_those_of_public_size_classes(setting_values):
    def each(changes, size=64):
        return records_of(parse_settings(setting_values(changes)), size)

    assert each({"train.local_epochs": 3}) == 3 * 64
    steps = {"train.local_epochs": None, "train.local_steps": 5}
    assert each({**steps, "train.batch_size": 10}) == 5 * 10
    assert each({**steps, "train.batch_size": 100}) == 5 * 64
    private = {"privacy.mode": "record", "privacy.epsilon": 1.0, "privacy.delta": 1e-5}
    assert each({**steps, **private, "privacy.sample_rate": 0.25}) == 5 * 16


def test_pace_divides_what_was_done_by_the_time_it_took(settings):
    clock = Clock()
    pace = Pace(settings, clock)
    assert pace.records_per_s is None
    assert pace.left_s is None
    pace.start(3, 6)  # a resumed run: two rounds are no work of now
    pace.cohort([64, 32])
    clock.now += 10
    pace.answer("train", 1, 2)
    assert pace.done == 2.5
    assert pace.records_per_s == pytest.approx(96 / 10)
    assert pace.left_s == pytest.approx(3.5 * 20)
    pace.answer("train", 2, 2)
    clock.now += 2
    pace.finish(3, 1)  # one of the two gave nothing of use
    assert pace.done == 3
    assert pace.records_per_s == pytest.approx(96 / 12)
    assert pace.left_s == pytest.approx(3 * 12)


def test_pace_forgets_a_slow_beginning(settings):
    clock = Clock()
    pace = Pace(settings, clock)
    pace.start(1, 40)
    for round_ in range(1, 21):
        pace.cohort([64])
        clock.now += 1000 if round_ == 1 else 1
        pace.finish(round_, 1)
    assert pace.left_s == pytest.approx(20)
    assert pace.records_per_s == pytest.approx(128)


def test_stages_without_training_move_no_bar(settings):
    pace = Pace(settings, Clock())
    pace.start(1, 2)
    pace.cohort([64, 64])
    for step in ("advertise", "share"):
        pace.answer(step, 2, 2)
        assert pace.done == 0
    pace.answer("mask", 2, 2)
    pace.answer("unmask", 1, 2)
    assert (pace.done, pace.step, pace.came) == (1, "unmask", 1)


def test_an_answer_costs_next_to_nothing(settings):
    watched = Observers([LiveObserver(settings, quiet=True, bar=False), Observer()])
    began = time.process_time()
    for came in range(20_000):
        watched.on_answer("train", came, 20_000)
    assert time.process_time() - began < 1.0  # measured: 0.01 s


def told(observer, **epsilon):
    observer.on_start(1, 4, 2)
    observer.on_cohort(1, [64, 64])
    for came in (1, 2):
        observer.on_answer("train", came, 2)
    observer.on_round(report(1, failed={"b": "TimedOut"}, epsilon=epsilon))


def test_lines_where_there_is_no_terminal(setting_values, capsys):
    changes = {"privacy.mode": "record", "privacy.epsilon": 3.0, "privacy.delta": 1e-5,
               "train.local_epochs": None, "train.local_steps": 1}  # fmt: skip
    private = parse_settings(setting_values(changes))
    with LiveObserver(private, quiet=False, bar=False) as observer:
        told(observer, a=0.5012, b=1.2301)
    first, second, third = capsys.readouterr().err.splitlines()
    assert first == "Training 4 rounds over 2 sites."
    assert second.startswith("round 1/4  accuracy 0.750  epsilon 1.24 of 3  1 of 2 sites  ~")
    assert "records/s  2.0 s  0:00:0" in second
    assert second.endswith("left")
    assert third == "Round 1: no answer of use from b (TimedOut)"


def test_nothing_where_one_document_is_asked_for(settings, capsys):
    with LiveObserver(settings, quiet=True, bar=True) as observer:
        told(observer)
    assert capsys.readouterr() == ("", "")


def test_baselines_are_told_of_a_tenth_at_a_time(settings, capsys):
    with LiveObserver(settings, quiet=False, bar=False) as observer:
        for came in range(31):
            observer.on_baseline(came, 30)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [f"Baselines: {came} of 30 models trained." for came in range(0, 31, 3)]


def test_a_stop_among_baselines_leaves_the_screen_to_the_bar(settings):
    screen = Console(file=io.StringIO(), force_terminal=True, width=90)
    observer = LiveObserver(settings, quiet=False, bar=True)
    observer._status._live.console = observer._progress.live.console = screen
    with observer:
        observer.on_baseline(1, 3)
        assert observer._status._live.is_started
        observer.on_start(1, 4, 2)
        assert not observer._status._live.is_started


def test_a_bar_on_a_terminal_shows_answers_as_they_come(settings):
    screen = Console(file=io.StringIO(), force_terminal=True, width=90)
    observer = LiveObserver(settings, quiet=False, bar=True)
    observer._progress.live.console = screen
    observer._console = screen
    with observer:
        told(observer)
        observer.on_cohort(2, [64, 64])
        observer.on_answer("mask", 1, 2)
        observer._progress.refresh()
        shown = screen.file.getvalue()
    assert "1/4" in shown
    assert "accuracy 0.750" in shown
    assert "trained 1/2" in shown
    assert "left" in shown


def test_several_observers_are_all_told_and_each_may_stop():
    class Notes(Observer):
        def __init__(self):
            super().__init__()
            self.seen = []

        def on_baseline(self, came, of):
            self.seen.append("baseline")

        def on_start(self, first_round, rounds, sites):
            self.seen.append("start")

        def on_waiting(self, sites):
            self.seen.append("waiting")

        def on_cohort(self, round_, sizes):
            self.seen.append("cohort")

        def on_answer(self, step, came, asked):
            self.seen.append(step)

        def on_round(self, report):
            self.seen.append("round")

        def on_end(self, status, documents):
            self.seen.append(status)

    first, second = Notes(), Notes()
    both = Observers([first, second])
    both.on_baseline(1, 3)
    both.on_start(1, 2, 0)
    both.on_waiting(1)
    both.on_cohort(1, [])
    both.on_answer("train", 1, 1)
    both.on_round(report(1))
    both.on_end("stopped", [])
    expected = ["baseline", "start", "waiting", "cohort", "train", "round", "stopped"]
    assert first.seen == second.seen == expected
    assert not both.stop_requested
    second.stop_requested = True
    assert both.stop_requested
