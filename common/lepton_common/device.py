"""Which device a site trains on."""

import re
from typing import TYPE_CHECKING

from lepton_common.errors import SettingsError

if TYPE_CHECKING:
    import torch

DEVICE = r"(auto|cpu|mps|cuda(:[0-9]{1,2})?)"
"""Regular expression of the device names that settings and requests may use."""


def pick_device(wanted: str) -> "torch.device":
    """Returns the device for ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.

    Raises:
        SettingsError: no such word, or this machine has no such device.
    """
    import torch

    if re.fullmatch(DEVICE, wanted) is None:
        raise SettingsError(f"train.device={wanted}: choose auto, cpu, cuda, cuda:N or mps.")
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if wanted == "auto":
        wanted = "cuda" if cuda else "mps" if mps else "cpu"
    device = torch.device(wanted)
    missing = (device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count()) or (
        device.type == "mps" and not mps
    )
    if missing:
        raise SettingsError(f"train.device={wanted}: this machine has none; choose auto or cpu.")
    return device
