"""``lepton stats``: whole runs, what they say, and that they verify."""

import json

import numpy as np
import pytest

from lepton_cli.statistics_run import ask, statistics_overrides
from lepton_common.datasets.catalog import load_dataset
from lepton_common.errors import PlanError

SMALL = ("task=breast_cancer", "sites=5", "statistics.features=[0,3]", "statistics.bins=8")


def test_one_command_asks_prints_draws_and_verifies(lepton):
    ended = lepton("stats", *SMALL, "privacy.epsilon=5")
    assert ended.code == 0
    said = " ".join(ended.out.split())
    assert "mean radius" in said
    assert "Cost: epsilon 5.000 at delta 1e-05 for each row" in said
    from lepton_cli.run import find_run

    run = find_run("last")
    folder = run.folder.path
    assert run.status == "finished"
    assert {"statistics_labels.png", "statistics_features.png"} <= {
        p.name for p in folder.iterdir()
    }
    assert lepton("audit", "verify", str(folder)).code == 0
    for site in sorted((folder / "sites").iterdir()):
        verified = lepton("privacy", "verify", str(site), "--json")
        assert verified.code == 0
        (row,) = json.loads(verified.out)["data"]
        assert row["epsilon"] == pytest.approx(5.0, rel=1e-3)
        assert row["epsilon"] <= 5.0
    assert "mean radius" in lepton("report", str(folder)).out
    assert "1/1" in lepton("runs").out
    path = run.folder.statistics
    path.write_text(path.read_text().replace('"epsilon"', '"cost"'))
    altered = lepton("audit", "verify", str(folder))
    assert altered.code == 6
    assert "is not what the server's log says" in altered.err
    path.unlink()
    assert lepton("audit", "verify", str(folder)).code == 6


def test_json_is_one_document_with_an_error_for_each_figure(lepton):
    ended = lepton("stats", *SMALL, "--json")
    assert ended.code == 0
    document = json.loads(ended.out)
    assert document["privacy"]["epsilon"] <= 1.0
    assert document["sites"] == {"answered": 5, "failed": {}}
    assert document["people"]["error"] > 0
    assert [row["name"] for row in document["features"]] == ["mean radius", "mean area"]
    assert len(document["features"][0]["histogram"]["counts"]) == 8


@pytest.mark.parametrize("secagg", ["sa1", "none"])
def test_a_run_with_next_to_no_noise_tells_the_truth(secagg, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = ask([*SMALL, "privacy.epsilon=900", f"secagg={secagg}"])
    found = json.loads(run.folder.statistics.read_text())
    records = load_dataset("breast_cancer", None, "public_ranges").train
    values, labels = records.features.double().numpy(), records.labels.numpy()
    people = found["people"]
    assert people["value"] == pytest.approx(455, abs=6 * people["error"])
    assert people["error"] < 2.0
    for row, count in zip(found["labels"], np.bincount(labels), strict=True):
        assert row["count"]["value"] == pytest.approx(count, abs=6 * row["count"]["error"])
    for row, column in zip(found["features"], (0, 3), strict=True):
        expected = {"mean": values[:, column].mean(), "variance": values[:, column].var(),
                    "missing": 0.0}  # fmt: skip
        for name, value in expected.items():
            assert row[name]["value"] == pytest.approx(value, abs=6 * row[name]["error"])
        counts, _ = np.histogram(values[:, column], 8, (-1, 1))
        assert row["histogram"]["counts"] == pytest.approx(counts, abs=6 * people["error"] * 3)
        median = np.median(values[:, column])
        assert row["quantiles"]["0.5"]["value"] == pytest.approx(median, abs=0.13)


def test_runs_are_right_on_average_and_off_by_their_errors(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    labels = load_dataset("digits", None, "public_ranges").train.labels.numpy()
    off = []
    for seed in range(3):
        run = ask(["task=digits", "sites=3", "statistics.features=[0]", f"seed={seed}"])
        rows = json.loads(run.folder.statistics.read_text())["labels"]
        off += [
            (row["count"]["value"] - count) / row["count"]["error"]
            for row, count in zip(rows, np.bincount(labels), strict=True)
        ]
    # 30 draws of the noise, in its claimed deviations: 5 standard errors of mean and deviation.
    assert abs(np.mean(off)) < 5 / 30**0.5
    assert np.std(off) == pytest.approx(1.0, abs=5 / 60**0.5)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("privacy=none", "privacy.epsilon=null"), 2, "choose privacy=distributed"),
        (("privacy=record",), 2, "choose privacy=distributed"),
        (("privacy=distributed", "secagg=none"), 2, "choose privacy=record"),
        (("rounds=2",), 2, "one sum over all people"),
        (("engine=vectorized", "secagg=none"), 2, "one sum over all people"),
        (("statistics.features=[30]",), 2, "the features 0 to 29"),
        (("statistics.bins=1",), 2, "statistics.bins"),
        (("statistics.bin=4",), 2, "statistics.bins"),
        (("policy.statistics=null",), 4, "outside what the sites allow"),
        (("policy.statistics.max_epsilon=0.5",), 4, "outside what the sites allow"),
        (("policy.statistics.max_bins=4",), 4, "outside what the sites allow"),
        (("policy.max_epsilon=0.5",), 4, "outside what the sites allow"),
    ],
)
def test_what_cannot_be_asked_is_refused_in_one_sentence(lepton, words, code, said):
    ended = lepton("stats", "task=breast_cancer", "sites=5", *words)
    assert ended.code == code
    assert said in " ".join(ended.err.split())


def test_simulate_trains_and_does_not_ask(lepton):
    ended = lepton("simulate", "task=breast_cancer", *statistics_overrides([])[:-1],
                   "statistics.asked=true")  # fmt: skip
    assert ended.code == 2
    assert "lepton stats" in ended.err


def test_more_people_than_a_sum_has_room_for_are_refused(make_settings, monkeypatch):
    from lepton_common.messages import SiteFacts
    from lepton_common.statistics import StatisticsQuery, cells_of
    from lepton_server.rounds import statistics

    from lepton_common.asking import privacy_request  # isort: skip

    settings = make_settings(
        {"secagg.mode": "sa1", "privacy.mode": "distributed", "federation.weights": "public_size",
         "rounds": 1, "statistics": {"asked": True, "bins": 4, "features": [0]}},
        private=True,
    )  # fmt: skip
    cells = cells_of(StatisticsQuery(bins=4, features=[0]),
                     load_dataset("digits", None, "public_ranges"))  # fmt: skip
    asked = privacy_request(settings, cells.size)
    for size, fits in ((2**10, True), (2**30, False)):
        cohort = {
            node: SiteFacts(name=f"site-{node}", public_key="0" * 64, public_size=size, unit="row",
                            audit_head="0" * 64)
            for node in range(10)
        }  # fmt: skip
        if fits:
            assert statistics._plan(asked, settings, cohort, cells).shared.sites == 10
        else:
            with pytest.raises(PlanError, match="32 bits"):
                statistics._plan(asked, settings, cohort, cells)


def test_words_for_real_sites_are_refused_without_a_lead(lepton):
    ended = lepton("stats", *SMALL, "--study", "heart")
    assert ended.code == 2
    assert "add --as FOLDER" in ended.err
