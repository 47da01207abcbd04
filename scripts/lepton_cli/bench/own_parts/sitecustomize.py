"""Adds the benchmarks' models, data and tasks to the catalogs of each Python with this on its path.

A site's own model is installed by its operator, never sent: here the benchmark is the operator of
all sites and of the coordinator. No process imports a catalog that would not have done so.
"""

import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


def _add_models(catalog: ModuleType) -> None:
    from lepton_cli.bench.square import MODELS

    catalog.MODELS.update(MODELS)


def _add_datasets(catalog: ModuleType) -> None:
    from lepton_cli.bench.simulation.jobs import datasets

    catalog.DATASETS.update(datasets())


def _add_tasks(catalog: ModuleType) -> None:
    from lepton_cli.bench.simulation.jobs import tasks

    catalog.TASKS.update(tasks())


_ADDED: dict[str, Callable[[ModuleType], None]] = {
    "lepton_common.models.catalog": _add_models,
    "lepton_common.datasets.catalog": _add_datasets,
    "lepton_common.tasks.catalog": _add_tasks,
}


class _AfterCatalogs(MetaPathFinder):
    """Runs a catalog's module, and then adds to it; once each."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        add = _ADDED.pop(fullname, None)
        if add is None:
            return None
        spec = importlib.util.find_spec(fullname)
        assert spec is not None
        assert spec.loader is not None
        execute = spec.loader.exec_module

        def execute_and_add(module: ModuleType) -> None:
            execute(module)
            add(module)

        spec.loader.exec_module = execute_and_add  # type: ignore[method-assign]
        return spec


sys.meta_path.insert(0, _AfterCatalogs())
