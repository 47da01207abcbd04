"""The whole configuration of a run, checked at once: every fault in one report."""

import math
import re
from typing import Annotated, Any, Literal

from pydantic import Field

from lepton_common.datasets.partitioners import Partitioner, Sizes
from lepton_common.datasets.preparation import PER_RECORD, Preparation
from lepton_common.device import DEVICE
from lepton_common.errors import SettingsError
from lepton_common.models.catalog import model_fault
from lepton_common.models.tree_form import MOST_BINS, MOST_DEPTH, form_of
from lepton_common.names import unknown
from lepton_common.policy import SitePolicy
from lepton_common.secagg.ring import Ring
from lepton_common.secagg.spec import default_colluders, least_survivors
from lepton_common.statistics import Bins
from lepton_common.strict import (
    Count,
    Fraction,
    Name,
    Natural,
    Norm,
    NotNegative,
    OpenFraction,
    Positive,
    Rate,
    Share,
    parse,
    record,
)
from lepton_common.tasks.augmentation import AsTheyAre
from lepton_common.tasks.catalog import TASKS, task_names
from lepton_common.tasks.derivatives import derivatives_of

ROBUST = ("fedmedian", "fedtrimmedavg", "krum", "multikrum", "bulyan")
LINEAR = ("fedavg", "fedavgm", "fedadam", "fedyogi", "fedadagrad", "fedprox")
# Beyond so many sites a federation is a crowd: of each round only the cohort is known, and nobody
# keeps a list of all.
MOST_LISTED = 4096


@record
class DataSettings:
    """Where the data lies and how a simulation splits it.

    Attributes:
        root: folder that holds the data set's folder; None: downloaded into the user's cache.
        prepare: ``public_ranges``, or where a data set offers it ``scattering`` (images) or
            ``site_statistics``.
        partition: ``iid``, ``dirichlet``, ``pathological``, ``shard``, ``size``, ``natural``, or
            ``drawn``: each site draws its own records, and sites overlap.
        alpha: Dirichlet concentration.
        classes_per_site: for ``pathological``.
        shards_per_site: for ``shard``.
        sizes: for ``size``: how the number of records grows from site to site.
        records_per_site: for ``drawn``.
        min_records: fewest records a site may hold.
        held_back: share of the people at each simulated site who are never trained on, but asked
            for by `lepton evaluate`; a real site's own file says its own.
    """

    root: str | None
    prepare: Preparation
    partition: Partitioner
    alpha: Positive
    classes_per_site: Count
    shards_per_site: Count
    sizes: Sizes
    records_per_site: Count | None
    min_records: Count
    held_back: Share = 0.0


@record
class TrainSettings:
    """What a site does in a round.

    Attributes:
        optimizer: ``sgd`` or ``adam``, fresh every round.
        learning_rate: at the first round.
        schedule: ``constant``, or ``cosine`` or ``linear`` to a tenth at the last round.
        warmup_rounds: rounds over which the rate rises to its value first.
        momentum: for ``sgd``.
        weight_decay: L2.
        batch_size: records a step; with privacy, records held in memory at once.
        local_epochs: passes over the site's data a round, or None.
        local_steps: steps a round, or None; exactly one of the two is set. Privacy needs steps.
        augmentations: views of each image whose gradients are averaged before clipping, with
            privacy by steps; 1: the image alone.
        mixup: alpha of the Beta distribution of the shares by which each record is mixed with
            another of its batch, at its own site, without privacy or with that of sites; 0: none.
        precision: ``float32``, or ``bfloat16`` for matrix products.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``, at each site.
    """

    optimizer: Literal["sgd", "adam"]
    learning_rate: Positive
    schedule: Literal["constant", "cosine", "linear"]
    warmup_rounds: Natural
    momentum: NotNegative
    weight_decay: NotNegative
    batch_size: Count
    local_epochs: Count | None
    local_steps: Count | None
    augmentations: Count
    precision: Literal["float32", "bfloat16"]
    device: str
    mixup: NotNegative = 0.0

    def learning_rate_at(self, round_: int, rounds: int) -> float:
        """Returns the learning rate of a round, counted from 1."""
        warm = min(1.0, round_ / (self.warmup_rounds + 1))
        share = (round_ - 1) / max(rounds - 1, 1)
        falling = {"constant": 1.0, "cosine": 0.55 + 0.45 * math.cos(math.pi * share),
                   "linear": 1.0 - 0.9 * share}  # fmt: skip
        return self.learning_rate * warm * falling[self.schedule]


