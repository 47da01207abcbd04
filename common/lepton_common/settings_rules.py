"""What goes together in the configuration of a run; every fault comes in one report."""

import re
from typing import Any

from lepton_common.datasets.preparation import PER_RECORD
from lepton_common.device import DEVICE
from lepton_common.errors import SettingsError
from lepton_common.models.catalog import model_fault
from lepton_common.models.tree_form import form_of
from lepton_common.names import unknown
from lepton_common.secagg.ring import Ring
from lepton_common.secagg.spec import default_colluders, least_survivors
from lepton_common.settings import (
    LINEAR,
    MOST_LISTED,
    ROBUST,
    SecAggSettings,
    Settings,
    least_updates,
)
from lepton_common.strict import parse
from lepton_common.tasks.augmentation import AsTheyAre
from lepton_common.tasks.catalog import TASKS, task_names
from lepton_common.tasks.derivatives import derivatives_of


def parse_settings(values: Any) -> Settings:  # noqa: ANN401
    """Returns the settings in plain nested values.

    Raises:
        SettingsError: with every fault found, one sentence each.
    """
    settings, faults = parse(Settings, values)
    if settings is not None:
        faults = [fault for rules in _RULES for fault, holds in rules(settings).items() if holds]
    if faults or settings is None:
        raise SettingsError(faults)
    return settings


def _learning_rules(settings: Settings) -> dict[str, bool]:
    """Returns possible faults of task, model and training, and whether each is there."""
    mode = settings.privacy.mode
    train = settings.train
    data = settings.data
    by_step = _by_step(settings)
    task = TASKS.get(settings.task)  # of a package's, what is to be said is said where it trains
    return {
        unknown("task", settings.task, task_names()): (settings.task not in task_names()),
        model_fault(settings.model) or "": model_fault(settings.model) is not None,
        f"The loss of task={settings.task} compares records with one another, which no privacy by "
        "record can bound: choose a task that learns by hazard, or privacy=site or none.": (
            by_step and task is not None and not task.objective.apart
        ),
        "Set exactly one of train.local_epochs and train.local_steps, the other to null.": (
            (train.local_epochs is None) == (train.local_steps is None)
        ),
        f"train.device={train.device!r}: choose auto, cpu, cuda, cuda:N or mps.": (
            re.fullmatch(DEVICE, train.device) is None
        ),
        "train.augmentations averages the gradients of private steps over views of each record: "
        "set it to 1, or choose privacy=record or distributed, and a task whose records may vary, "
        "as they are (data.prepare=public_ranges).": train.augmentations > 1
        and (
            not by_step
            or data.prepare != "public_ranges"
            or (task is not None and task.augmentation == AsTheyAre())
        ),
        f"train.mixup makes one record of two people's, so privacy={mode} would bound nobody's "
        "part: set it to 0, or choose privacy=site or none.": train.mixup > 0 and by_step,
        f"train.mixup has no meaning for task={settings.task}, whose records are tokens or whose "
        "labels cannot be mixed: set it to 0.": (
            train.mixup > 0 and task is not None and not task.mixes
        ),
    }


def _data_rules(settings: Settings) -> dict[str, bool]:
    """Returns possible faults of the data, and whether each is there."""
    data = settings.data
    return {
        "data.partition=drawn needs data.records_per_site, the number that each site draws.": (
            data.partition == "drawn" and data.records_per_site is None
        ),
        "data.records_per_site is for data.partition=drawn: drop it, or choose that.": (
            data.partition != "drawn" and data.records_per_site is not None
        ),
        f"data.records_per_site={data.records_per_site} is below data.min_records="
        f"{data.min_records}: raise it, or lower that.": (
            (data.records_per_site or data.min_records) < data.min_records
        ),
    }


def _sites_rules(settings: Settings) -> dict[str, bool]:
    """Returns possible faults of how many sites there are, and whether each is there."""
    return {
        f"federation.cohort={settings.cohort} exceeds sites={settings.sites}.": (
            settings.cohort > settings.sites
        ),
        f"baselines=true trains a model at each site, which is for {MOST_LISTED:,} at most, not "
        f"{settings.sites:,}: drop it, or lower sites.": settings.baselines and settings.crowded,
    }


