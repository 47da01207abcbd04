"""The trained model that a run begins from: a file, or what a finished run has learned."""

from pathlib import Path

from lepton_common.errors import BaseMissing, RunNotFound, SettingsError
from lepton_common.models.bases import LEARNS, Based, keep_base
from lepton_common.names import unknown


def begin_from(start: str, learn: str, model: str, runs: str) -> str:
    """Returns what a run calls a model that begins from another; that one is kept on this machine.

    Args:
        start: a safetensors file, or a run, by its folder or name.
        learn: which weights are trained further; see `lepton_common.models.bases`.
        model: the model's own name.
        runs: where run folders are.

    Raises:
        SettingsError: there is no such way to learn.
        BaseMissing, BaseUnreadable: there is no such model, or it cannot be read.
    """
    if learn not in LEARNS:
        raise SettingsError(unknown("learn", learn, LEARNS))
    return Based(keep_base(base_of(start, runs)).stem, learn, model).name


def base_of(start: str, runs: str) -> bytes:
    """Returns a trained model as a safetensors file, of all its weights.

    Raises:
        BaseMissing: there is no such file, and no run that has a model.
    """
    path = Path(start)
    if path.is_file():
        return path.read_bytes()
    # Only for this: it brings all that reads a run's evidence, and PyTorch.
    from lepton_cli.run import find_run

    try:
        run = find_run(start, runs)
    except RunNotFound:
        raise BaseMissing(
            f"start={start} is neither a safetensors file nor a run; 'lepton runs' lists them."
        ) from None
    if not run.folder.final_model.exists():
        raise BaseMissing(f"The run {run.name} has no model yet; resume it, or choose another.")
    module = run.model()
    if all(parameter.requires_grad for parameter in module.parameters()):
        return run.folder.final_model.read_bytes()
    # What never travelled is in no file of the run, and is part of what it has learned.
    from safetensors.torch import save

    return save({name: values.detach() for name, values in module.named_parameters()})
