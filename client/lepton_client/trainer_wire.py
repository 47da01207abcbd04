"""What an agent and its trainer say to each other: frames of one strict record and one vector."""

from typing import IO, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from lepton_client.connectors.report import Report
from lepton_client.data import SiteData
from lepton_client.trainer import Described, Wanted
from lepton_common.errors import TrainerFailed
from lepton_common.messages import TrainRequest
from lepton_common.pages import use_huge_pages
from lepton_common.privacy.plan import PrivacyPlan
from lepton_common.strict import Count, Digest, Name, Natural, parse_json, record, to_json

T = TypeVar("T")

_LONGEST_RECORD = 64 << 20
NOTHING: NDArray[np.uint8] = np.empty(0, np.uint8)


@record
class Setup:
    """The first thing a trainer hears.

    Attributes:
        name: of the site.
        data: which records are its own.
        folder: the site's.
        secret: hexadecimal key of the hashes of its people.
        threads: of tensor operations.
        memory_gib: most memory to hold.
    """

    name: Name
    data: SiteData
    folder: str
    secret: Digest
    threads: Count | None
    memory_gib: float | None


@record
class Call:
    """One method of `lepton_client.trainer.Trainer`; the model comes behind it, as float32."""

    what: Literal[
        "describe", "initial", "people", "device", "conformance", "train", "train_privately",
        "noised_sum",
    ]  # fmt: skip
    request: TrainRequest | None = None
    wanted: Wanted | None = None
    plan: PrivacyPlan | None = None


@record
class Answer:
    """What a call returns; hashes, model, update or sum come behind it, or an error's trace.

    Attributes:
        error: name of what was raised.
        loss: of `Trained`, as `float.hex` writes it: it need not be finite.
        records: of `Trained`.
        device: kind of device that would be used.
        engine: of `Conformance`.
        difference: of `Conformance`.
        precision: of `Conformance`.
        together: of `Conformance`.
        step: of `Conformance`.
        described: what `describe` returns.
        layout: of `Initial`.
        report: what was wrong with the data, where that is the error.
    """

    error: Name | None = None
    loss: str = "0x0p+0"
    records: Natural = 0
    device: Name = "none"
    engine: Name = "none"
    difference: float | None = None
    precision: Name = "none"
    together: bool = True
    step: Natural = 0
    described: Described | None = None
    layout: Digest | None = None
    report: Report | None = None


def send(stream: IO[bytes], header: object, blob: NDArray[np.generic] = NOTHING) -> None:
    """Writes a frame.

    Raises:
        OSError: nobody reads any more.
    """
    text = to_json(header).encode()
    stream.write(len(text).to_bytes(8) + blob.nbytes.to_bytes(8) + text)
    if blob.nbytes:
        stream.write(np.ascontiguousarray(blob).view(np.uint8).data)
    stream.flush()


def receive(stream: IO[bytes], kind: type[T], most: int) -> tuple[T, NDArray[np.uint8]]:
    """Reads a frame whose vector has at most ``most`` bytes.

    Raises:
        TrainerFailed: nothing more comes, or what comes is no such frame.
    """
    length, size = (int.from_bytes(_exactly(stream, 8).tobytes()) for _ in range(2))
    if length > _LONGEST_RECORD or size > most:
        raise TrainerFailed("What came from the trainer is too long.")
    try:
        header = parse_json(kind, _exactly(stream, length).tobytes().decode())
    except ValueError as error:  # which a text that is no text is too
        raise TrainerFailed(f"What came from the trainer is {error}.") from None
    return header, _exactly(stream, size)


def _exactly(stream: IO[bytes], size: int) -> NDArray[np.uint8]:
    data = np.empty(size, np.uint8)
    view, done = data.data, 0
    use_huge_pages(view)
    while done < size:
        count = stream.readinto(view[done:])  # type: ignore[attr-defined]
        if not count:
            raise TrainerFailed("The trainer ended; see its last words in the agent's output.")
        done += count
    return data
