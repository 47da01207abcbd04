"""The trainer as a process of its own, spoken to over its standard input and output.

It is started once and kept warm. Whatever it answers is taken for a stranger's word: it runs
models and reads data, and the agent, which holds the keys, does neither.
"""

import contextlib
import os
import resource
import subprocess
import sys
import threading
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import IO

import numpy as np
import torch
from numpy.typing import NDArray

from lepton_client.approved_models import MODELS, approvals_file
from lepton_client.connectors.report import Report
from lepton_client.data import SiteData
from lepton_client.isolation import bound, cut_off
from lepton_client.model_imports import build_approved_only
from lepton_client.rules import TrainerRules
from lepton_client.trainer import Described, Initial, LocalTrainer, Trained, Wanted
from lepton_client.trainer_wire import NOTHING, Answer, Call, Setup, receive, send
from lepton_client.training.conformance import DOUBLE, OPACUS, OURS, SINGLE, Conformance
from lepton_client.training.likeness import FINE, SMALLEST
from lepton_common import errors
from lepton_common.arrays import Vector
from lepton_common.errors import (
    ConnectorMissing,
    DataError,
    DataMissing,
    LeptonError,
    TrainerFailed,
)
from lepton_common.messages import TrainRequest
from lepton_common.models.bases import BASES, look_in
from lepton_common.privacy.plan import PrivacyPlan
from lepton_common.secagg.ring import Integers

_HASH_BYTES = 16
_MOST_PEOPLE = 1 << 28
_LARGEST_MODEL = 1 << 32
_LARGEST_CALL = 1 << 36
# What a trainer needs to know of the agent's surroundings; a passphrase may stand there too.
_ENVIRONMENT = ("PATH", "HOME", "LANG", "TMPDIR", "LEPTON_CACHE", "LD_LIBRARY_PATH", "CUDA_HOME",
                "GOMP_SPINCOUNT", "OMP_NUM_THREADS", "PYTHONPATH", "PYTHONHASHSEED",
                "XDG_CACHE_HOME")  # fmt: skip
# How often PyTorch's threads look for each other before they let go of a core: as OpenMP has it
# where it knows that others work on the machine too. Else three trainers on two cores take four
# times the time, which they spend looking.
_LOOKS = "1000"


class RemoteError(Exception):
    """What was raised in the trainer's process, as the text of its trace; never leaves the site."""


