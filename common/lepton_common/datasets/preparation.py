"""How records become features, by name, and which ways show no record in another's features."""

from collections.abc import Set
from typing import Literal

from lepton_common.errors import SettingsError

Preparation = Literal["public_ranges", "scattering", "site_statistics"]

# Computed from one record and public constants, so privacy has nothing to charge for.
PER_RECORD: frozenset[Preparation] = frozenset({"public_ranges", "scattering"})


def check_offered(dataset: str, prepare: str, offered: Set[Preparation]) -> None:
    """Checks that a data set can be prepared as asked.

    Raises:
        SettingsError: it cannot; names what it offers.
    """
    if prepare not in offered:
        raise SettingsError(
            f"data.prepare={prepare}: '{dataset}' offers {' and '.join(sorted(offered))} only."
        )