@record
class StrategySettings:
    """How the server turns updates into the next model; parameters named as in Flower.

    Attributes:
        name: a strategy in the catalog.
        server_learning_rate: for fedavgm, fedadam, fedyogi, fedadagrad.
        server_momentum: for fedavgm.
        beta_1: first moment, for fedadam and fedyogi.
        beta_2: second moment, for fedadam and fedyogi.
        tau: adaptivity of fedadam, fedyogi, fedadagrad.
        proximal_mu: strength of fedprox' term at the sites.
        beta: share trimmed at each end by fedtrimmedavg.
        num_malicious_nodes: tolerated by krum, multikrum, bulyan.
        num_nodes_to_select: kept by multikrum.
        average_decay: of the moving average of the rounds' models, which is the run's model then;
            0: that of the last round.
    """

    name: str
    server_learning_rate: Positive
    server_momentum: NotNegative
    beta_1: NotNegative
    beta_2: NotNegative
    tau: Positive
    proximal_mu: NotNegative
    beta: NotNegative
    num_malicious_nodes: Natural
    num_nodes_to_select: Count
    average_decay: NotNegative


@record
class PrivacySettings:
    """What privacy the run asks for; each site's own policy has the last word.

    Attributes:
        mode: ``none``; ``record``: DP-SGD at each site; ``distributed``: DP-SGD over the union of
            all sites, each adding a share of the noise; or ``site``: each site's whole update is
            protected, with shares of noise too.
        epsilon: target over the whole run.
        delta: of the guarantee; must be set.
        clipping_norm: L2 bound on one privacy unit's gradient; for ``site`` on an update.
        clip_quantile: for ``site``: the share of the sites whose updates shall be short enough,
            which the bound is moved towards, from round to round (Andrew et al. 2021); None: a
            fixed bound.
        sample_rate: Poisson rate a unit and step; 1 uses all records in each step.
        spare_rounds: rounds that crashes may cost without breaking the target.
    """

    mode: Literal["none", "record", "distributed", "site"]
    epsilon: Positive | None
    delta: OpenFraction | None
    clipping_norm: Norm
    clip_quantile: OpenFraction | None
    sample_rate: Rate
    spare_rounds: Natural


@record
class SecAggSettings:
    """How updates are summed without the server seeing any single one; see docs.

    Attributes:
        mode: ``sa1``, or ``none``, which each site's policy must allow.
        width: bits of a ring element; fewer are cheaper and coarser.
        clip: bound on each element of a weighted update.
        colluders: sites that may collude with the server; None: a third of all, (sites - 1) / 3.
        attempts: times a round is tried before the run fails.
        stage_timeout_s: longest wait for a stage without training, in seconds.
        compression: ``none``, or ``random_coordinates``: each round sums some of the weights.
        coordinates: their share, for ``random_coordinates``.
        rotate: whether to rotate updates, so that a low clip and few bits lose little.
        rounding: ``nearest`` or, at a width of 16, ``stochastic``.
        groups: sums that the cohort is split into at random, for robust strategies.
    """

    mode: Literal["none", "sa1"]
    width: Literal[16, 20, 24, 32]
    clip: Norm
    colluders: Natural | None
    attempts: Count
    stage_timeout_s: Positive
    compression: Literal["none", "random_coordinates", "top_k"]
    coordinates: Rate
    rotate: bool
    rounding: Literal["nearest", "stochastic"]
    groups: Count

    @property
    def shapes_sums(self) -> bool:
        """Whether a setting asks for something that only masked sums have."""
        plain = (self.compression, self.rotate, self.rounding, self.groups)
        return plain != ("none", False, "nearest", 1)


@record
class EngineSettings:
    """What a simulation runs on.

    Attributes:
        name: ``inprocess``: one process, several threads; ``processes``: several processes on
            one machine; ``ray``: Flower's Ray actors, on one machine or a cluster.
        workers: sites that train at the same time; 0: one per core, of a cluster all.
        threads_per_site: threads inside one site's tensor operations; fixed, so that results
            are the same bit for bit whatever the workers.
        serialise: send every message through Flower's wire format, as in deployment.
        vectorize: ``auto``: many sites are trained at once where task, model and protection allow
            it, which is as good as one at a time up to rounding; ``none``: never.
        together: sites trained at once, for ``vectorize``; 0: as many as suit memory and workers.
        address: of a running Ray cluster, ``host:port`` or ``auto``; None: Ray is started on
            this machine, for the run.
    """

    name: Literal["inprocess", "processes", "ray"]
    workers: Natural
    threads_per_site: Count
    serialise: bool
    vectorize: Literal["none", "auto"]
    together: Natural
    address: str | None


