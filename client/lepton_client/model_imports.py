"""Imports models that the site has approved, in the trainer: from checked bytes, not from files.

What Python compiles is what was hashed, so neither a file that changes in between nor a cached
one (``.pyc``) can come in its place.
"""

import importlib
import sys
from collections.abc import Sequence
from functools import partial
from importlib.abc import InspectLoader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_loader
from operator import attrgetter
from pathlib import Path
from types import ModuleType

from lepton_client.approved_models import ApprovedModels, approved_version, read_sources
from lepton_common.errors import ModelNotApproved
from lepton_common.models.packaged import Build, PackagedModel, find_by


def build_approved_only(folder: Path) -> None:
    """Has this process build models of packages from a site's approvals, and of nothing else.

    A process has one version of a package: the agent starts another trainer when that changes.
    """
    find_by(partial(_build, folder, _Importer()))


def _build(folder: Path, importer: "_Importer", model: PackagedModel) -> Build:
    """Returns what builds an approved model; imports its code.

    Raises:
        ModelNotApproved, PackageAltered: it is not approved, or not as it was.
    """
    approved = approved_version(folder, model)
    importer.take(folder, approved)
    module, _, function = approved.builders[model.model].partition(":")
    build: Build = attrgetter(function)(importlib.import_module(module))
    return build


class _Importer(MetaPathFinder, InspectLoader):
    """Stands before all other ways to import, for approved packages only."""

    def __init__(self) -> None:
        self._taken: dict[str, str] = {}
        self._sources: dict[str, str] = {}  # by path

    def take(self, folder: Path, approved: ApprovedModels) -> None:
        """Takes a package's source in, once."""
        taken = self._taken.get(approved.package)
        if taken == approved.sha256:
            return
        if taken is not None or approved.package in sys.modules:
            raise ModelNotApproved(
                f"Another {approved.package} is loaded in this process already; start it again."
            )
        self._sources |= read_sources(folder, approved)
        self._taken[approved.package] = approved.sha256
        if self not in sys.meta_path:
            sys.meta_path.insert(0, self)

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None = None,
        target: ModuleType | None = None,
    ) -> ModuleSpec | None:
        """Says that a module is here; also that one is not, where its package is."""
        if fullname.partition(".")[0] not in self._taken:
            return None
        if self._path(fullname) is None:
            raise ModuleNotFoundError(f"No module named {fullname!r} was approved.", name=fullname)
        return spec_from_loader(fullname, self, origin="approved")

    def is_package(self, fullname: str) -> bool:
        """Says whether a module has modules of its own."""
        return f"{fullname.replace('.', '/')}/__init__.py" in self._sources

    def get_source(self, fullname: str) -> str | None:
        """Returns what is compiled."""
        path = self._path(fullname)
        return self._sources[path] if path is not None else None

    def _path(self, fullname: str) -> str | None:
        path = fullname.replace(".", "/")
        found = (f"{path}/__init__.py", f"{path}.py")
        return next((one for one in found if one in self._sources), None)
