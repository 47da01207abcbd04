"""What goes wrong with a third-party app: one sentence, a name, and the right exit code."""

import json

import pytest

from lepton_cli.apps.record import AppRun


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["nodes=0"], "nodes=0: expected a whole number of at least 1."),
        (["nodes=ten"], "nodes=ten: expected a whole number of at least 1."),
        (["engine.workers=-1"], "engine.workers=-1: expected a whole number of at least 0."),
        (["engine.threads_per_site=0"], "engine.threads_per_site=0: expected a whole number"),
        (["engine.worker=2"], "Unknown setting 'engine.worker' of a Flower app; did you mean"),
        (["task=digits"], "'task' does not apply to a Flower app: with app= there are nodes,"),
        (["privacy.epsilon=1"], "'privacy.epsilon' does not apply to a Flower app"),
        (["resume=last"], "'resume' does not apply to a Flower app"),
        (["nodes"], "Expected name=value, got 'nodes'."),
        (["-m", "nodes=2,3"], "A sweep takes no app="),
        (["config.num-rounds=5"], "The app has no 'num-rounds' in [tool.flwr.app.config]; did you "
         "mean 'num-server-rounds'?"),
        (["config.learning-rate=fast"], "config.learning-rate=fast: expected a TOML value"),
        (["config.learning-rate=[1, 2]"], "config.learning-rate=[1, 2]: a text of several words"),
        (["config.learning-rate=[1,2]"], "Flower's configs hold numbers, texts, true and false"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_settings_that_cannot_be_are_refused(run_app, words, sentence):
    ended = run_app("numpy_fedavg", *words)
    assert ended.code == 2
    assert sentence in ended.err
    assert "Traceback" not in ended.err
    assert not ended.run.exists()


def test_all_faults_are_told_at_once(run_app):
    ended = run_app("numpy_fedavg", "nodes=0", "task=digits", "--json")
    assert ended.code == 2
    assert len(json.loads(ended.out)["faults"]) == 2


def _without(app, line):
    file = app / "pyproject.toml"
    file.write_text("".join(x for x in file.read_text().splitlines(True) if line not in x))


def _replaced(app, old, new):
    file = app / "pyproject.toml"
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))


@pytest.mark.parametrize(
    ("spoil", "name", "sentence"),
    [
        (lambda app: (app / "pyproject.toml").unlink(), "AppMissing", "Expected pyproject.toml in"),
        (lambda app: _without(app, "clientapp ="), "AppInvalid",
         'Property "clientapp" missing in [tool.flwr.app.components]'),
        (lambda app: _replaced(app, "[tool.flwr.app.components]", "[tool.flwr.app.parts]"),
         "AppInvalid", "Missing [tool.flwr.app.components] section"),
        (lambda app: _replaced(app, "serverapp =", "agentapp ="), "AppInvalid",
         "names an AgentApp"),
        (lambda app: _replaced(app, "[project]", "[project"), "AppInvalid", "Flower does not take"),
        (lambda app: _replaced(app, "rows = 30", "rows = [30]"), "AppInvalid", "for key rows"),
        (lambda app: _replaced(app, "numpy_fedavg.client_app", "numpy_fedavg.nowhere"),
         "AppInvalid", "Cannot import 'numpy_fedavg.nowhere', which pyproject.toml names"),
        (lambda app: _replaced(app, "client_app:app", "client_app:client"), "AppInvalid",
         "Unable to load attribute client from module numpy_fedavg.client_app"),
        (lambda app: _replaced(app, "server_app:app", "client_app:app"), "AppInvalid",
         "'numpy_fedavg.client_app:app' should be a ServerApp of Flower's, and is a ClientApp."),
        (lambda app: _replaced(app, "server_app:app", "server_app"), "AppInvalid",
         "Missing attribute in numpy_fedavg.server_app"),
    ],
)  # fmt: skip
def test_an_app_that_cannot_be_is_refused_in_one_sentence(
    lepton, copied, tmp_path, spoil, name, sentence
):
    app = copied("numpy_fedavg")
    spoil(app)
    ended = lepton("simulate", f"app={app}", f"runs={tmp_path / 'runs'}")
    assert ended.code == 2
    last = ended.err.splitlines()[-1]
    assert last.startswith(f"{name}: ")
    assert sentence in last
    assert "Traceback" not in ended.err
    assert list((tmp_path / "runs").glob("*")) == []


def test_a_folder_that_is_not_there_is_named(lepton):
    ended = lepton("simulate", "app=nowhere")
    assert ended.code == 2
    assert ended.err.startswith("AppMissing: There is no folder ")
    assert "app= is empty" in lepton("simulate", "app=").err


@pytest.mark.parametrize(
    ("code", "sentence", "traced"),
    [
        ("import surely_not_here", "No module named 'surely_not_here'; install what", False),
        ("1 / 0", "its module raised ZeroDivisionError: division by zero.", True),
        ("raise SystemExit(4)", "cannot be imported: its module raised SystemExit: 4.", True),
        ("def f(:", "cannot be imported: its module raised SyntaxError", True),
    ],
)  # fmt: skip
def test_a_module_that_raises_is_told_from_one_that_is_not_there(
    lepton, copied, tmp_path, code, sentence, traced
):
    app = copied("numpy_fedavg")
    (app / "numpy_fedavg" / "task.py").write_text(f"{code}\n")
    ended = lepton("simulate", f"app={app}", f"runs={tmp_path / 'runs'}")
    assert ended.code == 2
    assert sentence in ended.err.splitlines()[-1]
    assert ("Traceback" in ended.err) == traced
    assert list((tmp_path / "runs").glob("*")) == []


@pytest.mark.parametrize(
    ("how", "code", "sentence"),
    [
        ("raise", 5, "The ServerApp raised LookupError: the model was not found. What it printed:"),
        ("exit", 5, "The ServerApp ended its process with 7. What it printed:"),
        ("leave", 0, ""),
        ("interrupt", 130, "Interrupted: Stopped by Ctrl-C."),
    ],
)
def test_how_a_serverapp_ends_is_how_the_command_ends(run_app, lepton, how, code, sentence):
    ended = run_app("failing", "nodes=9", f"config.server-fails={how}")
    assert ended.code == code
    assert sentence in ended.err
    run = AppRun(ended.run)
    assert run.status == {0: "finished", 5: "failed", 130: "stopped"}[code]
    if how == "raise":
        assert 'raise LookupError("the model was not found")' in ended.err
        assert "lepton_cli/apps/running.py" not in ended.err
        assert "AppFailed: The ServerApp raised LookupError" in run.report.read_text()
        # What its strategy had returned by then is kept.
        assert list(run.results[0]["train_metrics_clientapp"]) == [1, 2]
    assert run.exchanges[0].sent == 9
    assert run.status in lepton("runs", "--runs", str(ended.run.parent)).out


def test_json_names_what_failed(run_app):
    ended = run_app("failing", "nodes=9", "config.server-fails=raise", "--json")
    assert ended.code == 5
    assert json.loads(ended.out)["error"] == "AppFailed"
