"""Finds the files of a data set under a folder, or downloads them, and checks their sums."""

import hashlib
import http.client
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lepton_common.cache import cache_folder
from lepton_common.durable import write_atomic
from lepton_common.errors import ChecksumMismatch, DataMissing

MADE_UP = "made-up"
"""The root that stands for no files: a loader then generates data of the same form, small."""

_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Source:
    """Where a data set is published.

    Attributes:
        folder: its folder under ``data.root``.
        address: published address, ending in a slash; each file's name is appended. None where
            the files, as they are read, are published nowhere: then a folder must hold them.
        files: file name -> hexadecimal SHA-256.
    """

    folder: str
    address: str | None
    files: Mapping[str, str]

    def fetch(self, root: str | None) -> dict[str, Path]:
        """Returns the checked files, by name.

        Args:
            root: folder that holds ``folder``; None for the user's cache, filled by download.

        Raises:
            DataMissing: a file is neither there nor to be had.
            ChecksumMismatch: a file differs from the published one.
        """
        folder = (Path(root) if root is not None else cache_folder()) / self.folder
        paths = {name: folder / name for name in self.files}
        for name, path in paths.items():
            if not path.is_file():
                if root is not None:
                    raise DataMissing(
                        f"Expected {name} at {path}, and it is not there; set data.root to the "
                        f"folder that holds '{self.folder}/', or leave it out to download."
                    )
                self._download(name, path)
            self._check(name, path.read_bytes(), path)
        return paths

    def _check(self, name: str, data: bytes, where: object) -> None:
        came = hashlib.sha256(data).hexdigest()
        if came != self.files[name]:
            raise ChecksumMismatch(
                f"{where} is not the published {name}: SHA-256 {came[:12]}… instead of "
                f"{self.files[name][:12]}…; delete it and fetch it again."
            )

    def _download(self, name: str, path: Path) -> None:
        if self.address is None:
            raise DataMissing(
                f"{name} cannot be downloaded; set data.root to a folder that holds "
                f"'{self.folder}/{name}', or to {MADE_UP} for generated data of the same form."
            )
        try:
            # An opener of its own reads the proxies that the environment names at this moment.
            opener = urllib.request.build_opener()
            with opener.open(self.address + name, timeout=_TIMEOUT_S) as answer:
                data: bytes = answer.read()
        except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
            raise DataMissing(
                f"Cannot download {self.address}{name}; go online, or set data.root to a folder "
                f"that holds '{self.folder}/{name}'."
            ) from error
        self._check(name, data, self.address + name)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, data)
