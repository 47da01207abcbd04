"""The throwaway sites of a simulation: each has a folder from when its node is first asked.

Nothing of the size of the population is written or held, so that there may be a million sites. A
site's key and rows follow from a secret of the run and from its settings: whoever needs a site
makes it, in any thread or process, and all make the same one.

Up to `MOST_LISTED` sites stand in one signed roster, which their folders share. A larger roster is
not made: signing a million keys would take minutes, and each site of a secure round would have to
read them all. Such sites pin none, and settings refuse secure aggregation, which needs it.
"""

import io
import os
import shutil
import tempfile
from collections.abc import Iterator, KeysView, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from lepton_client.data import SiteData
from lepton_client.people import held_back
from lepton_client.site import KEY_FILE, ROOT_FILE, ROSTER_FILE, SITE_FILE
from lepton_common.datasets.catalog import load_dataset
from lepton_common.datasets.partition import Parts, PartSettings
from lepton_common.datasets.records import Dataset
from lepton_common.durable import needs_room
from lepton_common.identity.keys import SigningKey
from lepton_common.identity.roster import Coordinator, Member, Roster, root_of, sign_roster
from lepton_common.identity.signed import Partners
from lepton_common.privacy.plan import public_size_class
from lepton_common.settings import Settings
from lepton_common.tasks.catalog import find_task
from lepton_server.run_folder import RunFolder

ROWS = "rows.npy"
FIRST_NODE = 2  # Flower speaks as node 1
_KEY_PURPOSE = b"lepton/simulated-site/v1/"
_UNFINISHED = ".site-"
# The C version, where PyYAML was built with it, is ten times faster: it counts for many sites.
_DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


def dataset_of(settings: Settings) -> Dataset:
    """Returns the data set that the sites share.

    Raises:
        DataError: the data is missing or invalid.
        SettingsError: it cannot be prepared as asked.
    """
    data = settings.data
    return load_dataset(find_task(settings.task).dataset, data.root, data.prepare)


def parts_of(settings: Settings) -> PartSettings:
    """Returns how the data set is split over the sites."""
    data = settings.data
    return PartSettings(
        partitioner=data.partition,
        sites=settings.sites,
        seed=settings.seed,
        alpha=data.alpha,
        classes_per_site=data.classes_per_site,
        shards_per_site=data.shards_per_site,
        sizes=data.sizes,
        records_per_site=data.records_per_site,
        min_records=data.min_records,
    )


def split(settings: Settings) -> Parts:
    """Returns the training rows of each simulated site, by its index.

    Raises:
        DataError: a site would stay empty, or there are too few records.
        SettingsError: the partition does not fit the data set.
    """
    return parts_of(settings).split(dataset_of(settings))


def kept_for_evaluation(settings: Settings) -> NDArray[np.bool_]:
    """Returns which training rows the simulated sites hold back, bool, shape [n]."""
    dataset = dataset_of(settings)
    return held_back(dataset.train, dataset.unit, settings.data.held_back)


