"""How evenly a run's last model serves its sites: in a simulation alone, which holds their data."""

from dataclasses import dataclass

import numpy as np

from lepton_cli.run import Run
from lepton_cli.simulated_sites import dataset_of, kept_for_evaluation, split
from lepton_common.evaluation.confidence import OverSites, over_sites
from lepton_common.tasks.catalog import find_task

_MOST_SITES = 200  # that are judged; of more, so many are drawn
_MOST_RECORDS = 20_000  # of all of them together


@dataclass(frozen=True)
class Fairness:
    """The headline of a run's last model, site by site.

    Attributes:
        spread: over the sites that were judged.
        judged: how many of them define the headline.
        sites: how many there are.
        held_back: whether it is on records that no site trained on; else on those that it did.
    """

    spread: OverSites
    judged: int
    sites: int
    held_back: bool


def fairness(run: Run) -> Fairness | None:
    """Returns how even a simulated run's headline is over its sites.

    None where no site's data is here, as that of real sites never is, where there is no model, or
    where no site's records define the headline.

    Raises:
        DataError: the data is missing or invalid.
    """
    folder, settings = run.folder, run.settings
    simulated = folder.host.exists() or (folder.path / "sites").exists()
    if not simulated or not folder.final_model.exists():
        return None
    task, train, parts = find_task(settings.task), dataset_of(settings).train, split(settings)
    drawn = np.arange(len(parts))
    if len(parts) > _MOST_SITES:
        random = np.random.default_rng(settings.seed)
        drawn = np.sort(random.choice(len(parts), _MOST_SITES, replace=False))
    kept = kept_for_evaluation(settings) if settings.data.held_back else None
    most, model, found = _MOST_RECORDS // len(drawn), run.model(), {}
    for index in drawn.tolist():
        rows = parts[index] if kept is None else parts[index][kept[parts[index]]]
        if len(rows) > most:
            rows = rows[np.linspace(0, len(rows) - 1, most).astype(np.int64)]
        if len(rows) == 0:
            continue
        own = train.take(rows)
        figures = task.evaluate(model, own.features, own.labels)
        if run.headline.name in figures:
            found[parts.name(index)] = figures[run.headline.name]
    if not found:
        return None
    spread = over_sites(run.headline.name, found)
    return Fairness(spread, len(found), len(parts), settings.data.held_back > 0)
