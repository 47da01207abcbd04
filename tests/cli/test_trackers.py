"""Trackers, read back: TensorBoard's files and MLflow's database hold the run's metrics."""

import json
import threading

import pytest

import lepton_cli
from lepton_cli.run import list_runs
from lepton_cli.simulation import resume, start
from lepton_common.errors import Interrupted, SettingsError, TrackerMissing
from lepton_server.progress import Observer
from lepton_server.trackers import catalog

PLAIN = ("task=breast_cancer", "sites=3", "rounds=3", "privacy=none")


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


class StopsAfter(Observer):
    """Asks to stop after a round."""

    def __init__(self, round_):
        super().__init__()
        self.last = round_

    def on_round(self, report):
        self.stop_requested = report.round == self.last


def scalars(folder):
    """Returns what TensorBoard's event files hold: name -> list of (round, value)."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
    from tensorboard.util.tensor_util import make_ndarray

    found = {}
    for path in sorted(folder.glob("events.out.tfevents.*")):
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                kept = make_ndarray(value.tensor)
                found.setdefault(value.tag, []).append((event.step, kept))
    return found


def expected(run, name):
    values = {
        "failed_sites": lambda report: len(report.failed),
        "round_seconds": lambda report: report.seconds,
        "epsilon": lambda report: max(report.epsilon.values()),
    }
    read = values.get(name, lambda report: report.metrics[name])
    return [(report.round, pytest.approx(read(report), rel=1e-6)) for report in run.rounds]


def client_of(uri):
    from mlflow.tracking import MlflowClient

    return MlflowClient(tracking_uri=uri)


def only_run(uri):
    client = client_of(uri)
    (experiment,) = client.search_experiments(filter_string="name != 'Default'")
    (found,) = client.search_runs([experiment.experiment_id])
    return client, experiment, found


def history(client, run_id, name):
    return [(point.step, point.value) for point in client.get_metric_history(run_id, name)]


def test_tensorboard_holds_the_metrics_of_the_run():
    run = lepton_cli.simulate("task=breast_cancer", "sites=3", "rounds=2", "tracker=tensorboard")
    found = scalars(run.folder.path / "tensorboard")
    names = {*run.metrics, "epsilon", "failed_sites", "round_seconds"}
    assert set(found) == {*names, "settings/text_summary"}
    for name in names:
        assert found[name] == expected(run, name)
    ((_, text),) = found["settings/text_summary"]
    assert "breast_cancer" in str(text)


def test_a_resumed_run_goes_on_in_tensorboard_without_a_round_twice():
    from lepton_cli.compose import compose_settings

    words = [*PLAIN, "tracker=tensorboard", "tracker.folder=events"]
    with pytest.raises(Interrupted):
        start(compose_settings(words), StopsAfter(2))
    (folder,) = list_runs()[-1].folder.path.parents[1].glob("events/*")
    # A crash lost the last round there, and left half a record at the end.
    (path,) = folder.iterdir()
    whole = path.read_bytes()
    path.write_bytes(whole[:-3])
    run = resume(list_runs()[-1])
    assert len(list(folder.iterdir())) == 2
    assert scalars(folder)["round_seconds"] == expected(run, "round_seconds")
    assert len(scalars(folder)["settings/text_summary"]) == 1


@pytest.mark.slow
def test_mlflow_holds_the_run_once_also_where_it_was_stopped_and_resumed(tmp_path):
    from lepton_cli.compose import compose_settings

    uri = f"sqlite:///{tmp_path}/runs/mlflow.db"
    words = ["task=breast_cancer", "sites=3", "rounds=2", "tracker=mlflow"]
    with pytest.raises(Interrupted):
        start(
            compose_settings([*words, "tracker.experiment=Hospitals/trial 1"]),
            StopsAfter(1),
        )
    _, _, found = only_run(uri)
    assert found.info.status == "KILLED"
    assert found.data.tags["lepton.status"] == "stopped"
    run = resume(list_runs()[-1])
    client, experiment, found = only_run(uri)
    assert experiment.name == "Hospitals/trial 1"
    assert found.info.run_name == run.name
    assert found.info.status == "FINISHED"
    assert found.data.tags["lepton.status"] == "finished"
    named = json.loads((run.folder.path / "mlflow.json").read_text())
    assert named == {"uri": uri, "run": found.info.run_id}
    names = {*run.metrics, "epsilon", "failed_sites", "round_seconds"}
    assert set(found.data.metrics) == names
    for name in names:
        assert history(client, found.info.run_id, name) == expected(run, name)
    assert found.data.params["task"] == "breast_cancer"
    assert found.data.params["privacy.epsilon"] == str(run.settings.privacy.epsilon)
    assert found.data.params["data.root"] == "null"
    assert [file.path for file in client.list_artifacts(found.info.run_id)] == ["model_card.md"]
    card = run.folder.path.parent / "mlflow" / found.info.run_id / "artifacts" / "model_card.md"
    assert card.read_text() == (run.folder.path / "model_card.md").read_text()
    # Nothing of a single site, not even its name.
    assert b"site-1" not in (tmp_path / "runs" / "mlflow.db").read_bytes()


def test_a_store_that_fails_ends_no_run_and_says_so_in_one_line(lepton, tmp_path, capsys, caplog):
    (tmp_path / "no_folder").write_text("a file")
    ended = lepton("simulate", *PLAIN, "tracker=tensorboard", "tracker.folder=no_folder")
    assert ended.code == 0
    assert list_runs()[-1].status == "finished"
    (line,) = [record.getMessage() for record in caplog.records if "tracker" in record.name]
    assert line.startswith("TensorBoard failed (")
    assert line.endswith("the run goes on without it.")
    assert "\n" not in line


def test_a_server_that_is_gone_ends_no_run(lepton, caplog, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    ended = lepton("simulate", *PLAIN, "tracker=mlflow", "tracker.uri='http://127.0.0.1:9'")
    assert ended.code == 0
    (line,) = [record.getMessage() for record in caplog.records if "tracker" in record.name]
    assert line.startswith("MLflow failed (")


def test_mlflow_is_imported_before_the_run_has_threads(lepton, monkeypatch):
    threads = []
    load = catalog.import_mlflow
    monkeypatch.setattr(
        catalog, "import_mlflow", lambda: (threads.append(threading.current_thread()), load())
    )
    assert lepton("simulate", *PLAIN, "tracker=mlflow").code == 0
    assert threads == [threading.main_thread()]


@pytest.mark.parametrize("name", ["tensorboard", "mlflow"])
def test_a_package_that_is_missing_is_named_before_anything_starts(lepton, monkeypatch, name):
    monkeypatch.setattr(catalog, "find_spec", lambda name: None)
    for words in (("simulate",), ("simulate", "-m")):
        ended = lepton(*words, *PLAIN, f"tracker={name}")
        assert ended.code == 2
        assert f"pip install 'lepton-fl[{name}]'" in ended.err
    assert list_runs() == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["tracker.folder=x"], "tracker.folder is for tracker=tensorboard"),
        (["tracker=tensorboard", "tracker.uri=x"], "tracker.uri is for tracker=mlflow"),
        (["tracker=mlflow", "tracker.uri='http://me:secret@host/'"], "holds a password"),
        (["tracker=mlflow", "tracker.experiment=../x"], "tracker.experiment"),
        (["tracker=wandb"], "'wandb'"),
    ],
)
def test_settings_that_do_not_fit_are_named(words, said):
    from lepton_cli.compose import compose_settings

    with pytest.raises(SettingsError, match=said.replace(".", r"\.")):
        compose_settings(words)


def test_a_coordinator_takes_no_place_of_a_strangers_choice(setting_values):
    from lepton_common.settings_rules import parse_settings

    def submitted(**changes):
        values = {f"tracker.{name}": value for name, value in changes.items()}
        catalog.check_submitted(parse_settings(setting_values(values)).tracker)

    submitted(name="none")
    submitted(name="mlflow")
    submitted(name="tensorboard")
    for changes in (
        {"name": "mlflow", "uri": "http://evil.example"},
        {"name": "mlflow", "uri": "sqlite:////etc/passwd"},
        {"name": "tensorboard", "folder": "/etc"},
    ):
        with pytest.raises(SettingsError, match="drop tracker"):
            submitted(**changes)


def test_a_missing_package_is_a_fault_of_settings():
    assert issubclass(TrackerMissing, SettingsError)
    assert TrackerMissing.exit_code == 2
