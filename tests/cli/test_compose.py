"""Configuration: every file composes, every fault is named, sweeps expand."""

import pytest

from lepton_cli.compose import as_overrides, compose_settings, expand_sweep
from lepton_cli.groups import groups
from lepton_common.errors import SettingsError
from lepton_common.settings import LINEAR, ROBUST
from lepton_common.tasks.catalog import TASKS, find_task

EVERY_CHOICE = [
    f"{group}={choice}"
    for group, choices in groups().items()
    if group != "recipe"
    for choice in choices
    if choice not in ("wheel", "packaged")  # which need an installed package
]


def faults(*overrides):
    with pytest.raises(SettingsError) as error:
        compose_settings(list(overrides))
    return error.value.faults


@pytest.mark.parametrize("choice", EVERY_CHOICE)
def test_every_choice_of_every_group_composes(choice):
    big = ["sites=7"] if choice.startswith("strategy=") else []
    plain = ["secagg=none"] if choice.removeprefix("strategy=") in ROBUST else []
    if choice.removeprefix("task=") in TASKS and not find_task(choice[5:]).objective.apart:
        plain = ["privacy=none"]
    table = ["task=adult"] if choice == "model=boosted_trees" else []  # the default has ten classes
    compose_settings([choice, *big, *plain, *table])


@pytest.mark.parametrize("task", sorted(TASKS))
@pytest.mark.parametrize("privacy", ["none", "record"])
def test_every_task_composes_with_and_without_privacy(task, privacy):
    if privacy == "record" and not find_task(task).objective.apart:
        assert "compares records" in faults(f"task={task}", f"privacy={privacy}")[0]
        return
    settings = compose_settings([f"task={task}", f"privacy={privacy}"])
    assert settings.task == task
    assert settings.private == (privacy == "record")


def test_recipes_belong_to_a_task_and_a_mode():
    for recipe in groups()["recipe"]:
        task, _, mode = recipe.rpartition("_")
        assert task in TASKS
        assert mode in groups()["privacy"]


def test_the_groups_offer_what_the_catalogs_hold():
    assert set(groups()["strategy"]) == set(LINEAR + ROBUST)
    assert set(groups()["task"]) - {"packaged"} == set(TASKS)


def test_no_choice_is_a_word_that_yaml_takes_for_a_boolean():
    words = {choice.lower() for choices in groups().values() for choice in choices}
    assert not words & {"on", "off", "yes", "no", "true", "false", "y", "n"}


def test_all_faults_are_reported_at_once_each_with_the_nearest_name():
    found = faults(
        "tsk=digits",
        "model=cn_small",
        "privacy.epsilon=-1",
        "trian.batch_size=3",
        "federation.quorum=2",
    )
    assert len(found) == 5
    assert any("'tsk'" in fault and "'task'" in fault for fault in found)
    assert any("'cn_small'" in fault and "'cnn_small'" in fault for fault in found)
    assert any("'trian.batch_size'" in fault and "'train.batch_size'" in fault for fault in found)
    assert any(fault.startswith("privacy.epsilon=-1") for fault in found)
    assert any(fault.startswith("federation.quorum=2") for fault in found)


@pytest.mark.parametrize(
    "override",
    ["digits", "+extra=1", "~seed", "data={root: x}", "seed=1=2=", "data.root=[", "a.b.c=1"],
)
def test_what_is_no_setting_is_a_named_fault(override):
    assert faults(override)


def test_a_sweep_is_the_product_of_its_choices():
    assert expand_sweep(["seed=1,2", "privacy.epsilon=range(1,3)", "task=digits"]) == [
        ["seed=1", "privacy.epsilon=1", "task=digits"],
        ["seed=1", "privacy.epsilon=2", "task=digits"],
        ["seed=2", "privacy.epsilon=1", "task=digits"],
        ["seed=2", "privacy.epsilon=2", "task=digits"],
    ]


def test_keywords_become_overrides():
    keywords = {"task": "digits", "data": {"root": None, "alpha": 0.5}, "baselines": True}
    overrides = as_overrides(keywords)
    assert overrides == ["task=digits", "data.root=null", "data.alpha=0.5", "baselines=True"]
    assert compose_settings(overrides).baselines is True


def test_paths_with_odd_characters_survive():
    for path in ("/a b/c", "/a=b", "C:\\data", "/ü,x"):
        settings = compose_settings(as_overrides({"data": {"root": path}}))
        assert settings.data.root == path


def test_a_model_is_listed_layer_by_layer():
    listed = compose_settings(["task=digits", "model=layers", "layers=[conv8k3p1,pool2,relu]"])
    assert listed.model == "layers.conv8k3p1-pool2-relu"
    assert compose_settings(["task=digits", "model=layers"]).model == "layers.linear64-tanh"
    with pytest.raises(SettingsError, match="'lstm8' is no layer"):
        compose_settings(["task=digits", "model=layers", "layers=[lstm8]"])
    with pytest.raises(SettingsError, match="for model=layers"):
        compose_settings(["task=digits", "model=cnn", "layers=[relu]"])