class SimulatedSites(Mapping[int, Mapping[str, str | int | float | bool]]):
    """The configuration of each node, by its number: where the folder of its site is."""

    def __init__(self, settings: Settings, folder: RunFolder) -> None:
        """Names the sites of a run; makes none of them.

        Args:
            settings: the run's.
            folder: the run's; `found` must have been called for it once.
        """
        self._settings, self._folder = settings, folder
        self.nodes = range(FIRST_NODE, FIRST_NODE + settings.sites)

    def found(self) -> None:
        """Writes what all sites of a new run have in common: their secret, and the roster."""
        secret, server = SigningKey.generate(), SigningKey.generate()
        (self._folder.path / "sites").mkdir()
        secret.save(self._secret)
        self._folder.roster.parent.mkdir()
        server.save(self._folder.server_key)
        if self._settings.crowded:
            return
        partner = SigningKey.generate()  # thrown away: nobody can add a site to a simulation
        members = [
            Member(name=name, public_key=self._key(name).public_hex)
            for name in sorted(map(self.name, range(len(self))))
        ]
        roster = Roster(
            federation=self._settings.federation.name,
            version=1,
            partners=Partners(keys=[partner.public_hex], threshold=1),
            coordinator=Coordinator(
                name="coordinator", public_key=server.public_hex, authority="", hosts=[], port=443
            ),
            members=members,
        )
        signed = sign_roster(roster, [partner])
        self._folder.roster.write_text(signed, encoding="utf-8")
        self._folder.roster_root.write_text(root_of(signed), encoding="utf-8")

    def __len__(self) -> int:
        """Number of sites, made or not."""
        return len(self.nodes)

    def __iter__(self) -> Iterator[int]:
        """Yields the number of each node."""
        return iter(self.nodes)

    def __contains__(self, node: object) -> bool:
        """Tells whether there is such a node."""
        return node in self.nodes

    def keys(self) -> "_Nodes":
        """Returns the nodes' numbers, from which one is drawn by its place."""
        return _Nodes(self)

    def __getitem__(self, node: int) -> Mapping[str, str | int | float | bool]:
        """Returns a node's configuration; its site's folder is there when this returns.

        Raises:
            DiskFull, OSError: the folder cannot be made.
        """
        if node not in self.nodes:
            raise KeyError(node)
        index = node - FIRST_NODE
        path = self._folder.site(self.name(index))
        if not path.exists():
            self._make(index, path)
        # A site is opened once, by its path, also where a later run asks the sites of this one.
        return {"site": str(path.resolve())}

    def name(self, index: int) -> str:
        """Returns the name of a site, by its index from 0."""
        return self.parts.name(index)

    @cached_property
    def parts(self) -> Parts:
        """The training rows of each site, by its index; see `split`."""
        return split(self._settings)

    @property
    def _dataset(self) -> Dataset:
        return dataset_of(self._settings)

    @property
    def _secret(self) -> Path:
        return self._folder.path / "sites.pem"

    @cached_property
    def _root_key(self) -> SigningKey:
        return SigningKey.load(self._secret)

    @cached_property
    def _common(self) -> str:
        """What the files of all sites say, beside name and size; the same text for a million."""
        data = SiteData(
            id=self._dataset.name,
            dataset=self._dataset.name,
            root=self._settings.data.root,
            prepare=self._settings.data.prepare,
            unit=self._dataset.unit,
            rows=ROWS,
            held_back=self._settings.data.held_back,
        )
        return _yaml({"data": asdict(data), "policy": asdict(self._settings.policy)})

    def _key(self, name: str) -> SigningKey:
        return SigningKey.from_seed(self._root_key.derive(_KEY_PURPOSE + name.encode()))

    def _make(self, index: int, path: Path) -> None:
        """Makes a site beside the others, and puts it among them whole or, after a kill, not."""
        with needs_room(self._folder.path):
            unfinished = Path(tempfile.mkdtemp(dir=self._folder.path, prefix=_UNFINISHED))
        try:
            with needs_room(self._folder.path):
                self._write(index, unfinished)
            unfinished.rename(path)
        except OSError:
            if not path.exists():  # else another thread or process was first, with the same site
                raise
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)

    def _write(self, index: int, path: Path) -> None:
        name, rows, units = self.name(index), self.parts[index], self._dataset.train.units
        size = public_size_class(len(rows if units is None else np.unique(units[rows])))
        own = _yaml({"name": name, "public_size": size})
        (path / SITE_FILE).write_text(own + self._common, encoding="utf-8")
        packed = io.BytesIO()  # NumPy would not say of a file that the disk is full
        np.save(packed, rows, allow_pickle=False)
        (path / ROWS).write_bytes(packed.getvalue())
        # Not as `SigningKey.save`, which waits for the disk: the run's secret makes it again.
        (path / KEY_FILE).touch(mode=0o600)
        (path / KEY_FILE).write_bytes(self._key(name).to_pem())
        if not self._settings.crowded:
            _share(self._folder.roster, path / ROSTER_FILE)
            _share(self._folder.roster_root, path / ROOT_FILE)


class _Nodes(KeysView[int], Sequence[int]):
    """Numbers of nodes, of which a million take no memory."""

    def __init__(self, sites: SimulatedSites) -> None:
        super().__init__(sites)
        self._numbers = sites.nodes

    def __getitem__(self, place: Any) -> Any:  # noqa: ANN401
        return self._numbers[place]


def clear_unfinished(folder: RunFolder) -> None:
    """Removes what is left of sites in whose making a process died; nobody may be making any."""
    for path in folder.path.glob(f"{_UNFINISHED}*"):
        shutil.rmtree(path, ignore_errors=True)


def _yaml(values: Mapping[str, object]) -> str:
    return str(yaml.dump(values, Dumper=_DUMPER, sort_keys=False))


def _share(file: Path, path: Path) -> None:
    """Gives a file a second name: files are replaced here, never written over."""
    try:
        os.link(file, path)
    except OSError:  # not every file system has second names
        shutil.copyfile(file, path)
