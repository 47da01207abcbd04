"""What a plain Flower app and its server agree on, so that its updates can be masked and summed.

The app's one ArrayRecord and some named metrics become one float32 vector: first what training
changed in the arrays, then the metrics. The hashes bind a round to the arrays it starts from.
"""

import hashlib
from collections.abc import Mapping

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from lepton_common.arrays import Vector
from lepton_common.content import read_text, records_of
from lepton_common.errors import DimensionMismatch, MalformedMessage
from lepton_common.secagg.encoding import lp, tagged_hash
from lepton_common.strict import Count, Digest, Name, record, to_json

RECORD = "terms"


@record
class Terms:
    """How an app's replies are summed.

    Attributes:
        metrics: metrics that ride masked, in this order.
        weighted_by: the metric by which a site's reply counts; it rides masked too.
        weight_cap: a reply counts at most this much.
        groups: number of sums that the cohort is split into.
        round: number of the training round.
        content: hash of all records that the app is sent; see `hash_content`.
        run_config: hash of the run's configuration; see `hash_run_config`.
    """

    metrics: list[Name]
    weighted_by: Name
    weight_cap: Count
    groups: Count
    round: Count
    content: Digest
    run_config: Digest

    @property
    def hash(self) -> bytes:
        """32 bytes that bind a round to these terms."""
        return tagged_hash("app", to_json(self).encode())


def terms_record(terms: Terms) -> ConfigRecord:
    """Returns the terms as a record."""
    return ConfigRecord({"json": to_json(terms)})


def read_terms(content: RecordDict) -> Terms:
    """Parses the terms beside a stage.

    Raises:
        MalformedMessage: there are none.
    """
    return read_text(Terms, content, RECORD)


def only_arrays(content: RecordDict) -> ArrayRecord:
    """Returns the one ArrayRecord of a message.

    Raises:
        MalformedMessage: there is none, or more than one, or it is empty.
    """
    found = list(records_of(content, ArrayRecord).values())
    if len(found) != 1 or not found[0]:
        raise MalformedMessage("A masked round needs exactly one ArrayRecord with arrays.")
    return found[0]


def hash_layout(arrays: ArrayRecord, terms: Terms) -> bytes:
    """Returns 32 bytes over the names, types and shapes of all that is summed."""
    rows = [
        lp(name.encode(), array.dtype.encode(), repr(tuple(array.shape)).encode())
        for name, array in arrays.items()
    ]
    return tagged_hash("layout", *rows, *(metric.encode() for metric in terms.metrics))


def hash_model(arrays: ArrayRecord) -> bytes:
    """Returns 32 bytes over the values that a round starts from."""
    digests = (hashlib.sha256(array.data).digest() for array in arrays.values())
    return tagged_hash("model", *digests)


def hash_content(content: RecordDict) -> str:
    """Returns the hash of all that an app is sent: each record, in order, with all its fields.

    Whatever an app reads decides what it trains, so sites that are sent unlike records must not
    end up in one sum.
    """
    parts = []
    for name, found in content.items():
        fields = [
            lp(key.encode(), _form_of(value).encode(), _bytes_of(value))
            for key, value in found.items()
        ]
        parts.append(lp(name.encode(), type(found).__name__.encode(), lp(*fields)))
    return tagged_hash("content", *parts).hex()


def hash_run_config(config: Mapping[str, object]) -> str:
    """Returns the hash of a run's configuration."""
    fields = [
        lp(key.encode(), _form_of(value).encode(), _bytes_of(value))
        for key, value in sorted(config.items())
    ]
    return tagged_hash("run-config", *fields).hex()


def _form_of(value: object) -> str:
    if isinstance(value, Array):
        return f"{value.dtype} {tuple(value.shape)} {value.stype}"
    return type(value).__name__


def _bytes_of(value: object) -> bytes:
    if isinstance(value, Array):
        return value.data
    return value if isinstance(value, bytes) else repr(value).encode()


def flatten(arrays: ArrayRecord) -> Vector:
    """Returns all arrays as one vector, float32."""
    return np.concatenate([array.numpy().astype(np.float32).ravel() for array in arrays.values()])


def change_of(
    before: ArrayRecord, after: ArrayRecord, metrics: MetricRecord, terms: Terms
) -> Vector:
    """Returns what a site adds to the sum, float32, shape [d].

    Raises:
        DimensionMismatch: the arrays are not those of the message, or a metric is missing.
    """
    shapes = [(name, tuple(array.shape)) for name, array in before.items()]
    if shapes != [(name, tuple(array.shape)) for name, array in after.items()]:
        raise DimensionMismatch("The app returned other arrays than it was sent.")
    values = [metrics.get(name) for name in terms.metrics]
    if any(not isinstance(value, int | float) for value in values):
        raise DimensionMismatch(f"The app should return the metrics {terms.metrics}, as numbers.")
    change = flatten(after) - flatten(before)
    return np.append(change, np.array(values, np.float32)).astype(np.float32)


def apply_change(before: ArrayRecord, change: Vector) -> ArrayRecord:
    """Returns ``before`` with a change of shape [d] added, in the arrays' own types."""
    after, start = ArrayRecord(), 0
    for name, array in before.items():
        old = array.numpy()
        piece = change[start : start + old.size].reshape(old.shape)
        after[name] = Array((old + piece).astype(old.dtype))
        start += old.size
    return after
