"""From words on a command line to checked settings, with all faults in one report."""

import itertools
import re
from collections.abc import Mapping
from typing import Any

from hydra import compose, initialize_config_module
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lepton_cli.groups import groups
from lepton_cli.starting import begin_from
from lepton_common.errors import SettingsError
from lepton_common.extensions import TASKS, extensions
from lepton_common.models.bases import ALL
from lepton_common.models.layers import PREFIX
from lepton_common.models.packaged import named_here
from lepton_common.models.tree_form import FAMILY, TreeForm
from lepton_common.names import did_you_mean, unknown
from lepton_common.settings import Settings
from lepton_common.settings_rules import parse_settings
from lepton_common.strict import field_names
from lepton_common.tasks.packaged import packaged_task

_VERSION_BASE = "1.3"
_PACKAGED = "packaged"  # the choice that stands for any task of a package
_PLAIN_WORD = re.compile(r"[A-Za-z0-9_./-]+")


def compose_values(overrides: list[str]) -> dict[str, Any]:
    """Returns the composed configuration as plain values, unchecked.

    Raises:
        SettingsError: a group, choice or setting does not exist, or cannot be parsed.
    """
    faults = [fault for override in overrides for fault in _name_faults(override)]
    if faults:
        raise SettingsError(faults)
    task, overrides = _packaged(overrides)
    try:
        with initialize_config_module("lepton_conf", version_base=_VERSION_BASE):
            config = compose("config", overrides=overrides)
        values = OmegaConf.to_container(config, resolve=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise SettingsError(f"Cannot compose the configuration: {error}") from error
    assert isinstance(values, dict)
    values.pop("experiment", None)
    values["task"] = task or values["task"]
    if layers := values.pop("layers", None):
        if values["model"] != "layers" or not isinstance(layers, list):
            raise SettingsError("layers is a list, such as [linear64,relu], for model=layers.")
        values["model"] = PREFIX + "-".join(map(str, layers))
    if model := values.pop("wheel", None):
        if values["model"] != "wheel":
            raise SettingsError("wheel is the model of a package, for model=wheel.")
        values["model"] = named_here(str(model))
    if values["model"] == FAMILY:
        values["model"] = _trees_named(values)
    start, learn = values.pop("start", None), values.pop("learn", None)
    if start is not None:
        values["model"] = begin_from(str(start), str(learn), str(values["model"]), values["runs"])
    elif learn != ALL:
        raise SettingsError(f"learn={learn} is for a model that begins from another: set start.")
    return {str(name): value for name, value in values.items()}


def _trees_named(values: Mapping[Any, Any]) -> str:
    """Returns what a run calls its trees: as many as its rounds grow levels of."""
    depth, bins, rounds = values["trees"]["depth"], values["trees"]["bins"], values["rounds"]
    if not all(isinstance(number, int) and number > 0 for number in (depth, bins, rounds)):
        return FAMILY  # which is refused with the number that is none
    return TreeForm(-(-rounds // depth), depth, bins).name


def _packaged(overrides: list[str]) -> tuple[str | None, list[str]]:
    """Returns the task of a package that is asked for, and what stands for it in our groups."""
    said = [override.partition("=")[2] for override in overrides if override.startswith("task=")]
    if not said or said[-1] in groups()["task"]:
        return None, overrides
    others = [override for override in overrides if not override.startswith("task=")]
    return said[-1], [f"task={_PACKAGED}", *packaged_task(said[-1]).settings, *others]


def compose_settings(overrides: list[str]) -> Settings:
    """Returns checked settings.

    Raises:
        SettingsError: with every fault: unknown names, wrong values, contradictions.
    """
    faults = [fault for override in overrides for fault in _name_faults(override)]
    known = [override for override in overrides if not _name_faults(override)]
    try:
        settings = parse_settings(compose_values(known))
    except SettingsError as error:
        raise SettingsError(faults + error.faults) from None
    if faults:
        raise SettingsError(faults)
    return settings


def expand_sweep(overrides: list[str]) -> list[list[str]]:
    """Returns the override lists that a sweep stands for: ``seed=1,2`` becomes two.

    Takes Hydra's ``a,b``, ``choice(a,b)``, ``range(1,10)``, ``sort`` and ``shuffle`` of them, and
    for groups ``glob(cnn*)``.

    Raises:
        SettingsError: an override cannot be parsed, or stands for no list of values.
    """
    try:
        parsed = OverridesParser.create().parse_overrides(overrides)
    except HydraException as error:
        raise SettingsError(f"Cannot read the overrides: {error}") from error
    choices = []
    for text, override in zip(overrides, parsed, strict=True):
        if override.is_sweep_override():
            choices.append([f"{override.get_key_element()}={v}" for v in _values(override)])
        else:
            choices.append([text])
    return [list(combination) for combination in itertools.product(*choices)]


def _values(override: Override) -> list[str]:
    name = override.get_key_element()
    values: object = override.value()
    if isinstance(values, Glob):
        if name not in groups():
            raise SettingsError(f"{name}: glob(...) is for groups: {', '.join(groups())}.")
        if found := values.filter(groups()[name]):
            return list(found)
        raise SettingsError(f"No {name} is like '{override.input_line}'; choose from "
                            f"{', '.join(groups()[name])}.")  # fmt: skip
    if not override.is_discrete_sweep():
        raise SettingsError(f"'{override.input_line}' is no list of values: use range or choice.")
    return list(override.sweep_string_iterator())


def as_overrides(settings: Mapping[str, object], prefix: str = "") -> list[str]:
    """Returns keyword settings as overrides; nested dictionaries become dotted names."""
    overrides = []
    for name, value in settings.items():
        if isinstance(value, Mapping):
            overrides += as_overrides(value, f"{prefix}{name}.")
        elif value is None:
            overrides.append(f"{prefix}{name}=null")
        elif isinstance(value, str) and not _PLAIN_WORD.fullmatch(value):
            quoted = value.replace("'", "\\'")
            overrides.append(f"{prefix}{name}='{quoted}'")
        else:
            overrides.append(f"{prefix}{name}={value}")
    return overrides


def _name_faults(override: str) -> list[str]:
    name, equals, value = override.partition("=")
    if not equals:
        return [f"Expected name=value, got '{override}'{did_you_mean(name, groups())}"]
    if name in groups():
        known = groups()[name]
        if name == "task":
            known = sorted({*known, *extensions(TASKS)} - {_PACKAGED})
        return [] if value in known else [unknown(name, value, known)]
    names = [
        "layers",
        "wheel",
        "start",
        "learn",
        *(known for known in field_names(Settings) if known not in groups()),
    ]
    if name in names and not hasattr(Settings.__annotations__.get(name), "__pydantic_fields__"):
        return []
    return [f"Unknown setting '{name}'{did_you_mean(name, [*names, *groups()]) or '.'}"]
