"""Everything a run needs to go on after a crash, in one atomically written file."""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from lepton_common.arrays import Layout, Vector
from lepton_common.durable import write_atomic
from lepton_common.errors import CheckpointUnreadable
from lepton_server.strategies.catalog import AVERAGE

_FORMAT = "lepton-checkpoint-1"
_MODEL = "model"


@dataclass(frozen=True)
class Checkpoint:
    """The state after a finished round.

    Attributes:
        round: the finished round; 0 before the first.
        model: float32, shape [d].
        history: one plain round report a round.
        strategy: the strategy's own state, by name.
    """

    round: int
    model: Vector
    history: list[dict[str, Any]] = field(default_factory=list)
    strategy: dict[str, NDArray[np.generic]] = field(default_factory=dict)

    @property
    def result(self) -> Vector:
        """The model that is judged and published: the average where there is one, shape [d]."""
        return self.strategy.get(AVERAGE, self.model).astype(np.float32, copy=False)


def save_checkpoint(path: Path, state: Checkpoint) -> None:
    """Replaces the checkpoint; after a crash there is the old one or the new one."""
    arrays = {_MODEL: state.model, **{f"strategy.{k}": v for k, v in state.strategy.items()}}
    facts = {
        "format": _FORMAT,
        "round": str(state.round),
        "history": json.dumps(state.history),
    }
    write_atomic(path, save(arrays, {**facts, "sha256": _digest(arrays, facts)}))


def load_checkpoint(path: Path, layout: Layout) -> Checkpoint:
    """Reads a checkpoint of a model of this layout.

    Raises:
        CheckpointUnreadable: damaged, of another format, or of another model.
    """
    try:
        with safe_open(path, framework="np") as file:
            facts = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        written = facts.pop("sha256")
        if facts["format"] != _FORMAT or written != _digest(arrays, facts):
            raise ValueError
        model = arrays.pop(_MODEL)
        if model.dtype != np.float32 or model.shape != (layout.size,):
            raise ValueError
        return Checkpoint(
            round=int(facts["round"]),
            model=model,
            history=json.loads(facts["history"]),
            strategy={name.removeprefix("strategy."): value for name, value in arrays.items()},
        )
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise CheckpointUnreadable(
            f"The checkpoint {path} is damaged or of another model; start a new run."
        ) from error


def _digest(arrays: dict[str, NDArray[np.generic]], facts: dict[str, str]) -> str:
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name in sorted(arrays):
        digest.update(f"{name}:{arrays[name].dtype}:{arrays[name].shape};".encode())
        digest.update(np.ascontiguousarray(arrays[name]).data)
    return digest.hexdigest()
