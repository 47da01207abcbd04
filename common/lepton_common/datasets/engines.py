"""Turbofan engines until they fail: C-MAPSS FD001, for remaining life and for anomalies.

A window is 30 cycles of the 14 sensors that change at all. (A. Saxena et al.: Damage propagation
modeling for aircraft engine run-to-failure simulation, PHM 2008.)
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from lepton_common.datasets.preparation import check_offered
from lepton_common.datasets.records import Dataset, Records
from lepton_common.datasets.source import MADE_UP, Source
from lepton_common.datasets.windows import Values, scaled, unscaled, windows
from lepton_common.errors import DataInvalid

MOST_LIFE = 125
"""Cycles that count as long: before, nothing of the later failure is to be seen."""
WORN_LIFE = 30
"""Cycles before its failure from which on an engine is an anomaly."""
WIDTH = 30
_FLEETS = 10
_TRAIN, _TEST, _LIVES = "train_FD001.txt", "test_FD001.txt", "RUL_FD001.txt"
_SOURCE = Source(
    "cmapss-fd001",
    "https://raw.githubusercontent.com/alireza-javanmardi/conformal-RUL-intervals/"
    "37e450ac8b656229d44aed3ac39dcf85ea11b86c/data/CMAPSS/",
    {
        _TRAIN: "963b5e22825b34d8b21c69e1aeb4af3e647050eb672ee8834ba4b5d91d2de0f8",
        _TEST: "3cda7109ce17bafb5443f2ac926cfcf88154b941b8c4cf95eb55d1ddd6f52851",
        _LIVES: "a19c8ec94931949d0485bdc35118206e9c81c4547b422efb9cf86f4ceddbceca",
    },
)
_COLUMNS, _BEFORE_SENSORS = 26, 4  # engine, cycle and three settings, then sensors from number 1
SENSORS = (2, 3, 4, 7, 8, 9, 11, 12, 13, 14, 15, 17, 20, 21)
# The engine type's working ranges at sea level, rounded outwards; the engines are simulated.
_LOW, _HIGH = np.array(
    [
        [640, 1565, 1380, 549, 2387, 9000, 46, 518, 2387, 8090, 8.3, 387, 38, 22.8],
        [646, 1620, 1445, 557, 2389, 9250, 49, 524, 2389, 8300, 8.6, 401, 40, 23.8],
    ]
)

_MADE_UP_ENGINES = 50
_MADE_UP_STRIDE = 10
_MADE_UP_NOISE = 0.2


@dataclass(frozen=True)
class _Engines:
    """Engines: each one's number, sensors, shape [cycles, 14], and cycles left after the last."""

    series: dict[int, Values]
    left: dict[int, int]

    def cut(self, stride: int) -> tuple[Values, NDArray[np.int64], NDArray[np.int64]]:
        """Returns windows, shape [n, 30, 14], and the engine and cycles left of each."""
        cut, engines, left = [], [], []
        for engine, series in self.series.items():
            part = windows(scaled(series, _LOW, _HIGH), WIDTH, stride)
            ends = WIDTH + stride * np.arange(len(part))
            cut.append(part)
            engines.append(np.full(len(part), engine))
            left.append(len(series) - ends + self.left[engine])
        return np.concatenate(cut), np.concatenate(engines), np.concatenate(left)


def cmapss(root: str | None, prepare: str) -> Dataset:
    """Cycles left to each engine, at most `MOST_LIFE`; judged by the end of each test engine.

    With `MADE_UP`, fifty engines of either sort: each sensor is the cycles left, scaled, with
    noise of a fifth of that scale, so that the last cycle's mean is right to 0.2 / sqrt(14).

    Args:
        root: see `Source.fetch`, or `MADE_UP`.
        prepare: ``public_ranges``: scaled by the engine type's ranges.
    """
    check_offered("cmapss", prepare, {"public_ranges"})
    train, test, stride = _engines(root)
    features, engines, left = train.cut(stride)
    ends, tested, test_left = test.cut(1)
    last = np.flatnonzero(np.append(np.diff(tested) != 0, True))
    return Dataset(
        "cmapss",
        _records(features, _life(left), engines, fleets=len(train.series)),
        _records(ends[last], _life(test_left[last]), tested[last]),
        input_shape=(WIDTH, len(SENSORS)),
        classes=0,
        unit="engine",
        sites=tuple(f"fleet-{number:02}" for number in range(1, _FLEETS + 1)),
        label_kind="number",
    )


