"""Models that begin from a trained one, the base, and which of their weights are trained further.

In a run such a model is called ``from.SHA256.LEARNS.MODEL``: the digest is that of the base's file,
so whoever signs, approves or compares the name speaks of these very weights. A base is data, never
code: safetensors, read by names and shapes. Where all weights are trained further, they travel
with each round's model as ever, and only who begins the run needs the file. What stays frozen
never travels: each side has the file, where its operator has put it, and the layout's digest says
that all have the same. So a large base is not sent each round, or to anybody who did not ask for
it, and no message brings a site anything that it would have to keep.
"""

import hashlib
import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from lepton_common.cache import cache_folder
from lepton_common.durable import write_atomic
from lepton_common.errors import BaseMisfit, BaseMissing, BaseUnreadable

if TYPE_CHECKING:
    import torch
    from torch import nn

PREFIX, ALL, HEAD, LORA = "from.", "all", "head", "lora"
LEARNS = (ALL, HEAD, LORA)
BASES = "bases"
_NAME = re.compile(rf"from\.([0-9a-f]{{64}})\.({'|'.join(LEARNS)})\.(.+)")
_MOST_SAID = 3


class Based(NamedTuple):
    """What the name of a model with a base says.

    Attributes:
        sha256: of the base's file.
        learns: ``all``; ``head``: the last layer alone; or ``lora``: what the model itself trains
            beside weights that it freezes.
        model: the model's own name.
    """

    sha256: str
    learns: str
    model: str

    @property
    def name(self) -> str:
        """What a run calls it."""
        return f"{PREFIX}{self.sha256}.{self.learns}.{self.model}"

    @property
    def frozen(self) -> bool:
        """Whether weights of the base stay as they are, so that each side needs its file."""
        return self.learns != ALL


def based(name: str) -> Based | None:
    """Returns what a model's name says, where it has a base."""
    found = _NAME.fullmatch(name)
    return Based(*found.groups()) if found else None


def without_base(name: str) -> str:
    """Returns a model's own name."""
    found = based(name)
    return found.model if found else name


def fault_in(name: str) -> str | None:
    """Returns what is wrong with a name that begins with ``from.``; None if it can be read."""
    found = based(name)
    if found is not None and not found.model.startswith(PREFIX):
        return None
    return f"'{name[:80]}' is no from.SHA256.LEARNS.MODEL; say start=FILE and learn={ALL} or so."


def look_in(folder: Path | None) -> None:
    """Has this process find bases in a folder, and nowhere else; None: in the user's cache."""
    global _folder
    _folder = folder


_folder: Path | None = None


def keep_base(data: bytes, folder: Path | None = None) -> Path:
    """Puts a base where models that begin from it find it, under its digest; returns the file.

    Args:
        data: of a safetensors file.
        folder: where; None: where this process looks.

    Raises:
        BaseUnreadable: see `read_base`.
    """
    _tensors(data)
    path = _path(hashlib.sha256(data).hexdigest(), folder)
    if not path.exists() or path.read_bytes() != data:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, data, mode=0o444)
    return path


def check_kept(base: Based, folder: Path) -> None:
    """Looks for a base without reading it.

    Raises:
        BaseMissing: it is not there.
    """
    if not _path(base.sha256, folder).is_file():
        raise _missing(base.sha256)


def read_base(sha256: str) -> "dict[str, torch.Tensor]":
    """Returns the tensors of a base by name, float32.

    Raises:
        BaseMissing: it is not here.
        BaseUnreadable: the file has other bytes than its name says, or is no safetensors file of
            float32 numbers between -100 and 100.
    """
    try:
        data = _path(sha256, None).read_bytes()
    except OSError:
        raise _missing(sha256) from None
    if hashlib.sha256(data).hexdigest() != sha256:
        raise BaseUnreadable(f"The base {sha256[:16]}... has other bytes than that; fetch it anew.")
    return _tensors(data)