@record
class FederationSettings:
    """Whom a round asks, and how long it waits.

    Attributes:
        name: the federation that the sites' roster names.
        cohort: sites asked in each round; None: all.
        quorum: share of the asked sites that must answer, or the run fails.
        round_timeout_s: longest wait for a round's answers, in seconds.
        approval_timeout_s: longest wait for the operators of sites, before a run begins, in
            seconds.
        weights: ``equal``; ``public_size``: each site's public size class; or ``masked_size``:
            its number of records, which nobody sees, at most the largest size class.
    """

    name: Name
    cohort: Count | None
    quorum: Fraction
    round_timeout_s: Positive
    approval_timeout_s: Positive
    weights: Literal["equal", "public_size", "masked_size"]


@record
class TrackerSettings:
    """Who else is told how a run goes; values that the server has released, and settings.

    Attributes:
        name: ``none``, ``tensorboard`` or ``mlflow``.
        folder: for ``tensorboard``: folder of the event files; None: in the run's folder.
        uri: for ``mlflow``: a server, or a database file as ``sqlite:///PATH``; None: such a file
            beside the runs. Passwords belong into MLflow's own environment variables.
        experiment: for ``mlflow``: the experiment that the run is filed under.
    """

    name: Literal["none", "tensorboard", "mlflow"]
    folder: str | None
    uri: str | None
    experiment: Annotated[str, Field(pattern=r"^[A-Za-z0-9/][A-Za-z0-9 ._@/-]{0,199}$")]


@record
class StatisticsSettings:
    """What `lepton stats` and `lepton evaluate` ask the sites.

    Attributes:
        asked: whether the run asks for statistics, in place of training.
        bins: of each histogram, over the public range.
        features: positions of the values of a record that are asked for; None: all. The fewer,
            the less noise.
        evaluates: name of the run whose last model is evaluated on the records that sites hold
            back; None: the records themselves are asked about.
    """

    asked: bool
    bins: Bins
    features: list[Natural] | None
    evaluates: Name | None = None


@record
class TreeSettings:
    """How boosted trees are grown, for model=boosted_trees; named as in XGBoost where it has them.

    Attributes:
        depth: levels of splits of a tree; a round grows one level.
        bins: equal parts of each feature's public range, between which trees split.
        learning_rate: what each tree's outputs are multiplied by.
        l2: lambda, by which small leaves are held back.
        min_gain: gamma, which a split must be worth more than.
        min_child_weight: least sum of second derivatives on each side of a split.
    """

    depth: Annotated[int, Field(ge=1, le=MOST_DEPTH)]
    bins: Annotated[int, Field(ge=2, le=MOST_BINS)]
    learning_rate: Positive
    l2: NotNegative
    min_gain: NotNegative
    min_child_weight: NotNegative


_TRAINING = StatisticsSettings(asked=False, bins=10, features=None)
_TREES = TreeSettings(
    depth=3, bins=32, learning_rate=0.3, l2=1.0, min_gain=0.0, min_child_weight=1.0
)


@record
class Settings:
    """Everything that decides a run.

    Attributes:
        task: a task in the catalog.
        model: a model in the catalog.
        sites: number of simulated sites.
        rounds: number of rounds.
        seed: of initial weights, partition and batch order; never of privacy noise.
        baselines: whether to train local-only and pooled models beside, for comparison.
        runs: folder for run folders.
        data: see `DataSettings`.
        train: see `TrainSettings`.
        strategy: see `StrategySettings`.
        privacy: see `PrivacySettings`.
        secagg: see `SecAggSettings`.
        engine: see `EngineSettings`.
        federation: see `FederationSettings`.
        policy: the `SitePolicy` of each simulated site.
        tracker: see `TrackerSettings`.
        statistics: see `StatisticsSettings`.
        trees: see `TreeSettings`.
    """

    task: str
    model: str
    sites: Count
    rounds: Count
    seed: Natural
    baselines: bool
    runs: str
    data: DataSettings
    train: TrainSettings
    strategy: StrategySettings
    privacy: PrivacySettings
    secagg: SecAggSettings
    engine: EngineSettings
    federation: FederationSettings
    policy: SitePolicy
    tracker: TrackerSettings
    statistics: StatisticsSettings = _TRAINING
    trees: TreeSettings = _TREES

    @property
    def cohort(self) -> int:
        """Number of sites asked in each round."""
        return self.federation.cohort or self.sites

    @property
    def secure(self) -> bool:
        """Whether the server sees sums of updates only."""
        return self.secagg.mode == "sa1"

    @property
    def colluders(self) -> int:
        """Sites that may collude with the server; a bound on the whole roster, not the cohort."""
        chosen = self.secagg.colluders
        return default_colluders(self.sites) if chosen is None else chosen

    @property
    def updates(self) -> int:
        """Number of updates, or sums of a group's updates, that a robust strategy chooses from."""
        return self.secagg.groups if self.secure else self.cohort

    @property
    def crowded(self) -> bool:
        """Whether there are more sites than anybody keeps a list of."""
        return self.sites > MOST_LISTED

    @property
    def private(self) -> bool:
        """Whether the run trains with differential privacy."""
        return self.privacy.mode != "none"

    @property
    def shares_noise(self) -> bool:
        """Whether sites share the noise of a sum."""
        return self.privacy.mode in ("distributed", "site")


