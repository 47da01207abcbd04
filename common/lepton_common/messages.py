"""Typed requests and replies, and their one form inside Flower's records.

A stage of secure aggregation is the ConfigRecord ``secagg`` with the stage's name, the round
and bytes in SA1's own encoding; the masked vector rides beside it as the ArrayRecord ``masked``.

A request is the ConfigRecord ``request`` with one JSON text, and for training the ArrayRecord
``model`` with one packed vector. A reply to training is the ArrayRecord ``update``, the
MetricRecord ``metrics`` and the ConfigRecord ``receipt``. Parsing is strict: any other record,
field or type is refused. Replies are built in the site's door only.
"""

from dataclasses import dataclass
from enum import Enum
from typing import Annotated, Literal, TypeVar

from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from pydantic import Field

from lepton_common.arrays import Vector, digest_of, pack, unpack
from lepton_common.device import DEVICE
from lepton_common.errors import MalformedMessage, ModelMismatch
from lepton_common.privacy.plan import PrivacyPlan
from lepton_common.secagg.encoding import tagged_hash
from lepton_common.strict import (
    Count,
    Digest,
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
    parse_json,
    record,
    to_json,
)

HELLO = "query.hello"
TRAIN = "train"

T = TypeVar("T")
_MASKED = "lepton.masked.u8"


class SecAggStage(Enum):
    """The five exchanges of SA1, by what the server asks for."""

    ADVERTISE = "advertise"
    SHARE = "share"
    MASK = "mask"
    SIGN = "sign"
    UNMASK = "unmask"


_RECORDS = {
    SecAggStage.ADVERTISE: {"secagg", "request"},
    SecAggStage.MASK: {"secagg", "request", "model"},
}


@dataclass(frozen=True)
class StageRequest:
    """Asks a site for its part in one stage of secure aggregation.

    Attributes:
        stage: which of the five.
        spec: the encoded round specification at ``advertise``, its hash afterwards.
        body: what the stage shows the site, in SA1's encoding.
    """

    stage: SecAggStage
    spec: bytes
    body: bytes


@record
class HelloRequest:
    """Asks a site for its public facts."""

    run: Name


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
        seed: of the batch order without privacy; with privacy nothing uses it.
        proximal_mu: strength of FedProx' term (Li et al. 2020), 0 for none.
    """

    optimizer: Literal["sgd", "adam"]
    learning_rate: Positive
    momentum: NotNegative
    weight_decay: NotNegative
    batch_size: Count
    local_epochs: Count | None
    local_steps: Count | None
    precision: Literal["float32", "bfloat16"]
    device: Annotated[str, Field(pattern=f"^{DEVICE}$")]
    proximal_mu: NotNegative
    seed: Natural


@record
class PrivacyRequest:
    """The part of a privacy plan that the run asks for; the site adds unit and denominator."""

    delta: OpenFraction
    sample_rate: Rate
    noise_multiplier: Noise
    clipping_norm: Norm
    steps_per_round: Annotated[int, Field(ge=1, le=100_000)]
    max_steps: Steps

    def plan(self, unit: str, public_size: int) -> PrivacyPlan:
        """Returns the plan of a site that protects ``unit`` and publishes ``public_size``."""
        return PrivacyPlan(
            unit=unit,
            delta=self.delta,
            sample_rate=self.sample_rate,
            noise_multiplier=self.noise_multiplier,
            clipping_norm=self.clipping_norm,
            steps_per_round=self.steps_per_round,
            max_steps=self.max_steps,
            denominator=self.sample_rate * public_size,
        )


@record
class TrainRequest:
    """Asks a site for one round of training.

    Attributes:
        run: name of the run.
        round: from 1.
        task: a name in the site's catalog.
        model: a name in the site's catalog.
        prepare: how the data must have been prepared.
        cohort: how many sites this round asks.
        layout: digest of the model's layout.
        model_digest: SHA-256 of the model's vector.
        recipe: how to train.
        privacy: None for training without DP.
        weights: public weight of each site of the cohort in a masked sum; None without secure
            aggregation, where the server does the weighting.
    """

    run: Name
    round: Count
    task: Name
    model: Name
    prepare: Literal["public_ranges", "site_statistics"]
    cohort: Count
    layout: Digest
    model_digest: Digest
    recipe: Recipe
    privacy: PrivacyRequest | None
    weights: dict[Name, Size] | None


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
    """

    run: Name
    round: Count
    plan: Digest | None
    steps: Natural
    epsilon: Annotated[float, Field(ge=0, le=1e6)]
    audit_head: Digest


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