def _engine_rules(settings: Settings) -> dict[str, bool]:
    """Returns possible faults of the engine, and whether each is there."""
    train = settings.train
    engine = settings.engine
    return {
        f"engine.address={engine.address} is a Ray cluster's, but engine={engine.name}: choose "
        "engine=ray or drop it.": engine.address is not None and engine.name != "ray",
        f"engine.address={engine.address}: write host:port, or auto.": (
            engine.address is not None
            and re.fullmatch(r"auto|[^\s:/]+:[0-9]{1,5}", engine.address) is None
        ),
        f"engine.serialise=true is for engine=inprocess; with engine={engine.name} every message "
        "is serialised: drop it.": engine.serialise and engine.name != "inprocess",
        f"train.device={train.device} names one of several GPUs, but each worker of engine="
        f"{engine.name} sees only its own: choose cuda or auto.": (
            train.device.startswith("cuda:") and engine.name != "inprocess"
        ),
    }


def _privacy_rules(settings: Settings) -> dict[str, bool]:
    """Returns possible faults of privacy, and whether each is there."""
    privacy = settings.privacy
    mode = settings.privacy.mode
    train = settings.train
    data = settings.data
    secagg = settings.secagg
    by_step = _by_step(settings)
    return {
        "privacy.epsilon is set but privacy=none; choose privacy=record or drop it.": (
            privacy.mode == "none" and privacy.epsilon is not None
        ),
        f"privacy={mode} needs privacy.epsilon, the target over the whole run.": (
            settings.private and privacy.epsilon is None
        ),
        "An epsilon without a delta means nothing: set privacy.delta (1e-5 is the default).": (
            settings.private and privacy.delta is None
        ),
        f"privacy={mode} counts steps: set train.local_steps and train.local_epochs=null.": (
            by_step and train.local_steps is None
        ),
        f"data.prepare={data.prepare} uses private statistics that privacy={mode} does "
        "not charge for: choose data.prepare=public_ranges.": (
            settings.private and data.prepare not in PER_RECORD
        ),
        f"train.precision=bfloat16 is not offered with privacy={mode}: choose float32.": (
            by_step and train.precision == "bfloat16"
        ),
        f"privacy={mode} shares noise inside secure aggregation: choose secagg=sa1, or "
        "privacy=record.": settings.shares_noise and not settings.secure,
        f"privacy={mode} sums whole numbers of 32 bits: set secagg.width=32, and drop "
        "secagg.compression, secagg.rotate, secagg.rounding and secagg.groups.": (
            settings.shares_noise and (secagg.width != 32 or secagg.shapes_sums)
        ),
        "privacy=distributed is one private step a round: set train.local_steps=1.": (
            mode == "distributed" and train.local_steps not in (None, 1)
        ),
        "privacy=distributed steps at the server: set train.optimizer=sgd, train.momentum=0 and "
        "train.weight_decay=0; strategy=fedavgm, fedadam and fedyogi have momentum.": (
            mode == "distributed"
            and (train.optimizer, train.momentum, train.weight_decay) != ("sgd", 0, 0)
        ),
        "privacy=distributed divides by the sites' public sizes: set federation.weights="
        "public_size.": mode == "distributed" and settings.federation.weights != "public_size",
        "privacy=site protects all sites alike: set federation.weights=equal.": (
            mode == "site" and settings.federation.weights != "equal"
        ),
        "privacy.clip_quantile is for privacy=site: drop it, or choose that.": (
            mode != "site" and privacy.clip_quantile is not None
        ),
        "privacy=site has every site in each round that asks it: set privacy.sample_rate=1.": (
            mode == "site" and privacy.sample_rate != 1
        ),
    }


def _strategy_rules(settings: Settings) -> dict[str, bool]:
    """Returns possible faults of the strategy, and whether each is there."""
    strategy = settings.strategy
    robust = settings.strategy.name in ROBUST
    least = least_updates(settings.strategy)
    groups = settings.secagg.groups
    return {
        unknown("strategy", strategy.name, LINEAR + ROBUST): (strategy.name not in LINEAR + ROBUST),
        f"strategy={strategy.name} as set needs a cohort of at least {least}, not "
        f"{settings.cohort}.": settings.cohort < least,
        f"strategy={strategy.name} as set needs at least {least} sums to choose from, not "
        f"{groups}: raise secagg.groups.": (
            robust and settings.secure and 1 < groups < least <= settings.cohort
        ),
        f"strategy={strategy.name} treats all sites alike: set federation.weights=equal.": (
            robust and settings.federation.weights != "equal"
        ),
        f"strategy={strategy.name} needs single updates, which secure aggregation hides: set "
        f"secagg.groups to run it over sums of groups, choose a linear strategy "
        f"({', '.join(LINEAR)}), or secagg=none where the sites allow it.": (
            robust and settings.secure and groups == 1
        ),
        f"strategy={strategy.name} is linear, so secagg.groups={groups} would only show the server "
        "smaller sums: set secagg.groups=1.": not robust and settings.secure and groups > 1,
        f"strategy.beta={strategy.beta} trims everything: keep it below 0.5.": (
            strategy.beta >= 0.5
        ),
        "strategy.average_decay must be below 1.": strategy.average_decay >= 1,
        "strategy.beta_1 and strategy.beta_2 must be below 1.": (
            strategy.beta_1 >= 1 or strategy.beta_2 >= 1
        ),
    }


