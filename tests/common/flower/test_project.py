"""Contract tests: how Flower reads an app's pyproject.toml and loads its components."""

import sys

import pytest
from flwr.clientapp import ClientApp
from flwr.common import config
from flwr.supercore import object_ref

from lepton_common.errors import AppInvalid, AppMissing
from lepton_common.flower.project import config_value, load_client_app, read_project

_PYPROJECT = """
[project]
name = "some-app"
version = "1.2"

[tool.flwr.app]
publisher = "someone"

[tool.flwr.app.components]
serverapp = "project_under_test:server"
clientapp = "project_under_test:client"

[tool.flwr.app.config]
lr = 0.1
name = "x"

[tool.flwr.app.config.data.deep]
rows = 3
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "pyproject.toml").write_text(_PYPROJECT)
    (tmp_path / "project_under_test.py").write_text(
        "from flwr.clientapp import ClientApp\nclient = ClientApp()\nother = 1\n"
    )
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop("project_under_test", None)


def test_flower_still_has_these_functions():
    for module, names in (
        (config, ("get_project_config", "flatten_dict", "parse_config_args")),
        (object_ref, ("load_app",)),
    ):
        for name in names:
            assert callable(getattr(module, name, None)), (
                f"Flower renamed {module.__name__}.{name}: see flower/project.py"
            )


def test_a_project_is_read_as_flower_reads_it(folder):
    project = read_project(folder / ".")
    assert project.folder == folder
    assert (project.name, project.version) == ("some-app", "1.2")
    assert project.serverapp == "project_under_test:server"
    assert project.config == {"lr": 0.1, "name": "x", "data.deep.rows": 3}
    assert project.config == config.get_fused_config_from_dir(folder, {})


def test_what_is_no_project_is_named(folder, tmp_path):
    with pytest.raises(AppMissing, match="There is no folder"):
        read_project(tmp_path / "nowhere")
    with pytest.raises(AppMissing, match="There is no folder"):
        read_project(folder / "pyproject.toml")
    (folder / "pyproject.toml").write_text("[project]\nname = 'x'\n")
    with pytest.raises(AppInvalid, match=r'"version" missing in \[project\] - Missing \[tool'):
        read_project(folder)


@pytest.mark.parametrize(
    ("text", "value"),
    [("5", 5), ("0.5", 0.5), ("1e-3", 1e-3), ("true", True), ("'a b'", "a b"), ('"5"', "5"),
     ("-inf", float("-inf"))],
)  # fmt: skip
def test_values_are_flowers(text, value):
    found = config_value(text)
    assert found == value
    assert type(found) is type(value)
    assert config.parse_config_args([f"x={text}"]) == {"x": value}


@pytest.mark.parametrize("text", ["word", "two words", "[1]", "{a=1}", "", "1979-05-27", "5 y=6"])
def test_what_is_no_value_is_refused(text):
    with pytest.raises(ValueError, match=r"expected a TOML value|quotes|numbers, texts"):
        config_value(text)


def test_a_component_is_loaded_from_the_front_of_the_path(folder):
    sys.path.append(str(folder))
    assert isinstance(load_client_app("project_under_test:client", folder), ClientApp)
    assert sys.path[0] == str(folder)
    assert sys.path.count(str(folder)) == 1
    with pytest.raises(AppInvalid, match=r"'project_under_test:other' should be a ClientApp"):
        load_client_app("project_under_test:other", folder)
