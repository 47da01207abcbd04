"""What a site's updates have not sent yet, where a round sums some of the coordinates only.

Error feedback (Stich et al. 2018): what was left out is added to the next update. It stays in
the site's folder, beside the data that it comes from, and never leaves but through later rounds.
"""

from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from lepton_common.arrays import Vector
from lepton_common.durable import write_atomic
from lepton_common.messages import TrainRequest
from lepton_common.summing import bind_privacy


class Residuals:
    """The residuals of a site's runs, one file each."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def before(self, request: TrainRequest, size: int) -> Vector:
        """Returns the residual that a round adds to its update, float32, shape [size].

        A round that is tried again, on the same model, gets what its first attempt got. One that
        cannot be read is begun anew: it costs accuracy, never privacy.
        """
        try:
            with safe_open(self._path(request), framework="numpy") as file:
                kept = file.metadata() or {}
                again = kept.get("model") == request.model_digest
                residual: Vector = file.get_tensor("before" if again else "after")
        except (OSError, SafetensorError):
            return np.zeros(size, np.float32)
        # What was trained without DP must never ride in what claims it.
        fits = kept.get("of") == _of(request)
        fits = fits and residual.shape == (size,) and residual.dtype == np.float32
        fits = fits and bool(np.isfinite(residual).all())
        return residual if fits else np.zeros(size, np.float32)

    def keep(self, request: TrainRequest, before: Vector, after: Vector) -> None:
        """Keeps the residual from before and after a round; on disk when this returns."""
        self._folder.mkdir(mode=0o700, exist_ok=True)
        about = {"model": request.model_digest, "of": _of(request)}
        data = save({"before": before, "after": after}, about)
        write_atomic(self._path(request), data, mode=0o600)

    def _path(self, request: TrainRequest) -> Path:
        return self._folder / f"{request.run}.safetensors"


def _of(request: TrainRequest) -> str:
    """Returns what must be the same for a residual to belong to a request."""
    share = request.masked.coordinates if request.masked else 1.0
    privacy = bind_privacy(request.privacy).decode()
    return f"{request.task} {request.model} {request.layout} {share} {privacy}"