def _secagg_rules(settings: Settings) -> dict[str, bool]:
    """Returns possible faults of secure aggregation, and whether each is there."""
    mode = settings.privacy.mode
    groups = settings.secagg.groups
    survivors = _fewest_in_a_sum(settings)
    return {
        f"secagg=sa1 needs a roster of all sites at each site, which lists {MOST_LISTED:,} at "
        f"most, not {settings.sites:,}: lower sites, or choose secagg=none where the sites allow "
        "it.": settings.secure and settings.crowded,
        f"secagg.groups={groups} makes groups of {settings.cohort // groups} of {settings.cohort} "
        f"sites; with {settings.colluders} colluding sites each group needs "
        f"{settings.colluders + 2}: lower secagg.groups, raise federation.cohort or sites, or "
        "lower secagg.colluders if that is safe to assume.": (
            settings.secure
            and groups > 1
            and settings.cohort // groups < settings.colluders + 2 <= settings.cohort
        ),
        f"secagg=sa1 tolerates {settings.colluders} colluding sites and needs a cohort of two "
        f"more, not {settings.cohort}: raise federation.cohort or sites, lower secagg.colluders "
        "if that is safe to assume, or choose secagg=none where the sites allow it.": (
            settings.secure and settings.cohort < settings.colluders + 2 and not settings.crowded
        ),
        f"secagg.colluders={settings.colluders} is less than policy.colluders="
        f"{settings.policy.colluders}, so every site would refuse: raise it.": (
            settings.secure and settings.colluders < _policy_colluders(settings)
        ),
        f"policy.min_cohort={settings.policy.min_cohort} is more than the {survivors} sites that a "
        "sum may have, so every site would refuse: lower it, raise federation.quorum, or set "
        "secagg.groups lower.": settings.secure and survivors < settings.policy.min_cohort,
        "secagg=none leaves updates as they are: drop secagg.compression, secagg.rotate, "
        "secagg.rounding and secagg.groups, or choose secagg=sa1.": (
            not settings.secure and settings.secagg.shapes_sums
        ),
        f"secagg.clip={settings.secagg.clip} leaves no fraction bits in a ring of "
        f"{settings.secagg.width} bits for {settings.cohort} sites: lower it, or raise "
        "secagg.width.": settings.secure and not _ring_fits(settings),
        "secagg.compression=top_k would tell which weights a site's records move, and the sites' "
        "positions would not line up in a sum: choose random_coordinates.": (
            settings.secagg.compression == "top_k"
        ),
        "secagg.rounding=stochastic is for secagg.width=16; wider rings need none.": (
            settings.secagg.rounding == "stochastic" and settings.secagg.width != 16
        ),
        "federation.weights=masked_size needs secure aggregation, which hides them: choose "
        "secagg=sa1, or federation.weights=public_size.": (
            settings.federation.weights == "masked_size" and not settings.secure
        ),
        f"federation.weights=masked_size depends on private records, which privacy={mode} does not "
        "charge for: choose public_size or equal.": (
            settings.federation.weights == "masked_size" and settings.private
        ),
    }


def _tracker_rules(settings: Settings) -> dict[str, bool]:
    """Returns possible faults of the tracker, and whether each is there."""
    tracker = settings.tracker
    return {
        "tracker.folder is for tracker=tensorboard: drop it, or choose that.": (
            tracker.name != "tensorboard" and tracker.folder is not None
        ),
        "tracker.uri is for tracker=mlflow: drop it, or choose that.": (
            tracker.name != "mlflow" and tracker.uri is not None
        ),
        "tracker.uri holds a password, which every report would show: set MLflow's own "
        "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD.": (
            re.search(r"://[^/]*:[^/]*@", tracker.uri or "") is not None
        ),
    }