def least_updates(strategy: StrategySettings) -> int:
    """Returns how many updates a strategy needs to keep what it promises.

    Krum 2f + 3 (Blanchard et al. 2017), Bulyan 4f + 3 (El Mhamdi et al. 2018); a trimmed mean
    as many as it takes to trim one at each end.
    """
    f = strategy.num_malicious_nodes
    needs = {"krum": 2 * f + 3, "multikrum": 2 * f + 3, "bulyan": 4 * f + 3}
    if strategy.name == "fedtrimmedavg" and strategy.beta > 0:
        return math.ceil(1 / strategy.beta)
    return needs.get(strategy.name, 1)


def poisoned_tolerated(strategy: StrategySettings, updates: int) -> int:
    """Returns how many poisoned ones out of so many updates a strategy holds against."""
    name, f = strategy.name, strategy.num_malicious_nodes
    found = {"fedmedian": (updates - 1) // 2, "fedtrimmedavg": math.floor(strategy.beta * updates)}
    return found.get(name, f) if name in ROBUST else 0


def parse_settings(values: Any) -> Settings:  # noqa: ANN401
    """Returns the settings in plain nested values.

    Raises:
        SettingsError: with every fault found, one sentence each.
    """
    settings, faults = parse(Settings, values)
    if settings is not None:
        faults = _contradictions(settings)
    if faults or settings is None:
        raise SettingsError(faults)
    return settings


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


def _contradictions(settings: Settings) -> list[str]:
    privacy, train, strategy = settings.privacy, settings.train, settings.strategy
    data = settings.data
    engine = settings.engine
    tracker = settings.tracker
    mode, secagg, by_step = privacy.mode, settings.secagg, privacy.mode in ("record", "distributed")
    robust = strategy.name in ROBUST
    least, groups = least_updates(strategy), settings.secagg.groups
    survivors = _fewest_in_a_sum(settings)
    task = TASKS.get(settings.task)  # of a package's, what is to be said is said where it trains
    rules = {
        unknown("task", settings.task, task_names()): (settings.task not in task_names()),
        model_fault(settings.model) or "": model_fault(settings.model) is not None,
        f"The loss of task={settings.task} compares records with one another, which no privacy by "
        "record can bound: choose a task that learns by hazard, or privacy=site or none.": (
            by_step and task is not None and not task.objective.apart
        ),
        unknown("strategy", strategy.name, LINEAR + ROBUST): (strategy.name not in LINEAR + ROBUST),
        "Set exactly one of train.local_epochs and train.local_steps, the other to null.": (
            (train.local_epochs is None) == (train.local_steps is None)
        ),
        f"train.device={train.device!r}: choose auto, cpu, cuda, cuda:N or mps.": (
            re.fullmatch(DEVICE, train.device) is None
        ),
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
        f"federation.cohort={settings.cohort} exceeds sites={settings.sites}.": (
            settings.cohort > settings.sites
        ),
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
        f"secagg=sa1 needs a roster of all sites at each site, which lists {MOST_LISTED:,} at "
        f"most, not {settings.sites:,}: lower sites, or choose secagg=none where the sites allow "
        "it.": settings.secure and settings.crowded,
        f"baselines=true trains a model at each site, which is for {MOST_LISTED:,} at most, not "
        f"{settings.sites:,}: drop it, or lower sites.": settings.baselines and settings.crowded,
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
        f"strategy.beta={strategy.beta} trims everything: keep it below 0.5.": (
            strategy.beta >= 0.5
        ),
        "strategy.average_decay must be below 1.": strategy.average_decay >= 1,
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
        "strategy.beta_1 and strategy.beta_2 must be below 1.": (
            strategy.beta_1 >= 1 or strategy.beta_2 >= 1
        ),
    }
    rules |= _statistics_rules(settings)
    rules |= _tree_rules(settings)
    return [fault for fault, holds in rules.items() if holds]


def _shaped(secagg: SecAggSettings) -> bool:
    return secagg.mode != "none" and (secagg.width != 32 or secagg.shapes_sums)


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
    task, by_step = TASKS.get(settings.task), settings.privacy.mode in ("record", "distributed")
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
