"""What a round of secure aggregation sums, and what binds it to its training request."""

from lepton_common.messages import PrivacyRequest, TrainRequest
from lepton_common.secagg.encoding import tagged_hash
from lepton_common.strict import to_json


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
