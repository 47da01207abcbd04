"""The whole configuration of a run; what goes together is in `settings_rules`."""

import math
from typing import Annotated, Literal

from pydantic import Field

from lepton_common.datasets.partitioners import Partitioner, Sizes
from lepton_common.datasets.preparation import Preparation
from lepton_common.models.tree_form import MOST_BINS, MOST_DEPTH
from lepton_common.policy import SitePolicy
from lepton_common.secagg.spec import default_colluders
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
    record,
)

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