def stage_content(
    request: StageRequest, train: TrainRequest | None = None, model: ArrayRecord | None = None
) -> RecordDict:
    """Returns the records of one stage of secure aggregation."""
    fields: dict[str, str | bytes] = {
        "stage": request.stage.value,
        "spec": request.spec,
        "body": request.body,
    }
    content = RecordDict({"secagg": ConfigRecord(dict(fields))})
    if train is not None:
        content["request"] = ConfigRecord({"json": to_json(train)})
    if model is not None:
        content["model"] = model
    return content


def weight_share(weights: dict[str, int], site: str) -> float:
    """Returns by how much a site scales its values in a masked sum, at most 1."""
    return weights[site] / max(weights.values())


def bind(request: TrainRequest) -> bytes:
    """Returns the 32 bytes that bind a round of secure aggregation to its training request."""
    return tagged_hash("app", to_json(request).encode())


def summed_metrics(request: TrainRequest) -> tuple[str, ...]:
    """Returns the metrics that ride behind the update in a masked vector; none with DP."""
    return () if request.privacy else ("train_loss",)


def bind_layout(request: TrainRequest) -> bytes:
    """Returns the 32 bytes that name all that is summed in a masked round."""
    metrics = (metric.encode() for metric in summed_metrics(request))
    return tagged_hash("layout", bytes.fromhex(request.layout), *metrics)


def bind_privacy(request: PrivacyRequest | None) -> bytes:
    """Returns the differential privacy in force, as a round's specification names it."""
    return to_json(request).encode() if request else b"none"


def read_stage(content: RecordDict, *, alone: bool = True) -> StageRequest:
    """Parses one stage of secure aggregation.

    Args:
        content: what came.
        alone: whether Lepton's own records may stand beside it only.

    Raises:
        MalformedMessage: anything but exactly that.
    """
    fields = content.config_records.get("secagg")
    if fields is None or set(fields) != {"stage", "spec", "body"}:
        raise MalformedMessage("The record 'secagg' should hold a stage, a round and a body.")
    name, spec, body = fields["stage"], fields["spec"], fields["body"]
    if not isinstance(spec, bytes) or not isinstance(body, bytes):
        raise MalformedMessage("The record 'secagg' should hold bytes.")
    try:
        stage = SecAggStage(name)
    except ValueError:
        raise MalformedMessage("The record 'secagg' names no stage.") from None
    if alone:
        _only(content, _RECORDS.get(stage, {"secagg"}))
    return StageRequest(stage, spec, body)


def read_request(content: RecordDict) -> TrainRequest:
    """Parses the training request that rides in a stage of secure aggregation.

    Raises:
        MalformedMessage: anything but exactly that.
    """
    return _text(TrainRequest, content, "request")


def read_stage_reply(content: RecordDict) -> bytes:
    """Returns what a site answered to a stage without a vector.

    Raises:
        MalformedMessage: anything but exactly that.
    """
    _only(content, {"secagg"})
    return _body(content)


def read_masked(content: RecordDict) -> tuple[bytes, bytes, Receipt]:
    """Parses a masked update: signed header, packed ring elements, receipt.

    Raises:
        MalformedMessage: anything but exactly that.
    """
    _only(content, {"secagg", "masked", "receipt"})
    return *_masked(content), _text(Receipt, content, "receipt")


def read_masked_only(content: RecordDict) -> tuple[bytes, bytes]:
    """Parses a masked update of a plain Flower app: signed header, packed ring elements.

    Raises:
        MalformedMessage: anything but exactly that.
    """
    _only(content, {"secagg", "masked"})
    return _masked(content)


