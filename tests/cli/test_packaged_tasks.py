"""Tests of tasks that another installed package brings, in simulation."""

import json
from pathlib import Path

import packaged_task
import pytest

from lepton_cli.compose import compose_settings
from lepton_cli.run import find_run
from lepton_common.datasets.catalog import load_dataset
from lepton_common.errors import DataInvalid, SettingsError
from lepton_common.tasks.catalog import find_task

SOURCE = Path(packaged_task.__file__).with_name("kidney_package") / "kidney_tasks.py"


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    return packaged_task.install(tmp_path_factory.mktemp("kidney"))


@pytest.fixture
def installed(package, monkeypatch):
    monkeypatch.syspath_prepend(str(package))
    packaged_task.forget()
    yield package
    packaged_task.forget()


def test_a_task_takes_less_than_sixty_lines():
    assert len(SOURCE.read_text().splitlines()) < 60


def test_it_is_listed_with_its_package(installed, lepton):
    rows = {row["task"]: row for row in json.loads(lepton("tasks", "--json").out)}
    assert (rows["kidney"]["package"], rows["kidney"]["model"]) == ("kidney_tasks", "logistic")
    assert rows["digits"]["package"] is None


def test_it_trains_by_its_own_recipe_which_a_users_words_go_before(installed, lepton, tmp_path):
    settings = compose_settings(["task=kidney", "rounds=3"])
    assert (settings.task, settings.model, settings.rounds) == ("kidney", "logistic", 3)
    assert settings.train.learning_rate == 1.0
    lepton("simulate", "task=kidney", "sites=3", "privacy.epsilon=5", f"runs={tmp_path}")
    run = find_run("last", str(tmp_path))
    assert run.reached > 0.75  # half of all kidneys fail
    assert run.evidence.totals.units == {"patient"}
    assert all(site.epsilon <= 5 for site in run.evidence.sites.values())


def test_without_the_package_it_is_unknown():
    packaged_task.forget()
    with pytest.raises(SettingsError, match="Unknown task 'kidney'"):
        compose_settings(["task=kidney"])


def test_a_policy_that_names_its_tasks_serves_no_other(installed, lepton, tmp_path):
    words = ("task=kidney", "sites=2", "policy.tasks=[digits]", f"runs={tmp_path}")
    assert lepton("simulate", *words).code == 4


@pytest.mark.parametrize("broken", ["task = 3", "raise ValueError", "import no_such_module"])
def test_a_package_that_gives_no_task_is_named(package, installed, broken, monkeypatch, tmp_path):
    (tmp_path / "kidney_tasks.py").write_text(broken)
    monkeypatch.delitem(__import__("sys").modules, "kidney_tasks", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    packaged_task.forget()
    with pytest.raises(SettingsError, match="mend"):
        find_task("kidney")


def test_a_data_set_that_is_none_is_named(installed, monkeypatch):
    import kidney_tasks

    monkeypatch.setattr(kidney_tasks, "load", lambda root, prepare: None)
    packaged_task.forget()
    load_dataset.cache_clear()
    with pytest.raises(DataInvalid, match="gives no Dataset"):
        load_dataset("kidney", None, "public_ranges")