class TrainerProcess:
    """A `lepton_client.trainer.Trainer` in a process of its own, started when it is needed."""

    def __init__(
        self, name: str, data: SiteData, folder: Path, secret: bytes, rules: TrainerRules
    ) -> None:
        """Starts nothing yet.

        Args:
            name: of the site.
            data: which records are its own.
            folder: the site's.
            secret: key of the hashes by which its people are known.
            rules: how the process is confined.

        Raises:
            IsolationUnavailable: this system cannot confine it so.
        """
        self._setup = Setup(
            name=name,
            data=data,
            folder=str(folder.resolve()),
            secret=secret.hex(),
            threads=rules.threads,
            memory_gib=rules.memory_gib,
        )
        self._words = _command(rules, folder.resolve(), data)
        self._reads = _shown(rules, folder.resolve(), data)
        self._gpus = rules.gpus
        self._variables = [*_ENVIRONMENT, *data.variables]
        self._process: subprocess.Popen[bytes] | None = None
        self._changing = threading.Lock()

    def describe(self) -> Described:
        """Says what is there; see `Trainer`."""
        answer, _ = self._call(Call(what="describe"))
        if answer.described is None:
            raise TrainerFailed("The trainer does not say what it finds.")
        return answer.described

    def initial(self, wanted: Wanted) -> Initial:
        """Builds the model; see `Trainer`."""
        answer, found = self._call(Call(what="initial", wanted=wanted), most=_LARGEST_MODEL)
        if answer.layout is None or found.nbytes % 4:
            raise TrainerFailed("The trainer does not say which model it builds.")
        return Initial(answer.layout, found.view(np.float32))

    def people(self) -> frozenset[bytes]:
        """Reads the records; see `Trainer`."""
        _, found = self._call(Call(what="people"), most=_MOST_PEOPLE * _HASH_BYTES)
        if len(found) % _HASH_BYTES:
            raise TrainerFailed("The trainer's hashes of people are not whole.")
        data = found.tobytes()
        return frozenset(data[i : i + _HASH_BYTES] for i in range(0, len(data), _HASH_BYTES))

    def device(self, request: TrainRequest) -> str:
        """Looks for the device; see `Trainer`."""
        return self._call(Call(what="device", request=request))[0].device

    def conformance(self, request: TrainRequest) -> Conformance:
        """Compares the engine with Opacus; see `Trainer`."""
        answer, _ = self._call(Call(what="conformance", request=request))
        known = {"engine": (OURS, OPACUS), "precision": (SINGLE, DOUBLE), "step": (FINE, SMALLEST)}
        if any(getattr(answer, name) not in values for name, values in known.items()):
            raise TrainerFailed("The trainer names an engine or a precision that there is not.")
        return Conformance(
            answer.engine, answer.difference, answer.precision, answer.together, answer.step
        )

    def train(self, request: TrainRequest, received: Vector) -> Trained:
        """Trains without differential privacy; see `Trainer`."""
        call, size = Call(what="train", request=request), request.answered(len(received))
        answer, found = self._call(call, received, most=4 * size)
        try:
            loss = float.fromhex(answer.loss)
        except ValueError:
            raise TrainerFailed("The trainer's loss is no number.") from None
        return Trained(_update(found, size), loss, answer.records)

    def train_privately(self, request: TrainRequest, received: Vector, plan: PrivacyPlan) -> Vector:
        """Trains under a plan; see `Trainer`."""
        call = Call(what="train_privately", request=request, plan=plan)
        size = request.answered(len(received))
        return _update(self._call(call, received, most=4 * size)[1], size)

    def noised_sum(self, request: TrainRequest, received: Vector, plan: PrivacyPlan) -> Integers:
        """Sums under a plan; see `Trainer`."""
        call = Call(what="noised_sum", request=request, plan=plan)
        most = 8 * (request.answered(len(received)) + 1)
        _, found = self._call(call, received, most=most)
        if found.nbytes not in (most, most - 8):
            raise TrainerFailed("The trainer's sum has not the length of the model.")
        return found.view(np.int64)

    def stop(self) -> None:
        """Ends the process, whatever it does; the next call starts another."""
        with self._changing:
            process, self._process = self._process, None
            if process is not None:
                _close(process)

    def _call(
        self, call: Call, blob: NDArray[np.generic] = NOTHING, most: int = 0
    ) -> tuple[Answer, NDArray[np.uint8]]:
        process = self._running()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            send(process.stdin, call, blob)
            # An error's trace may be longer than an answer.
            answer, found = receive(process.stdout, Answer, max(most, 1 << 20))
        except (OSError, ValueError, TrainerFailed) as error:
            self.stop()
            raise TrainerFailed("The trainer ended; its last words stand above.") from error
        if answer.error is not None:
            raise _error(answer) from RemoteError(found.tobytes().decode(errors="replace"))
        if found.nbytes > most:
            self.stop()
            raise TrainerFailed("The trainer answers more than it was asked.")
        return answer, found

    def _running(self) -> subprocess.Popen[bytes]:
        with self._changing:
            if self._process is not None and self._process.poll() is not None:
                _close(self._process)
                self._process = None
            if self._process is None:
                for path in self._reads:
                    if not _is_there(path):
                        raise DataMissing(f"{path}, which data in site.yaml names, is not there.")
                environment = {"GOMP_SPINCOUNT": _LOOKS} | {
                    n: v for n in self._variables if (v := os.environ.get(n)) is not None
                }
                if self._gpus is not None:
                    environment["CUDA_VISIBLE_DEVICES"] = self._gpus
                self._process = subprocess.Popen(  # noqa: S603
                    self._words,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    env=environment,
                    start_new_session=True,  # a Ctrl-C is the agent's to handle
                )
                assert self._process.stdin is not None
                with contextlib.suppress(OSError):  # the call finds out
                    send(self._process.stdin, self._setup)
            return self._process


