"""Heart disease at four hospitals, prepared exactly as FLamby's Fed-Heart-Disease.

Columns 10 to 12 are dropped, then every row with a missing value; chest pain and resting ECG
become dummies without their first level: 13 features, 740 patients, 486 for training.
(J. Ogier du Terrail et al.: FLamby, NeurIPS Datasets and Benchmarks, 2022.)
"""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from lepton_common.datasets.preparation import check_offered
from lepton_common.datasets.records import Dataset, Records
from lepton_common.datasets.source import MADE_UP, Source
from lepton_common.errors import DataInvalid

HOSPITALS = ("cleveland", "hungarian", "switzerland", "va")
_SUMS = (
    "a74b7efa387bc9d108d7d0115d831fe9b414b29ae7124f331b622b4efa0427c8",
    "d1ad108f785768cd3d7e82dc522e6f5a61eea93cccfb3a46ee8076f73fc3d796",
    "834a405ccf5b66ab4056bb77794adc8df0b7125186454c0a1d002d33c6c3b314",
    "e7c93d8d0d2acdadfa4c5e8de768e2191e7f618b952e29623f1f0d5949ff6b8f",
)
_SOURCE = Source(
    "heart-disease",
    "https://archive.ics.uci.edu/ml/machine-learning-databases/heart-disease/",
    {f"processed.{name}.data": sums for name, sums in zip(HOSPITALS, _SUMS, strict=True)},
)
_CHEST_PAIN, _ECG, _LABEL = 2, 6, 13
# Plausible clinical ranges, public and fixed: age, sex, resting blood pressure (mm Hg),
# cholesterol (mg/dl), fasting sugar > 120 mg/dl, highest heart rate, exercise angina,
# ST depression; dummies lie in 0..1.
_LOW = np.array([20, 0, 80, 0, 0, 60, 0, -3] + 5 * [0], dtype=np.float64)
_HIGH = np.array([80, 1, 200, 600, 1, 210, 1, 7] + 5 * [1], dtype=np.float64)
_FEATURES = (
    "age", "sex", "resting blood pressure", "cholesterol", "fasting sugar", "highest heart rate",
    "exercise angina", "ST depression", "chest pain 2", "chest pain 3", "chest pain 4", "ECG 1",
    "ECG 2",
)  # fmt: skip
_RULE_WEIGHTS = {
    "sex": 1.0, "highest heart rate": -3.0, "exercise angina": 1.5, "ST depression": 3.0,
    "chest pain 4": 1.5, "ECG 2": 0.5,
}  # fmt: skip
_MADE_UP_PATIENTS = (200, 160, 60, 120)
_MADE_UP_NOTE = "Made-up patients: what is reached on them says nothing about heart disease."
_FLAMBY_NOTE = (
    "Normalised as in FLamby, with each hospital's own mean and standard deviation, and the "
    "pooled test rows with those of all training rows: private statistics, not accounted for."
)


def heart_disease(root: str | None, prepare: str) -> Dataset:
    """Loads the four hospitals.

    Args:
        root: see `Source.fetch`.
        prepare: ``site_statistics`` for FLamby's normalisation, ``public_ranges`` for fixed
            clinical ranges that reveal nothing.

    Made up: values drawn evenly from those ranges, at each hospital around another age, and labels
    by chance: the logistic regression of `made_up_chances`, over values scaled by those ranges.
    """
    check_offered("heart_disease", prepare, {"public_ranges", "site_statistics"})
    hospitals = _made_up() if root == MADE_UP else _published(_SOURCE.fetch(root))
    train, test, train_labels, test_labels = [], [], [], []
    for features, labels in hospitals:
        train_rows, test_rows = _flamby_split(labels)
        train.append(features[train_rows])
        test.append(features[test_rows])
        train_labels.append(labels[train_rows])
        test_labels.append(labels[test_rows])
    pooled_train, pooled_test = np.concatenate(train), np.concatenate(test)
    if prepare == "site_statistics":
        scaled_train = np.concatenate([_standardise(rows, rows) for rows in train])
        scaled_test = _standardise(pooled_test, pooled_train)
    else:
        scaled_train, scaled_test = _by_public_ranges(pooled_train), _by_public_ranges(pooled_test)
    notes = [_MADE_UP_NOTE] if root == MADE_UP else []
    notes += [_FLAMBY_NOTE] if prepare == "site_statistics" else []
    return Dataset(
        name="heart_disease",
        train=_records(scaled_train, train_labels),
        test=_records(scaled_test, test_labels),
        input_shape=(13,),
        classes=2,
        unit="patient",
        sites=HOSPITALS,
        features=_FEATURES,
        notes=tuple(notes),
    )