def machine_anomaly(root: str | None, prepare: str) -> Dataset:
    """Windows of healthy engines to learn from; of test engines, healthy and worn ones to tell.

    An engine is healthy with more than `MOST_LIFE` cycles left and worn with at most `WORN_LIFE`;
    windows between are left out. With `MADE_UP`, as `cmapss`: worn engines are far beyond noise.

    Args:
        root: see `Source.fetch`, or `MADE_UP`.
        prepare: ``public_ranges``: scaled by the engine type's ranges.
    """
    check_offered("machine_anomaly", prepare, {"public_ranges"})
    train, test, stride = _engines(root)
    features, engines, left = train.cut(stride)
    healthy = left > MOST_LIFE
    parts, tested, test_left = test.cut(stride)
    told = (test_left > MOST_LIFE) | (test_left <= WORN_LIFE)
    normal = _marked(features[healthy], np.zeros(int(healthy.sum())))
    return Dataset(
        "machine_anomaly",
        _records(features[healthy], normal, engines[healthy], fleets=len(train.series)),
        _records(parts[told], _marked(parts[told], test_left[told] <= WORN_LIFE), tested[told]),
        input_shape=(WIDTH, len(SENSORS)),
        classes=0,
        unit="engine",
        sites=tuple(f"fleet-{number:02}" for number in range(1, _FLEETS + 1)),
        label_kind="record",
    )


def _life(left: NDArray[np.int64]) -> Values:
    return scaled(left.astype(np.float64), 0.0, MOST_LIFE)


def _marked(features: Values, marks: NDArray[np.float64] | NDArray[np.bool_]) -> Values:
    return np.column_stack([marks, features.reshape(len(features), -1)])


def _records(
    features: Values, labels: Values, engines: NDArray[np.int64], fleets: int = 0
) -> Records:
    """Makes records; those of ``fleets`` engines, numbered from 1, are in fleets of neighbours."""
    return Records(
        torch.from_numpy(features.astype(np.float32)),
        torch.from_numpy(labels.astype(np.float32)),
        units=engines,
        origins=(engines - 1) * _FLEETS // fleets if fleets else None,
    )


def _engines(root: str | None) -> tuple[_Engines, _Engines, int]:
    """Returns training engines, which failed, and test engines, and the stride of windows."""
    if root == MADE_UP:
        rng = np.random.default_rng(0)
        return _made_up(rng, 0, 1), _made_up(rng, 5, 141), _MADE_UP_STRIDE
    paths = _SOURCE.fetch(root)
    train, test = _read(paths[_TRAIN]), _read(paths[_TEST])
    lives = _numbers(paths[_LIVES], 1)[:, 0].astype(np.int64)
    if len(lives) != len(test):
        raise DataInvalid(
            f"{paths[_LIVES]} should hold a number for each of the {len(test)} engines in {_TEST}."
        )
    return (
        _Engines(train, dict.fromkeys(train, 0)),
        _Engines(test, dict(zip(test, lives.tolist(), strict=True))),
        1,
    )


def _read(path: Path) -> dict[int, Values]:
    table = _numbers(path, _COLUMNS)
    engines, sensors = table[:, 0].astype(np.int64), np.array(SENSORS) + _BEFORE_SENSORS
    return {int(engine): table[engines == engine][:, sensors] for engine in np.unique(engines)}


def _numbers(path: Path, columns: int) -> Values:
    try:
        lines = path.read_text(encoding="ascii").splitlines()
        table = np.array([line.split() for line in lines], np.float64)
    except ValueError as error:
        raise DataInvalid(f"{path} should hold {columns} columns of numbers.") from error
    if table.ndim != 2 or table.shape[1] != columns:
        raise DataInvalid(f"{path} should hold {columns} columns of numbers.")
    return table


def _made_up(rng: np.random.Generator, least_left: int, most_left: int) -> _Engines:
    series, left = {}, {}
    for engine in range(1, _MADE_UP_ENGINES + 1):
        whole = int(rng.integers(160, 240))
        left[engine] = min(int(rng.integers(least_left, most_left)), whole - WIDTH)
        ahead = whole - 1 - np.arange(whole - left[engine])
        noise = rng.normal(0, _MADE_UP_NOISE, (len(ahead), len(SENSORS)))
        # Half of the whole range, so that noise is hardly ever clipped.
        series[engine] = unscaled((_life(ahead)[:, None] + noise) / 2, _LOW, _HIGH)
    return _Engines(series, left)
