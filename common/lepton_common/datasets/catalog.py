"""The catalog of data sets: name -> loader."""

from collections.abc import Callable
from functools import lru_cache

from lepton_common.datasets import (
    activity,
    census,
    credit,
    embedded,
    engines,
    factory,
    heart,
    image_archives,
    images,
    omniglot,
    rates,
    shakespeare,
    sms,
    tones,
    tumours,
)
from lepton_common.datasets.records import Dataset, check
from lepton_common.errors import DataInvalid
from lepton_common.extensions import DATASETS as PACKAGED
from lepton_common.extensions import extension, extensions
from lepton_common.names import look_up

Loader = Callable[[str | None, str], Dataset]

DATASETS: dict[str, Loader] = {
    "digits": embedded.digits,
    "breast_cancer": embedded.breast_cancer,
    "mnist": images.mnist,
    "fashion_mnist": images.fashion_mnist,
    "cifar10": images.cifar10,
    "heart_disease": heart.heart_disease,
    "adult": census.adult,
    "german_credit": credit.german_credit,
    "credit_default": credit.credit_default,
    "ai4i": factory.ai4i,
    "wine_quality": factory.wine_quality,
    "tcga_brca": tumours.tcga_brca,
    "pneumoniamnist": image_archives.pneumoniamnist,
    "cifar10_subset": image_archives.cifar10_subset,
    "omniglot": omniglot.omniglot,
    "sms_spam": sms.sms_spam,
    "shakespeare": shakespeare.shakespeare,
    "tones": tones.tones,
    "uci_har": activity.uci_har,
    "cmapss": engines.cmapss,
    "machine_anomaly": engines.machine_anomaly,
    "exchange_rate": rates.exchange_rate,
    "demand": rates.demand,
}


@lru_cache(maxsize=2)
def load_dataset(name: str, root: str | None, prepare: str) -> Dataset:
    """Returns a checked data set; the last two stay in memory, shared by all sites of a process.

    Args:
        name: a name in the catalog, or that an installed package gives.
        root: folder that holds the data set's folder; None to download into the user's cache.
        prepare: ``public_ranges`` or, where the data set offers it, ``scattering`` or
            ``site_statistics``.

    Raises:
        UnknownName: no such data set.
        SettingsError: the data set does not offer that preparation.
        DataError: the data is missing, altered or invalid.
    """
    if name not in DATASETS and name in extensions(PACKAGED):
        dataset = _of_a_package(name, root, prepare)
    else:
        dataset = look_up(DATASETS, name, "data set")(root, prepare)
    check(dataset.train, dataset)
    check(dataset.test, dataset)
    return dataset


def _of_a_package(name: str, root: str | None, prepare: str) -> Dataset:
    load = extension(PACKAGED, name)
    found: object = load(root, prepare) if callable(load) else None
    if not isinstance(found, Dataset) or found.name != name:
        raise DataInvalid(
            f"What a package calls the data set '{name}' gives no Dataset of that name; mend the "
            "package."
        )
    return found