_Rows = tuple[NDArray[np.float64], NDArray[np.int64]]


def _published(paths: dict[str, Path]) -> list[_Rows]:
    return [_read(paths[f"processed.{hospital}.data"]) for hospital in HOSPITALS]


def made_up_chances(scaled: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the chance of disease of made-up patients, shape [n], by the rule of their labels.

    Args:
        scaled: their values by public ranges, shape [n, 13].
    """
    weights = np.array([_RULE_WEIGHTS.get(name, 0.0) for name in _FEATURES])
    chances: NDArray[np.float64] = 1 / (1 + np.exp(-(scaled @ weights)))
    return chances


def _made_up() -> list[_Rows]:
    """Returns made-up patients of each hospital, in the units of the published ones."""
    rng = np.random.default_rng(24)
    found = []
    for number, count in enumerate(_MADE_UP_PATIENTS):
        plain = rng.uniform(_LOW[:8], _HIGH[:8], (count, 8))
        plain[:, 0] = rng.uniform(30 + 8 * number, 50 + 8 * number, count)
        plain[:, :7] = np.rint(plain[:, :7])  # all but the depression are whole numbers
        pain, ecg = rng.integers(1, 5, count), rng.integers(0, 3, count)
        dummies = [pain == level for level in (2, 3, 4)] + [ecg == level for level in (1, 2)]
        features = np.column_stack([plain, *dummies]).astype(np.float64)
        ill = rng.random(count) < made_up_chances(_by_public_ranges(features))
        found.append((features, ill.astype(np.int64)))
    return found


def _read(path: Path) -> _Rows:
    try:
        lines = path.read_text(encoding="ascii").splitlines()
        rows = np.array([line.replace("?", "nan").split(",") for line in lines], np.float64)
        kept = np.delete(rows, (10, 11, 12), axis=1)
        kept = kept[~np.isnan(kept).any(axis=1)]
        if rows.shape[1] != _LABEL + 1:
            raise ValueError
    except (ValueError, IndexError) as error:
        raise DataInvalid(f"{path} should hold 14 comma-separated columns.") from error
    plain = np.delete(kept[:, :-1], (_CHEST_PAIN, _ECG), axis=1)
    dummies = [kept[:, _CHEST_PAIN] == level for level in (2, 3, 4)]
    dummies += [kept[:, _ECG] == level for level in (1, 2)]
    return np.column_stack([plain, *dummies]), (kept[:, -1] > 0).astype(np.int64)


def _flamby_split(labels: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    from sklearn.model_selection import train_test_split

    stratify = labels if np.bincount(labels, minlength=2).min() > 2 else None
    train, test = train_test_split(
        np.arange(len(labels)),
        train_size=0.66,
        test_size=0.34,
        random_state=43,
        shuffle=True,
        stratify=stratify,
    )
    return train, test


def _standardise(rows: NDArray[np.float64], reference: NDArray[np.float64]) -> NDArray[np.float64]:
    deviation = reference.std(axis=0, ddof=1)
    deviation[deviation == 0] = 1.0
    scaled: NDArray[np.float64] = (rows - reference.mean(axis=0)) / deviation
    return scaled


def _by_public_ranges(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.clip(2.0 * (rows - _LOW) / (_HIGH - _LOW) - 1.0, -1.0, 1.0)


def _records(features: NDArray[np.float64], labels: list[NDArray[np.int64]]) -> Records:
    return Records(
        torch.from_numpy(features.astype(np.float32)),
        torch.from_numpy(np.concatenate(labels)),
        origins=np.repeat(np.arange(len(labels)), [len(part) for part in labels]),
    )
