"""Many simulated sites behind one node: what their host is asked, and what it answers for them.

In a simulation of many small sites, a message to each would cost more than its training. A host
answers for as many sites as one message names: each by the rules that it would keep alone, with
its own row of updates. Only where no roster names the sites does a coordinator ask hosts, so that
none can speak for a site of a real federation.
"""

from collections.abc import Sequence

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from numpy.typing import NDArray

from lepton_common.content import expect_records, read_text, read_vector, records_of
from lepton_common.errors import MalformedMessage
from lepton_common.messages import Receipt, TrainRequest
from lepton_common.strict import Count, Digest, Name, Natural, Size, record, to_json

ENROL = "query.enrol"
TRAIN_MANY = "train.many"
HOST = "host"  # in the place of a site's name, where heads of the host's log stand
_STYPE = "lepton.vectors.f32le"


@record
class HostFacts:
    """What a host says about itself; all of it public.

    Attributes:
        sites: how many it answers for; each is known by its place, from 0.
        unit: what their data protects as one.
        public_key: hexadecimal Ed25519 key that signs the log they share.
        audit_head: newest hash of that log.
    """

    sites: Count
    unit: Name
    public_key: Digest
    audit_head: Digest


@record
class EnrolRequest:
    """Asks for the names and public sizes of some sites.

    Attributes:
        run: name of the run.
        places: of the sites.
    """

    run: Name
    places: list[Natural]


@record
class Enrolled:
    """The answer, in the order of the places.

    Attributes:
        names: of the sites.
        public_sizes: their public size classes.
    """

    names: list[Name]
    public_sizes: list[Size]


@record
class ManyReceipts:
    """What some sites say about their releases, in the order of the rows of their updates.

    Attributes:
        names: of the sites that released an update.
        receipts: the unlike ones among their receipts.
        of: for each site, which receipt is its own.
        failed: error name of each site that released none.
    """

    names: list[Name]
    receipts: list[Receipt]
    of: list[Natural]
    failed: dict[Name, Name]


Vectors = NDArray[np.float32]


def enrol_content(request: EnrolRequest) -> RecordDict:
    """Returns the records of a question for names and sizes."""
    return RecordDict({"request": ConfigRecord({"json": to_json(request)})})


def train_many_content(
    request: TrainRequest, model: ArrayRecord, places: Sequence[int]
) -> RecordDict:
    """Returns the records of a training request to some sites of a host.

    Args:
        request: the same for all of them.
        model: see `lepton_common.messages.model_record`; one object can serve all messages.
        places: of the sites.
    """
    return RecordDict(
        {
            "request": ConfigRecord({"json": to_json(request)}),
            "model": model,
            "sites": ConfigRecord({"places": list(places)}),
        }
    )


def read_enrol(content: RecordDict) -> EnrolRequest:
    """Parses a question for names and sizes.

    Raises:
        MalformedMessage: anything but exactly that.
    """
    expect_records(content, {"request"})
    return read_text(EnrolRequest, content, "request")


def read_train_many(content: RecordDict) -> tuple[TrainRequest, list[int]]:
    """Parses the header of a training request to some sites, and their places.

    Raises:
        MalformedMessage: anything but exactly that.
    """
    expect_records(content, {"request", "model", "sites"})
    fields = records_of(content, ConfigRecord).get("sites", ConfigRecord())
    places = fields.get("places")
    if len(fields) != 1 or not isinstance(places, list) or not places:
        raise MalformedMessage("The record 'sites' should hold a list of places.")
    numbers = [place for place in places if type(place) is int and place >= 0]
    if len(set(numbers)) != len(places):
        raise MalformedMessage("A place is a whole number from 0, and named once.")
    return read_text(TrainRequest, content, "request"), numbers


def read_host(content: RecordDict) -> HostFacts:
    """Parses a host's reply to a hello.

    Raises:
        MalformedMessage: anything but exactly that.
    """
    expect_records(content, {"host"})
    return read_text(HostFacts, content, "host")


def read_enrolled(content: RecordDict, count: int) -> Enrolled:
    """Parses the names and sizes of ``count`` sites.

    Raises:
        MalformedMessage: anything but exactly that.
    """
    expect_records(content, {"enrolled"})
    enrolled = read_text(Enrolled, content, "enrolled")
    if not len(enrolled.names) == len(enrolled.public_sizes) == count:
        raise MalformedMessage(f"{count} sites were asked for, and others came.")
    return enrolled


def pack_vectors(vectors: Vectors) -> Array:
    """Returns vectors, float32, shape [k, d], as a Flower array of raw little-endian float32."""
    data = np.ascontiguousarray(vectors, dtype="<f4").tobytes()
    return Array(dtype="float32", shape=vectors.shape, stype=_STYPE, data=data)


def read_updates(content: RecordDict, size: int) -> tuple[Vectors, ManyReceipts]:
    """Parses a reply: updates, float32, shape [k, size], read-only, and the receipts.

    Raises:
        MalformedMessage: anything but exactly that.
    """
    expect_records(content, {"updates", "metrics", "receipts"})
    receipts = read_text(ManyReceipts, content, "receipts")
    array, count = read_vector(content, "updates"), len(receipts.names)
    came = (array.dtype, tuple(array.shape), array.stype, len(array.data))
    if came != ("float32", (count, size), _STYPE, 4 * count * size):
        raise MalformedMessage(f"Expected {count} packed float32 vectors of {size} elements.")
    if len(receipts.of) != count or any(of >= len(receipts.receipts) for of in receipts.of):
        raise MalformedMessage("Each update comes with one of the receipts.")
    metrics = records_of(content, MetricRecord).get("metrics")
    if metrics is None or set(metrics) - {"loss"}:
        raise MalformedMessage("A reply may hold no metric but 'loss'; update the site.")
    return np.frombuffer(array.data, dtype="<f4").reshape(count, size), receipts
