"""The packages of models that a site's operator has approved: one version of each, as files.

They lie in ``models/PACKAGE-VERSION-SHA256/``; ``models/approved.json`` has the hash of each file,
and counts. Only the trainer imports them. The agent puts on record what the operator has changed.
"""

import hashlib
import shutil
import tempfile
from pathlib import Path
from typing import Annotated

from pydantic import Field

from lepton_common.audit import AuditLog
from lepton_common.durable import sync_folder, write_atomic
from lepton_common.errors import ModelNotApproved, PackageAltered
from lepton_common.models.packaged import PackagedModel
from lepton_common.models.wheel import ModelWheel
from lepton_common.strict import Digest, Name, parse_json, record, to_json

MODELS = "models"
_FILE = "approved.json"
_Path = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_/]*\.py$")]


@record
class ApprovedModels:
    """One package as it was approved.

    Attributes:
        package: its import name.
        version: its version.
        sha256: of its wheel.
        by: the lead who signed it.
        builders: ``module:function`` by the name of each model.
        files: digest of each file of source, by path.
    """

    package: Name
    version: Annotated[str, Field(pattern=r"^[A-Za-z0-9.!+_-]{1,64}$")]
    sha256: Digest
    by: Name
    builders: dict[Name, str]
    files: dict[_Path, Digest]

    @property
    def folder(self) -> str:
        """Where its files lie, within ``models``."""
        return f"{self.package}-{self.version}-{self.sha256}"


@record
class _Approvals:
    packages: list[ApprovedModels]


def read_approved(folder: Path) -> dict[str, ApprovedModels]:
    """Returns what is approved at a site, by package.

    Raises:
        PackageAltered: the file that says so is not as it was written.
    """
    path = approvals_file(folder)
    if not path.exists():
        return {}
    try:
        found = parse_json(_Approvals, path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise PackageAltered(
            f"{path} is {error}; move it away, and approve the models anew."
        ) from None
    return {approved.package: approved for approved in found.packages}


def approvals_file(folder: Path) -> Path:
    """Returns the file that says what is approved at a site."""
    return folder / MODELS / _FILE


def approved_version(folder: Path, model: PackagedModel) -> ApprovedModels:
    """Returns the approved package that a model is of, to the wheel's digest.

    Raises:
        ModelNotApproved: the site's operator has approved none, or another version.
        PackageAltered: see `read_approved`.
    """
    found = read_approved(folder).get(model.package)
    if found is None:
        raise ModelNotApproved(
            f"No version of {model.package} is approved at this site; "
            "'lepton site model approve' does."
        )
    if found.sha256 != model.sha256 or model.model not in found.builders:
        raise ModelNotApproved(
            f"This site has approved version {found.version} of {found.package}, from the wheel "
            f"{found.sha256[:16]}..., not {model.model} from {model.sha256[:16]}..."
        )
    return found


def read_sources(folder: Path, approved: ApprovedModels) -> dict[str, str]:
    """Returns the source of an approved package by path, having checked each file's hash.

    Raises:
        PackageAltered: a file is not as it was approved, or is gone.
    """
    texts = {}
    for path, digest in approved.files.items():
        try:
            data = (folder / MODELS / approved.folder / path).read_bytes()
        except OSError:
            data = b""
        if hashlib.sha256(data).hexdigest() != digest:
            raise PackageAltered(
                f"{path} of {approved.package} is not as it was approved; find out who changed it, "
                "then approve the wheel again."
            )
        texts[path] = data.decode()
    return texts


def approve(folder: Path, wheel: ModelWheel, by: str) -> None:
    """Puts a package in the place of the version of it that was approved before.

    Args:
        folder: the site's.
        wheel: as it was reviewed.
        by: the lead who signed it.
    """
    approved = ApprovedModels(
        package=wheel.package,
        version=wheel.version,
        sha256=wheel.sha256,
        by=by,
        builders=wheel.builders,
        files={p: hashlib.sha256(t.encode()).hexdigest() for p, t in wheel.files.items()},
    )
    (folder / MODELS).mkdir(exist_ok=True)
    _unpack(wheel.files, folder / MODELS / approved.folder)
    _write(folder, {**read_approved(folder), wheel.package: approved})


def remove(folder: Path, package: str) -> None:
    """Takes an approval back; takes effect at the next message.

    Raises:
        ModelNotApproved: there is none.
    """
    approved = read_approved(folder)
    if package not in approved:
        raise ModelNotApproved(f"No version of {package} is approved at this site.")
    del approved[package]
    _write(folder, approved)


def note_changes(audit: AuditLog, approved: dict[str, ApprovedModels]) -> None:
    """Puts on record what the operator has approved or removed since the log was last written."""
    known: dict[str, object] = {}
    for entry in audit.records:
        if entry.kind in ("model_approved", "model_removed"):
            known[str(entry.body["package"])] = entry.body.get("sha256")
    for package, now in approved.items():
        if known.get(package) != now.sha256:
            body = {"package": package, "version": now.version, "sha256": now.sha256, "by": now.by}
            audit.append("model_approved", body)
    for package, digest in known.items():
        if digest is not None and package not in approved:
            audit.append("model_removed", {"package": package})


def _unpack(files: dict[str, str], target: Path) -> None:
    """Writes files into a folder that appears with all of them, read-only."""
    if target.exists():
        _delete(target)  # of an approval that was cut off, or has been altered
    made = Path(tempfile.mkdtemp(dir=target.parent, prefix=".new."))
    try:
        for path, text in files.items():
            (made / path).parent.mkdir(parents=True, exist_ok=True)
            write_atomic(made / path, text.encode(), mode=0o444)
        for inner in [*(path for path in made.rglob("*") if path.is_dir()), made]:
            inner.chmod(0o555)
        made.rename(target)
        sync_folder(target.parent)
    finally:
        if made.exists():
            _delete(made)


def _write(folder: Path, approved: dict[str, ApprovedModels]) -> None:
    """Says what is approved from now on, and then deletes what is not."""
    packages = _Approvals(packages=[approved[name] for name in sorted(approved)])
    write_atomic(approvals_file(folder), to_json(packages).encode())
    kept = {one.folder for one in approved.values()}
    for path in (folder / MODELS).iterdir():
        if path.is_dir() and path.name not in kept:
            _delete(path)


def _delete(folder: Path) -> None:
    for inner in [folder, *(path for path in folder.rglob("*") if path.is_dir())]:
        inner.chmod(0o755)
    shutil.rmtree(folder)