def _close(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout):
        assert stream is not None
        with contextlib.suppress(OSError):  # what was not sent is lost
            stream.close()


def _command(rules: TrainerRules, folder: Path, data: SiteData) -> list[str]:
    words = [*rules.launcher, sys.executable, "-m", "lepton_client.trainer_process"]
    if rules.isolation == "process":
        return bound(words)
    keep = data.kept(folder)
    if approvals_file(folder).exists():  # the agent starts another trainer when that changes
        keep.append(MODELS)
    if (folder / BASES).is_dir():  # likewise
        keep.append(BASES)
    return cut_off(words, folder, keep)


def _shown(rules: TrainerRules, folder: Path, data: SiteData) -> list[Path]:
    """Returns what must be there to be shown to a process that is cut off from the rest."""
    return [folder / n for n in data.kept(folder)] if rules.isolation != "process" else []


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # behind a folder that may not be read
        return False


def _update(found: NDArray[np.uint8], size: int) -> Vector:
    update = found.view(np.float32)
    if update.shape != (size,) or not np.isfinite(update).all():
        raise TrainerFailed("The trainer's update is not finite, or not of the model's length.")
    return update


def _error(answer: Answer) -> Exception:
    """Returns an error of the name that was answered; its text is known where data is at fault."""
    assert answer.error is not None, "the caller has asked"
    name, kind = answer.error, getattr(errors, answer.error, None)
    if not (isinstance(kind, type) and issubclass(kind, LeptonError)):
        kind = type(name, (Exception,), {})
    if answer.report is not None and issubclass(kind, DataError | ConnectorMissing):
        return answer.report.error_of(kind)
    error: Exception = kind("See errors.log.")
    return error


def serve(inward: IO[bytes], outward: IO[bytes]) -> None:
    """Answers calls until nobody asks any more."""
    setup, _ = receive(inward, Setup, 0)
    if setup.threads is not None:
        torch.set_num_threads(setup.threads)
    if setup.memory_gib is not None:
        most = int(setup.memory_gib * 2**30)
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    secret = bytes.fromhex(setup.secret)
    build_approved_only(Path(setup.folder))
    look_in(Path(setup.folder) / BASES)
    trainer = LocalTrainer(setup.name, setup.data, Path(setup.folder), secret)
    while True:
        try:
            call, blob = receive(inward, Call, _LARGEST_CALL)
        except TrainerFailed:
            return
        try:
            answer, result = _answer(trainer, call, blob.view(np.float32))
        except Exception as error:
            trace = "".join(traceback.format_exception(error))[-(1 << 19) :]
            answer = Answer(error=type(error).__name__, report=Report.of(error))
            result = np.frombuffer(trace.encode(), np.uint8)
        send(outward, answer, result)
        del blob, result  # before the next model comes


def _answer(
    trainer: LocalTrainer, call: Call, received: Vector
) -> tuple[Answer, NDArray[np.generic]]:
    if call.what == "describe":
        return Answer(described=trainer.describe()), NOTHING
    if call.what == "people":
        return Answer(), np.frombuffer(b"".join(sorted(trainer.people())), np.uint8)
    if call.what == "initial":
        assert call.wanted is not None
        model = trainer.initial(call.wanted)
        return Answer(layout=model.layout), model.vector
    assert call.request is not None
    if call.what == "device":
        return Answer(device=trainer.device(call.request)), NOTHING
    if call.what == "conformance":
        found = trainer.conformance(call.request)
        return Answer(**asdict(found)), NOTHING
    if call.what == "train":
        trained = trainer.train(call.request, received)
        return Answer(loss=trained.loss.hex(), records=trained.records), trained.update
    assert call.plan is not None
    if call.what == "train_privately":
        return Answer(), trainer.train_privately(call.request, received, call.plan)
    return Answer(), trainer.noised_sum(call.request, received, call.plan)


def main() -> None:
    """Serves on standard input and output; whatever prints, prints to standard error."""
    inward, outward = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    with contextlib.suppress(BrokenPipeError):
        serve(inward, outward)


if __name__ == "__main__":
    main()