def _statistics_rules(settings: Settings) -> dict[str, bool]:
    """Returns what does not go together where statistics are asked."""
    privacy, asked = settings.privacy, settings.statistics.asked
    secure_mode = "distributed" if settings.secure else "record"
    evaluates = settings.statistics.evaluates is not None
    plain = evaluates and not settings.private
    return {
        f"Statistics leave with noise on each person's part: choose privacy={secure_mode} with "
        f"secagg={settings.secagg.mode}.": asked and privacy.mode != secure_mode and not plain,
        "An evaluation without privacy is a sum as it is: set federation.weights=equal, "
        "secagg.width=32, and drop secagg.compression, secagg.rotate, secagg.rounding and "
        "secagg.groups.": asked
        and plain
        and (settings.federation.weights == "masked_size" or _shaped(settings.secagg)),
        "statistics.evaluates is set by 'lepton evaluate': drop it.": evaluates and not asked,
        "Statistics are one sum over all people: set rounds=1, train.local_steps=1, "
        "privacy.sample_rate=1 and engine.vectorize=none.": (
            asked
            and (settings.rounds, settings.train.local_steps, privacy.sample_rate) != (1, 1, 1)
        )
        or (asked and settings.engine.vectorize != "none"),
    }


def _tree_rules(settings: Settings) -> dict[str, bool]:
    """Returns what does not go together where trees are grown."""
    form, trees, strategy = form_of(settings.model), settings.trees, settings.strategy
    if form is None or settings.statistics.asked:
        return {}
    task, by_step = TASKS.get(settings.task), _by_step(settings)
    model, rounds = f"model={settings.model}", settings.rounds
    return {
        f"{model} has room for {form.levels} rounds, one a level, not {rounds}: lower rounds.": (
            rounds > form.levels
        ),
        f"{model} is of another form than trees.depth={trees.depth} and trees.bins={trees.bins}.": (
            (form.depth, form.bins) != (trees.depth, trees.bins)
        ),
        f"No trees are grown for task={settings.task}: choose one of two classes and one output, "
        "or of a number.": task is not None and derivatives_of(task.objective) is None,
        f"model=boosted_trees is grown from sums, not averaged: drop strategy={strategy.name} and "
        "strategy.average_decay.": strategy.name != "fedavg" or strategy.average_decay > 0,
        "model=boosted_trees sums over people, who count alike: drop secagg.compression, "
        "secagg.rotate, secagg.rounding, secagg.groups and federation.weights=masked_size.": (
            (settings.secure and settings.secagg.shapes_sums)
            or settings.federation.weights == "masked_size"
        ),
        "model=boosted_trees protects people, not sites: choose privacy=record or distributed.": (
            settings.privacy.mode == "site"
        ),
        "model=boosted_trees is one private sum a round: set train.local_steps=1.": (
            by_step and settings.train.local_steps not in (None, 1)
        ),
        "model=boosted_trees looks at records as they are: set data.prepare=public_ranges and "
        "train.augmentations=1.": (
            settings.data.prepare != "public_ranges" or settings.train.augmentations > 1
        ),
    }


def _by_step(settings: Settings) -> bool:
    return settings.privacy.mode in ("record", "distributed")


def _ring_fits(settings: Settings) -> bool:
    try:
        Ring(settings.secagg.width, max(2, settings.cohort), 1, settings.secagg.clip, 0)
    except ValueError:
        return False
    return True


def _policy_colluders(settings: Settings) -> int:
    asked = settings.policy.colluders
    return default_colluders(settings.sites) if asked is None else asked


def _fewest_in_a_sum(settings: Settings) -> int:
    """Returns how many sites the smallest sum of a round may have."""
    sites = settings.cohort // settings.secagg.groups
    if sites < 2:
        return sites
    return least_survivors(sites, settings.colluders, settings.federation.quorum)


def _shaped(secagg: SecAggSettings) -> bool:
    return secagg.mode != "none" and (secagg.width != 32 or secagg.shapes_sums)


_RULES = (
    _learning_rules,
    _data_rules,
    _sites_rules,
    _engine_rules,
    _privacy_rules,
    _strategy_rules,
    _secagg_rules,
    _tracker_rules,
    _statistics_rules,
    _tree_rules,
)
