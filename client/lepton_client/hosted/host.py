"""A host of simulated sites as its folder: what they may do, one key, one signed log."""

import threading
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray

from lepton_client.data import SiteData
from lepton_client.door import Door
from lepton_client.hosted.leaves import LEAVES, Leaves
from lepton_client.hosted.ledger import HostLedger
from lepton_client.people import held_back
from lepton_client.site import AUDIT_FILE, KEY_FILE, SiteFile
from lepton_client.traces import keep_trace
from lepton_common.audit import AuditLog
from lepton_common.datasets.catalog import load_dataset
from lepton_common.datasets.partition import Parts, PartSettings
from lepton_common.datasets.records import Dataset, Rows
from lepton_common.errors import MalformedMessage, SettingsError
from lepton_common.identity.keys import SigningKey
from lepton_common.policy import SitePolicy
from lepton_common.privacy.plan import public_size_class
from lepton_common.strict import parse_json, record

HOST_FILE = "host.json"
TOGETHER = "together"  # in the place of an engine's name, where sites were trained at once
_MOST_KNOWN = 1 << 14  # sites whose rows are kept at hand


@record
class HostFile:
    """What all sites of a host have in common, as written in ``host.json``.

    Attributes:
        data: which data set their records are of; ``rows`` is None, since the parts say which.
        parts: how the data set is split over them.
        policy: of each site.
    """

    data: SiteData
    parts: PartSettings
    policy: SitePolicy


@dataclass(frozen=True)
class Member:
    """One of the sites.

    Attributes:
        name: its name.
        public_size: its public size class.
        rows: of the data set, those that may be trained on, int64; private.
    """

    name: str
    public_size: int
    rows: Rows


class Host:
    """A host opened for work; several requests at a time, for different sites."""

    def __init__(self, folder: Path) -> None:
        """Opens a host's folder.

        Raises:
            KeyUnreadable: its key cannot be opened.
            SettingsError: its file is missing or has faults.
            AuditError: its log does not verify, or lacks what it refers to.
        """
        self.folder, self.file = folder, read_host_file(folder / HOST_FILE)
        self.key = SigningKey.load(folder / KEY_FILE)
        self.audit = AuditLog(folder / AUDIT_FILE, self.key, "host")
        self.ledger = HostLedger(self.audit, self.file.policy)
        self.leaves = Leaves(folder / LEAVES)
        self.door = Door(self.audit, self.ledger, self.file.policy)
        self._known = lru_cache(_MOST_KNOWN)(self._member)

    @property
    def sites(self) -> int:
        """How many sites there are."""
        return len(self._parts)

    @property
    def dataset(self) -> Dataset:
        """The data set that the sites' records belong to, checked.

        Raises:
            DataError: it cannot be read.
        """
        return load_dataset(self.file.data.dataset, self.file.data.root, self.file.data.prepare)

    def member(self, place: int) -> Member:
        """Returns the site at a place.

        Raises:
            MalformedMessage: there is none.
        """
        if place >= self.sites:
            raise MalformedMessage(f"This host has {self.sites} sites and none at {place}.")
        return self._known(place)

    def site_file(self, member: Member) -> SiteFile:
        """Returns what would be a site's ``site.yaml``, had it a folder of its own."""
        return SiteFile(
            name=member.name,
            public_size=member.public_size,
            data=self.file.data,
            policy=self.file.policy,
        )

    def keep_trace(self, error: BaseException) -> None:
        """Writes an error's full text to the host's own ``errors.log``, which never leaves it."""
        keep_trace(self.folder, error)

    def note_engine(self, run: str) -> None:
        """Puts on record, once a run, that sites were trained together: rounding was not tried."""
        body = {"run": run, "engine": TOGETHER, "difference": None, "tried": False}
        known = (record.body for record in self.audit.records if record.kind == "engine")
        if all(one["run"] != run for one in known):
            self.audit.append("engine", body)

    @cached_property
    def _parts(self) -> Parts:
        return self.file.parts.split(self.dataset)

    def _member(self, place: int) -> Member:
        rows, units = self._parts[place], self.dataset.train.units
        count = len(rows if units is None else np.unique(units[rows]))
        kept = rows if self.file.data.held_back == 0 else rows[~self._held_back[rows]]
        return Member(self._parts.name(place), public_size_class(count), kept)

    @cached_property
    def _held_back(self) -> NDArray[np.bool_]:
        return held_back(self.dataset.train, self.file.data.unit, self.file.data.held_back)


def read_host_file(path: Path) -> HostFile:
    """Reads ``host.json``.

    Raises:
        SettingsError: it is missing, or has faults.
    """
    try:
        return parse_json(HostFile, path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SettingsError(f"Cannot read {path}; start the run anew.") from error


_OPENING = threading.Lock()
_OPENED: WeakValueDictionary[str, Host] = WeakValueDictionary()
_NEWEST: list[Host] = []  # kept open between its messages


def open_host(folder: str) -> Host:
    """Returns the host in a folder; opened once per process, so that its log has one writer.

    Of several runs in one process, the host that was asked last stays open between messages.
    """
    with _OPENING:
        host = _OPENED.get(folder)
        if host is None:
            host = _OPENED[folder] = Host(Path(folder))
        _NEWEST[:] = [host]
        return host
