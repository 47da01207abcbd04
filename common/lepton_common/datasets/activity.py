"""What thirty people do, by a smartphone at the waist: UCI HAR's inertial signals.

Windows of 128 samples at 50 Hz of nine channels: acceleration of the body, angular velocity and
total acceleration, each in x, y and z. (D. Anguita et al.: A public domain dataset for human
activity recognition using smartphones, ESANN 2013.)
"""

import zipfile
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from lepton_common.datasets.preparation import check_offered
from lepton_common.datasets.records import Dataset, Records
from lepton_common.datasets.source import MADE_UP, Source
from lepton_common.datasets.windows import scaled
from lepton_common.errors import DataInvalid

ACTIVITIES = ("walking", "upstairs", "downstairs", "sitting", "standing", "laying")
TEST_PEOPLE = (2, 4, 9, 10, 12, 13, 18, 20, 24)
TRAIN_PEOPLE = tuple(person for person in range(1, 31) if person not in TEST_PEOPLE)
_FILE = "uci-har-inertial.npz"
_SOURCE = Source(
    "uci-har",
    None,
    {_FILE: "15bb509eb7f9e323aed79aa2dab0658b9e775cacb6bcb6860e0c6d0be0157b9f"},
)
_STEPS, _CHANNELS = 128, 9
# How a person moves at most, fixed beforehand: body in g, turns in rad/s, body and gravity in g.
_MOST = np.repeat([1.0, 3.0, 2.0], 3)

_WINDOWS_AN_ACTIVITY = 2
# Where gravity points while somebody does each activity, in the phone's axes.
_GRAVITY = np.array(
    [[1.0, 0.0, 0.0], [0.9, 0.4, 0.0], [0.9, -0.4, 0.0], [0.6, 0.0, 0.8], [1, 0, 0], [0, 1, 0]]
)
# Steps a second, and how hard they are in g; who sits, stands or lies takes none.
_PACE = np.array([2.0, 1.6, 2.4, 0.0, 0.0, 0.0])
_FORCE = np.array([0.4, 0.3, 0.5, 0.0, 0.0, 0.0])


def uci_har(root: str | None, prepare: str) -> Dataset:
    """Loads the windows; the published test people are in no site.

    With `MADE_UP`, as many people, twelve windows each: gravity points elsewhere in each activity
    but walking and standing, which only steps tell apart. All can be told.

    Args:
        root: see `Source.fetch`, or `MADE_UP`.
        prepare: ``public_ranges``: scaled by what is possible for a person.
    """
    check_offered("uci_har", prepare, {"public_ranges"})
    if root == MADE_UP:
        signals, labels, people = _made_up()
    else:
        signals, labels, people = _read(_SOURCE.fetch(root)[_FILE])
    everything = Records(
        torch.from_numpy(scaled(signals, -_MOST, _MOST).astype(np.float32)),
        torch.from_numpy(labels),
        units=people,
        origins=np.searchsorted(TRAIN_PEOPLE, people),
    )
    tests = np.isin(people, TEST_PEOPLE)
    test = everything.take(np.flatnonzero(tests))
    return Dataset(
        "uci_har",
        train=everything.take(np.flatnonzero(~tests)),
        test=Records(test.features, test.labels, units=test.units),
        input_shape=(_STEPS, _CHANNELS),
        classes=len(ACTIVITIES),
        unit="person",
        sites=tuple(f"person-{person:02}" for person in TRAIN_PEOPLE),
    )


def _read(path: Path) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    try:
        with np.load(path, allow_pickle=False) as file:
            signals, labels, people = file["x"], file["y"], file["subject"]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise DataInvalid(f"{path} should hold the arrays x, y and subject.") from error
    count = len(labels)
    if signals.shape != (count, _STEPS, _CHANNELS) or people.shape != (count,):
        raise DataInvalid(
            f"{path} should hold windows of shape {(_STEPS, _CHANNELS)}, each with a label and a "
            "person."
        )
    return signals.astype(np.float64), labels.astype(np.int64), people.astype(np.int64)


def _made_up() -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    rng = np.random.default_rng(0)
    each = np.repeat(np.arange(len(ACTIVITIES)), _WINDOWS_AN_ACTIVITY)
    labels, people = np.tile(each, 30), np.repeat(np.arange(1, 31), len(each))
    count = len(labels)
    times = np.arange(_STEPS) / 50.0
    phases = rng.uniform(0, 2 * np.pi, (count, 1))
    steps = _FORCE[labels, None] * np.sin(2 * np.pi * _PACE[labels, None] * times + phases)
    signals = rng.normal(0, 0.05, (count, _STEPS, _CHANNELS))
    signals[:, :, :6] += steps[:, :, None]
    # Everybody wears the phone a little differently.
    tilt = rng.normal(0, 0.05, (31, 3))[people]
    signals[:, :, 6:] += steps[:, :, None] + (_GRAVITY[labels] + tilt)[:, None]
    return signals, labels, people