def masked_record(packed: bytes) -> ArrayRecord:
    """Returns packed ring elements as a record."""
    array = Array(dtype="uint8", shape=(len(packed),), stype=_MASKED, data=packed)
    return ArrayRecord({"vector": array})


def model_record(model: Vector) -> ArrayRecord:
    """Returns a model as a record; one object can serve all sites of a round."""
    return ArrayRecord({"vector": pack(model)})


def read_hello(content: RecordDict) -> HelloRequest:
    """Parses a hello.

    Raises:
        MalformedMessage: anything but exactly that.
    """
    _only(content, {"request"})
    return _text(HelloRequest, content, "request")


def read_train(content: RecordDict) -> TrainRequest:
    """Parses the header of a training request.

    Raises:
        MalformedMessage: anything but exactly that.
    """
    _only(content, {"request", "model"})
    return _text(TrainRequest, content, "request")


def read_model(content: RecordDict, request: TrainRequest) -> Vector:
    """Returns the model in a training request, float32, shape [d], read-only.

    Raises:
        MalformedMessage: not a packed vector.
        ModelMismatch: not the model that the request names.
    """
    array = _vector(content, "model")
    model = unpack(array, len(array.data) // 4)
    if digest_of(array.data) != request.model_digest:
        raise ModelMismatch("The model that came is not the one the request names; ask again.")
    return model


def read_facts(content: RecordDict) -> SiteFacts:
    """Parses the reply to a hello.

    Raises:
        MalformedMessage: anything but exactly that.
    """
    _only(content, {"site"})
    return _text(SiteFacts, content, "site")


def read_update(content: RecordDict, size: int) -> tuple[Vector, dict[str, float], Receipt]:
    """Parses the reply to a training request: update (shape [size]), metrics, receipt.

    Raises:
        MalformedMessage: anything but exactly that.
    """
    _only(content, {"update", "metrics", "receipt"})
    update = unpack(_vector(content, "update"), size)
    metrics = content.metric_records.get("metrics")
    if metrics is None:
        raise MalformedMessage("The record 'metrics' should hold metrics.")
    losses = {name: value for name, value in metrics.items() if isinstance(value, float)}
    if set(metrics) - {"loss"} or len(losses) != len(metrics):
        raise MalformedMessage("A reply may hold no metric but 'loss'; update the site.")
    return update, losses, _text(Receipt, content, "receipt")


def _only(content: RecordDict, names: set[str]) -> None:
    if set(content) != names:
        raise MalformedMessage(
            f"Expected the records {sorted(names)}, got {len(content)} others; "
            "are both sides on the same version?"
        )


def _text(cls: type[T], content: RecordDict, name: str) -> T:
    fields = content.config_records.get(name)
    text = fields.get("json") if fields is not None and len(fields) == 1 else None
    if not isinstance(text, str):
        raise MalformedMessage(f"The record '{name}' should hold one JSON text.")
    try:
        return parse_json(cls, text)
    except ValueError as error:
        raise MalformedMessage(f"The record '{name}' is {error}.") from None


def _body(content: RecordDict) -> bytes:
    fields = content.config_records.get("secagg")
    body = fields.get("body") if fields is not None and len(fields) == 1 else None
    if not isinstance(body, bytes):
        raise MalformedMessage("The record 'secagg' should hold one body of bytes.")
    return body


def _masked(content: RecordDict) -> tuple[bytes, bytes]:
    array = _vector(content, "masked")
    if (array.dtype, array.stype, tuple(array.shape)) != ("uint8", _MASKED, (len(array.data),)):
        raise MalformedMessage("The record 'masked' should hold packed ring elements.")
    return _body(content), array.data


def _vector(content: RecordDict, name: str) -> Array:
    arrays = content.array_records.get(name)
    if arrays is None or set(arrays) != {"vector"}:
        raise MalformedMessage(f"The record '{name}' should hold one array, 'vector'.")
    return arrays["vector"]
