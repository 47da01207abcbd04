"""Typed requests and replies, and their one form inside Flower's records.

A request is the ConfigRecord ``request`` with one JSON text, and for training the ArrayRecord
``model`` with one packed vector. A reply to training is the ArrayRecord ``update``, the
MetricRecord ``metrics`` and the ConfigRecord ``receipt``. Parsing is strict: any other record,
field or type is refused. Replies are built in the site's door only.
"""

from functools import lru_cache
from typing import Annotated, Literal

from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from pydantic import Field

from lepton_common.arrays import Vector, digest_of, pack, unpack
from lepton_common.content import expect_records, read_text, read_vector, records_of
from lepton_common.datasets.preparation import Preparation
from lepton_common.device import DEVICE
from lepton_common.errors import MalformedMessage, ModelMismatch, PlanError
from lepton_common.models.tree_form import answer_size, form_of
from lepton_common.privacy.plan import WHOLE_SITE, PrivacyPlan, SharedNoise
from lepton_common.statistics import EvaluationQuery, StatisticsQuery
from lepton_common.strict import (
    Count,
    Digest,
    ModelName,
    Name,
    Natural,
    Noise,
    Norm,
    NotNegative,
    OpenFraction,
    Positive,
    Rate,
    Size,
    Steps,
    record,
    to_json,
)

HELLO = "query.hello"
TRAIN = "train"


@record
class HelloRequest:
    """Asks a site for its public facts, and whether it takes part in a run.

    Attributes:
        run: name of the run.
        proposal: the signed text of `lepton_common.proposal`; None in a simulation.
    """

    run: Name
    proposal: str | None = None


@record
class SiteFacts:
    """What a site says about itself; all of it public.

    Attributes:
        name: the site's name.
        public_key: hexadecimal Ed25519 key that signs its audit log.
        public_size: its public size class in privacy units, not its true size.
        unit: what its data protects as one.
        audit_head: newest hash of its audit log.
    """

    name: Name
    public_key: Digest
    public_size: Size
    unit: Name
    audit_head: Digest


@record
class Recipe:
    """How to train locally in this round; see `lepton_common.settings.TrainSettings`.

    Attributes:
        seed: of the batch order and of mixtures without privacy; with privacy nothing uses it.
        proximal_mu: strength of FedProx' term (Li et al. 2020), 0 for none.
        update_scale: what a whole update is divided by before it is clipped; the server
            multiplies the mean by it again. Only the mode ``site`` uses it.
    """

    optimizer: Literal["sgd", "adam"]
    learning_rate: Positive
    momentum: NotNegative
    weight_decay: NotNegative
    batch_size: Count
    local_epochs: Count | None
    local_steps: Count | None
    augmentations: Count
    precision: Literal["float32", "bfloat16"]
    device: Annotated[str, Field(pattern=f"^{DEVICE}$")]
    proximal_mu: NotNegative
    update_scale: Norm
    seed: Natural
    mixup: NotNegative = 0.0

    def __post_init__(self) -> None:
        """Refuses training of no length, or of two.

        Raises:
            ValueError: not exactly one of epochs and steps is given.
        """
        if (self.local_epochs is None) == (self.local_steps is None):
            raise ValueError("Exactly one of local_epochs and local_steps is given.")


@record
class PrivacyRequest:
    """The part of a privacy plan that the run asks for; the site adds unit and denominator.

    Attributes:
        mode: see `lepton_common.settings.PrivacySettings`.
        count_within: whether a noised count of the updates that were short enough rides behind
            the sum, for adaptive clipping in the mode ``site``.
    """

    mode: Literal["record", "distributed", "site"]
    count_within: bool
    delta: OpenFraction
    sample_rate: Rate
    noise_multiplier: Noise
    clipping_norm: Norm
    steps_per_round: Annotated[int, Field(ge=1, le=100_000)]
    max_steps: Steps

    def plan(self, unit: str, public_size: int, shared: SharedNoise | None = None) -> PrivacyPlan:
        """Returns the plan of a site that protects ``unit`` and publishes ``public_size``.

        Args:
            unit: what the site protects as one.
            public_size: its public size class.
            shared: who else adds noise; needed in all modes but ``record``.

        Raises:
            PlanError: the plan gives no guarantee.
        """
        if (self.mode == "record") != (shared is None):
            raise PlanError(f"In the mode {self.mode}, this is not whose noise counts.")
        whole = self.mode == "site"
        if self.count_within and not whole:
            raise PlanError("Updates that are short enough are counted in the mode site only.")
        return PrivacyPlan(
            unit=WHOLE_SITE if whole else unit,
            delta=self.delta,
            sample_rate=self.sample_rate,
            noise_multiplier=self.noise_multiplier,
            clipping_norm=self.clipping_norm,
            steps_per_round=self.steps_per_round,
            max_steps=self.max_steps,
            denominator=1.0 if whole else self.sample_rate * public_size,
            shared=shared,
        )


@record
class MaskedSum:
    """How the updates of a round are summed under secure aggregation.

    Attributes:
        weights: public weight of each site of the cohort.
        weight_cap: where each site counts by its own number of records, masked too, the most it
            counts for; None: by ``weights`` alone.
        coordinates: share of the weights that a round sums, at random positions.
        rotate: whether values are rotated before they are encoded.
        rounding: ``nearest``, or ``stochastic``: up or down at random, right on average.
        groups: number of sums that the cohort is split into.
    """

    weights: dict[Name, Size]
    weight_cap: Count | None
    coordinates: Rate
    rotate: bool
    rounding: Literal["nearest", "stochastic"]
    groups: Count