def begin(module: "nn.Module", base: Based, *, initial: bool) -> "nn.Module":
    """Freezes what is not trained further, and writes a base's weights where they belong.

    All that the file holds must have its place, and all that stays frozen must be in the file. The
    last layer begins as the module has it, where it is all that is trained or has another shape.

    Args:
        module: built by its own name; changed.
        base: what the model's name says.
        initial: whether what is trained shall have the base's weights too, to begin a run with.

    Raises:
        BaseMissing, BaseUnreadable: see `read_base`.
        BaseMisfit: it is for another model, or there is nothing that could be frozen.
    """
    import torch

    last = _last_layer(module)
    if base.learns == HEAD:
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(name in last)
    own = dict(module.named_parameters())
    frozen = {name for name, parameter in own.items() if not parameter.requires_grad}
    if base.frozen != bool(frozen):
        raise BaseMisfit(
            f"learn={base.learns} does not suit model={base.model}: "
            + (
                "it freezes no weights; learn=all."
                if base.frozen
                else "it freezes some; learn=lora."
            )
        )
    if not base.frozen and not initial:
        return module
    found = read_base(base.sha256)
    fresh = base.learns == HEAD or any(
        name in found and found[name].shape != own[name].shape for name in last
    )
    wanted = {name: own[name] for name in own if not (fresh and name in last)}
    held = {name: values for name, values in found.items() if not (fresh and name in last)}
    if faults := [*_misfits(wanted, held, frozen)]:
        more = f" and {len(faults) - _MOST_SAID} more" if len(faults) > _MOST_SAID else ""
        raise BaseMisfit(
            f"The base {base.sha256[:16]}... is not for model={base.model}: "
            f"{'; '.join(faults[:_MOST_SAID])}{more}. Choose the model that it was trained as."
        )
    with torch.no_grad():
        for name, values in held.items():
            if initial or name in frozen:
                own[name].copy_(values)
    return module


def _misfits(
    wanted: "dict[str, nn.Parameter]", held: "dict[str, torch.Tensor]", frozen: set[str]
) -> list[str]:
    """Returns, in words, which tensors of a base do not fit the weights that are to have them."""
    faults = [
        f"it has {name} of shape {tuple(values.shape)}, the model has none"
        if name not in wanted
        else f"its {name} has shape {tuple(values.shape)}, the model's {tuple(wanted[name].shape)}"
        for name, values in sorted(held.items())
        if name not in wanted or values.shape != wanted[name].shape
    ]
    faults += [f"it lacks {name}, which stays frozen" for name in sorted(frozen - held.keys())]
    if not held.keys() & wanted.keys():
        faults.append("it has none of the model's weights")
    return faults


def _last_layer(module: "nn.Module") -> set[str]:
    """Returns the names of the weights of the layer that was registered last: the head."""
    last: set[str] = set()
    for path, layer in module.named_modules():
        own = {name for name, _ in layer.named_parameters(path, recurse=False)}
        last = own or last
    return last


def _tensors(data: bytes) -> "dict[str, torch.Tensor]":
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load

    from lepton_common.privacy.plan import LARGEST_WEIGHT

    try:
        tensors = load(data)
    except (SafetensorError, ValueError, KeyError, OverflowError):
        raise BaseUnreadable(
            "A base is a safetensors file; a pickled one (.pt, .bin) is not read, since that would "
            "run code: convert it first."
        ) from None
    for name, values in tensors.items():
        if values.dtype != torch.float32:
            kind = str(values.dtype).removeprefix("torch.")
            raise BaseUnreadable(f"{name} of the base is {kind}; convert it to float32.")
        # As for the weights that a server sends: beyond it, rounding would tell too much.
        if values.numel() and not float(values.abs().max()) <= LARGEST_WEIGHT:
            raise BaseUnreadable(
                f"A weight in {name} of the base is not finite or beyond {LARGEST_WEIGHT:g}."
            )
    return tensors


def _path(sha256: str, folder: Path | None) -> Path:
    return (folder or _folder or cache_folder() / BASES) / f"{sha256}.safetensors"


def _missing(sha256: str) -> BaseMissing:
    return BaseMissing(
        f"The base {sha256[:16]}... is not here; put its file where this machine looks for it: "
        "'lepton model base FILE', at a site 'lepton site model base SITE FILE'."
    )
