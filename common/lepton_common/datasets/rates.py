"""Daily series of several places, to forecast the next day: exchange rates, and made-up sales.

Training windows do not overlap, so that a day is in one record only: a record, which is the
privacy unit, is a whole month of a series. The test is the last part in time, day by day.
"""

import gzip
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from lepton_common.datasets.preparation import check_offered
from lepton_common.datasets.records import Dataset, Records
from lepton_common.datasets.source import MADE_UP, Source
from lepton_common.datasets.windows import Values, scaled, unscaled, windows
from lepton_common.errors import DataInvalid

COUNTRIES = (
    "australia", "britain", "canada", "switzerland", "china", "japan", "new-zealand", "singapore",
)  # fmt: skip
_FILE = "exchange_rate.txt.gz"
_SOURCE = Source(
    "exchange-rate",
    "https://raw.githubusercontent.com/laiguokun/multivariate-time-series-data/"
    "7f402f185cc2435b5e66aed13a3b560ed142e023/exchange_rate/",
    {_FILE: "6a4fbb561dcdee43f071a83badbeec9223a335552278348656738b556f1c2e9d"},
)
# US dollars for one of each country's, as far as they may move: public, like the rates.
_LOW = np.array([0.4, 1.0, 0.5, 0.4, 0.1, 0.005, 0.3, 0.4])
_HIGH = np.array([1.2, 2.2, 1.2, 1.4, 0.25, 0.015, 1.0, 1.0])
_MONTH = 30
_TEST_SHARE = 0.2
_MAGNIFIED = 30.0  # a sixtieth of the range is much for one day, and becomes 1

_MADE_UP_DAYS = 1240
_STORES = tuple(f"store-{number:02}" for number in range(1, 11))
_WEEKS = 4
_MOST_SALES = 200.0
NOISE = 0.1
"""Of made-up series, in scaled units: no forecast has a smaller root mean squared error."""


def exchange_rate(root: str | None, prepare: str) -> Dataset:
    """The next day's rate from thirty days before, for eight countries.

    A record is the 29 changes from day to day, magnified, and the last day's rate: the next day's
    is nearly the same, and thirty rates that are nearly the same would hide which of them it is.
    With `MADE_UP`, each day is 0.9 of the day before, scaled, plus `NOISE`.

    Args:
        root: see `Source.fetch`, or `MADE_UP`.
        prepare: ``public_ranges``: scaled by how far each rate may move.
    """
    check_offered("exchange_rate", prepare, {"public_ranges"})
    rates = _made_up_rates() if root == MADE_UP else _read(_SOURCE.fetch(root)[_FILE])
    levels = _forecast("exchange_rate", scaled(rates, _LOW, _HIGH), _MONTH, COUNTRIES)
    return replace(levels, train=_as_changes(levels.train), test=_as_changes(levels.test))


def demand(root: str | None, prepare: str) -> Dataset:
    """The next day's sales from four weeks before, at ten made-up stores; there is no file.

    Each store has days of the week of its own that sell well, the same every week, plus `NOISE`.
    """
    del root
    check_offered("demand", prepare, {"public_ranges"})
    rng = np.random.default_rng(0)
    week = rng.uniform(-0.6, 0.6, (7, len(_STORES)))
    days = week[np.arange(_MADE_UP_DAYS) % 7]
    sales = unscaled(days + rng.normal(0, NOISE, days.shape), 0.0, _MOST_SALES)
    return _forecast("demand", scaled(sales, 0.0, _MOST_SALES), 7 * _WEEKS, _STORES)


def _forecast(name: str, series: Values, width: int, sites: tuple[str, ...]) -> Dataset:
    """Makes a data set of series, shape [days, sites], each from -1 to 1."""
    first = round(len(series) * (1 - _TEST_SHARE))
    train, test = _records(series[:first], width, width + 1), _records(series[first:], width, 1)
    return Dataset(
        name,
        train=train,
        test=test,
        input_shape=(width, 1),
        classes=0,
        sites=sites,
        label_kind="number",
    )


def _records(series: Values, width: int, stride: int) -> Records:
    cut = [windows(column[:, None], width + 1, stride) for column in series.T]
    together = torch.from_numpy(np.concatenate(cut).astype(np.float32))
    return Records(
        together[:, :-1].contiguous(),
        together[:, -1, 0].contiguous(),
        origins=np.repeat(np.arange(len(cut)), [len(part) for part in cut]),
    )


def _as_changes(records: Records) -> Records:
    """Returns records with the change to each day in place of the day before; the last stays."""
    levels = records.features
    changes = (_MAGNIFIED * levels.diff(dim=1)).clamp(-1, 1)
    return replace(records, features=torch.cat([changes, levels[:, -1:]], 1))


def _read(path: Path) -> Values:
    fault = f"{path} should hold {len(COUNTRIES)} comma-separated columns of numbers, gzipped."
    try:
        lines = gzip.decompress(path.read_bytes()).decode("ascii").split()
        rates = np.array([line.split(",") for line in lines], np.float64)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise DataInvalid(fault) from error
    if rates.ndim != 2 or rates.shape[1] != len(COUNTRIES):
        raise DataInvalid(fault)
    return rates


def _made_up_rates() -> Values:
    rng = np.random.default_rng(0)
    noise = rng.normal(0, NOISE, (_MADE_UP_DAYS, len(COUNTRIES)))
    noise[0] /= np.sqrt(1 - 0.9**2)  # as wide as the days that follow
    days = [noise[0]]
    for step in noise[1:]:
        days.append(0.9 * days[-1] + step)
    return unscaled(np.array(days), _LOW, _HIGH)
