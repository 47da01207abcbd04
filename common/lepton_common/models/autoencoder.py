"""An autoencoder: a record through a narrow layer and back, to see which records are unusual."""

import math

from torch import nn

from lepton_common.errors import SettingsError

_MOST_HIDDEN, _MOST_NARROW = 64, 16


def autoencoder(input_shape: tuple[int, ...], outputs: int) -> nn.Module:
    """Tanh layers of up to 64, 16 and 64 units, fewer for records of fewer numbers.

    Raises:
        SettingsError: the outputs are not one for each number of a record.
    """
    width = math.prod(input_shape)
    if outputs != width:
        raise SettingsError(
            f"model=autoencoder gives back each of a record's {width} numbers, not {outputs} "
            "outputs; take a task that reconstructs its records, or choose model=mlp."
        )
    hidden = max(1, min(_MOST_HIDDEN, width))
    narrow = max(1, min(_MOST_NARROW, width // 3))
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(width, hidden),
        nn.Tanh(),
        nn.Linear(hidden, narrow),
        nn.Tanh(),
        nn.Linear(narrow, hidden),
        nn.Tanh(),
        nn.Linear(hidden, outputs),
    )
