"""Adds the benchmark's models to the catalog of each Python that has this folder on its path.

A site's own model is installed by its operator, never sent: here the benchmark is the operator of
all sites and of the coordinator. No process imports the catalog that would not have done so.
"""

import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

_CATALOG = "lepton_common.models.catalog"


class _AfterCatalog(MetaPathFinder):
    """Runs the catalog's module, and then adds to it; once."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != _CATALOG:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(_CATALOG)
        assert spec is not None
        assert spec.loader is not None
        execute = spec.loader.exec_module

        def execute_and_add(module: ModuleType) -> None:
            execute(module)
            from lepton_cli.bench.square import MODELS

            module.MODELS.update(MODELS)

        spec.loader.exec_module = execute_and_add  # type: ignore[method-assign]
        return spec


sys.meta_path.insert(0, _AfterCatalog())