@record
class TrainRequest:
    """Asks a site for one round of training, or for statistics.

    Attributes:
        run: name of the run.
        round: from 1.
        task: a name in the site's catalog.
        model: a name in the site's catalog, or a list of layers.
        prepare: how the data must have been prepared.
        cohort: how many sites this round asks.
        layout: digest of the model's layout.
        model_digest: SHA-256 of the model's vector.
        recipe: how to train.
        privacy: None for training without DP.
        masked: None without secure aggregation, where the server does the weighting.
        ledger_heads: the newest entry of each site's privacy ledger that the server has seen.
        statistics: what to sum in place of gradients; the layout is then that of the sum. The
            model only names the query, or is the one that is evaluated, behind which the numbers
            stand that name the query. None: training.
    """

    run: Name
    round: Count
    task: Name
    model: ModelName
    prepare: Preparation
    cohort: Count
    layout: Digest
    model_digest: Digest
    recipe: Recipe
    privacy: PrivacyRequest | None
    masked: MaskedSum | None
    ledger_heads: dict[Name, Digest]
    statistics: StatisticsQuery | EvaluationQuery | None = None

    @property
    def grows_trees(self) -> bool:
        """Whether a level of trees is asked for: sums over people in the place of an update."""
        return self.statistics is None and form_of(self.model) is not None

    def answered(self, values: int) -> int:
        """Returns how many values a site answers with, given how many came with the request."""
        if isinstance(self.statistics, EvaluationQuery):
            return self.statistics.length
        return answer_size(self.model, values) if self.grows_trees else values


@record
class Receipt:
    """What a site says about a release; protocol fields, none computed from records.

    Attributes:
        run: echoed.
        round: echoed.
        plan: digest of the privacy plan in force, or None.
        steps: private steps charged so far for this run.
        epsilon: spent so far on the site's data, at the plan's delta.
        audit_head: newest hash of the site's audit log, which holds this release.
        ledger_head: newest hash of the site's privacy ledger, which holds its charge.
    """

    run: Name
    round: Count
    plan: Digest | None
    steps: Natural
    epsilon: Annotated[float, Field(ge=0, le=1e6)]
    audit_head: Digest
    ledger_head: Digest


def hello_content(request: HelloRequest) -> RecordDict:
    """Returns the records of a hello."""
    return RecordDict({"request": ConfigRecord({"json": to_json(request)})})


def train_content(request: TrainRequest, model: Vector) -> RecordDict:
    """Returns the records of a training request; one object can serve all sites of a round."""
    return RecordDict(
        {
            "request": ConfigRecord({"json": to_json(request)}),
            "model": model_record(model),
        }
    )


def model_record(model: Vector) -> ArrayRecord:
    """Returns a model as a record; one object can serve all sites of a round."""
    return ArrayRecord({"vector": pack(model)})


def read_hello(content: RecordDict) -> HelloRequest:
    """Parses a hello.

    Raises:
        MalformedMessage: anything but exactly that.
    """
    expect_records(content, {"request"})
    return read_text(HelloRequest, content, "request")


def read_train(content: RecordDict) -> TrainRequest:
    """Parses the header of a training request.

    Raises:
        MalformedMessage: anything but exactly that.
    """
    expect_records(content, {"request", "model"})
    return read_text(TrainRequest, content, "request")


def read_model(content: RecordDict, request: TrainRequest) -> Vector:
    """Returns the model in a training request, float32, shape [d], read-only.

    Raises:
        MalformedMessage: not a packed vector.
        ModelMismatch: not the model that the request names.
    """
    array = read_vector(content, "model")
    model = unpack(array, len(array.data) // 4)
    if _digest_of_model(array.data) != request.model_digest:
        raise ModelMismatch("The model that came is not the one the request names; ask again.")
    return model


@lru_cache(maxsize=1)
def _digest_of_model(data: bytes) -> str:
    """Returns a model's digest; sites that are simulated together all receive the same bytes."""
    return digest_of(data)


def forget_model() -> None:
    """Lets go of the bytes of the model that was read last, where no other site reads them."""
    _digest_of_model.cache_clear()


def read_facts(content: RecordDict) -> SiteFacts:
    """Parses the reply to a hello.

    Raises:
        MalformedMessage: anything but exactly that.
    """
    expect_records(content, {"site"})
    return read_text(SiteFacts, content, "site")


def read_update(content: RecordDict, size: int) -> tuple[Vector, dict[str, float], Receipt]:
    """Parses the reply to a training request: update (shape [size]), metrics, receipt.

    Raises:
        MalformedMessage: anything but exactly that.
    """
    expect_records(content, {"update", "metrics", "receipt"})
    update = unpack(read_vector(content, "update"), size)
    metrics = records_of(content, MetricRecord).get("metrics")
    if metrics is None:
        raise MalformedMessage("The record 'metrics' should hold metrics.")
    losses = {name: value for name, value in metrics.items() if isinstance(value, float)}
    if set(metrics) - {"loss"} or len(losses) != len(metrics):
        raise MalformedMessage("A reply may hold no metric but 'loss'; update the site.")
    return update, losses, read_text(Receipt, content, "receipt")
