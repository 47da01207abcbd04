"""Tests of a run's folder: metrics are read as they were written, or refused."""

import csv

import pytest

from lepton_common.errors import CheckpointUnreadable
from lepton_server.progress import RoundReport
from lepton_server.run_folder import RunFolder, as_plain

_REPORTS = [
    RoundReport(
        1, 2, {"accuracy": 0.5, "loss": 1.25}, {"c": "TimedOut"}, {"a": 0.5, "b": 1.5}, 2.5
    ),
    RoundReport(2, 2, {"accuracy": 0.75, "loss": 0.625}, {}, {}, 0.125),
]


@pytest.fixture
def folder(tmp_path):
    folder = RunFolder(tmp_path)
    folder.write_metrics([as_plain(report) for report in _REPORTS])
    return folder


def test_metrics_are_read_as_they_were_written(folder):
    assert list(folder.reports()) == _REPORTS


def test_the_table_says_the_same(folder):
    with folder.metrics_csv.open(newline="") as file:
        first, second = csv.DictReader(file)
    assert first == {
        "round": "1", "accuracy": "0.5", "loss": "1.25", "max_epsilon": "1.5", "failed": "1",
        "seconds": "2.5",
    }  # fmt: skip
    assert (second["max_epsilon"], second["failed"]) == ("", "0")


def test_metrics_are_made_anew_each_time(folder):
    folder.write_metrics([as_plain(_REPORTS[0])])
    assert list(folder.reports()) == _REPORTS[:1]
    assert len(folder.metrics_csv.read_text().splitlines()) == 2


def test_a_run_without_a_finished_round_has_no_reports(tmp_path):
    assert list(RunFolder(tmp_path).reports()) == []


@pytest.mark.parametrize(
    "damage",
    [b"{", b"[]", b"5", b"null", b'{"round": 1}', b"\xff\xfe", b'{"round": 1, "unknown": 2}', b" "],
)
def test_damaged_metrics_are_unreadable(folder, damage):
    folder.metrics_jsonl.write_bytes(folder.metrics_jsonl.read_bytes() + damage + b"\n")
    with pytest.raises(CheckpointUnreadable, match="damaged"):
        list(folder.reports())


def test_everything_lies_inside_the_folder(tmp_path):
    folder = RunFolder(tmp_path)
    paths = [
        folder.config, folder.about, folder.outcome, folder.audit, folder.server_key,
        folder.checkpoint, folder.final_model, folder.best_model, folder.metrics_jsonl,
        folder.metrics_csv, folder.site("a"), folder.site("b"),
    ]  # fmt: skip
    assert len(set(paths)) == len(paths)
    assert all(path.is_relative_to(tmp_path) for path in paths)
