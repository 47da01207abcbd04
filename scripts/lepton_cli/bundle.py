"""Writes and reads bundles: one signed archive with all wheels, for machines without a network.

A bundle is a tar file whose first members are a manifest and the signature on it. Whoever reads it
takes nothing from it but what the manifest announces, byte for byte, headers included: no name,
link, device or size of an attacker's is ever acted upon.
"""

import hashlib
import shutil
import sys
import sysconfig
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Annotated, BinaryIO, Literal

from jinja2 import Environment
from packaging.utils import parse_wheel_filename
from pydantic import Field

from lepton_cli.sbom import sbom
from lepton_common.durable import sync_folder
from lepton_common.errors import BundleAltered, BundleError, BundleForged, BundleUnsafe
from lepton_common.identity.keys import SigningKey
from lepton_common.identity.signed import Signed, sign, signers
from lepton_common.strict import Digest, parse_json, record, to_json

MANIFEST_FILE, SIGNATURE_FILE = "manifest.json", "manifest.sig"
_LARGEST_MANIFEST, _SIGNATURE_SIZE = 2**20, 64
_BLOCK, _CHUNK = tarfile.BLOCKSIZE, 2**20
_END = bytes(2 * _BLOCK)
# Neither a path nor hidden, and nothing that a shell or pip would read otherwise.
_FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]{0,199}$")]
_FileSize = Annotated[int, Field(ge=0, le=2**33)]


@record
class BundleFile:
    """One file of a bundle.

    Attributes:
        name: without a folder.
        size: in bytes.
        sha256: its digest, hexadecimal.
    """

    name: _FileName
    size: _FileSize
    sha256: Digest


@record
class Manifest:
    """What a bundle holds, in this order.

    Attributes:
        format: of the bundle.
        version: of Lepton.
        python: the version of Python that the wheels are for.
        platform: the system that they are for.
        files: all files but the manifest and its signature.
    """

    format: Literal[1]
    version: str
    python: str
    platform: str
    files: Annotated[list[BundleFile], Field(min_length=1, max_length=2000)]


def write_bundle(wheels: list[Path], out: Path, key: SigningKey) -> Manifest:
    """Writes a bundle of wheels; the same wheels and key give the same bytes.

    Args:
        wheels: of Lepton and all it needs.
        out: the new archive.
        key: signs it.

    Raises:
        BundleError: a file is not a wheel.
    """
    folder = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
    try:
        ordered = sorted(wheels, key=lambda path: path.name)
        found = [_describe(path) for path in ordered]
        (folder / "requirements.txt").write_text(_requirements(found), encoding="utf-8")
        (folder / "sbom.json").write_text(sbom(ordered), encoding="utf-8")
        (folder / "INSTALL.md").write_text(_guide(out.name, key), encoding="utf-8")
        ours = [folder / name for name in ("INSTALL.md", "requirements.txt", "sbom.json")]
        sums = folder / "SHA256SUMS"
        listed = [*map(_describe, ours), *found]
        sums.write_text("".join(f"{f.sha256}  {f.name}\n" for f in listed), encoding="utf-8")
        manifest = Manifest(
            format=1, version=version("lepton-fl"), python=_python(),
            platform=sysconfig.get_platform(), files=[_describe(sums), *listed],
        )  # fmt: skip
        archive = folder / "bundle"
        _write(archive, manifest, [sums, *ours, *ordered], key)
        archive.replace(out)
        sync_folder(out.parent)
    finally:
        shutil.rmtree(folder)
    return manifest


def read_bundle(path: Path, signer: Digest, into: Path | None = None) -> Manifest:
    """Checks a bundle: its signature first, then each name, size and byte; then unpacks it.

    Args:
        path: the archive.
        signer: the public key of whoever is trusted to have made it.
        into: a folder that is new or empty, which appears once everything was found good; None to
            check only.

    Raises:
        BundleForged: the manifest is not signed by that key.
        BundleUnsafe: the manifest or a member names a path, or a member is a link or too large.
        BundleAltered: a member is missing, added, exchanged or damaged.
        BundleError: the file cannot be read, or the folder holds something already.
    """
    if into is not None and into.exists() and (not into.is_dir() or any(into.iterdir())):
        raise BundleError(f"{into} is not empty; choose a new folder.")
    try:
        with path.open("rb") as stream, _unpacking(into) as folder:
            manifest = _read_manifest(stream, signer, folder)
            for file in manifest.files:
                _expect(stream, file.name, file.size)
                digest = hashlib.sha256()
                _copy(stream, file.name, file.size, folder, digest.update)
                if digest.hexdigest() != file.sha256:
                    raise BundleAltered(f"{file.name} is not what the bundle's maker signed.")
            if stream.read(len(_END) + 1) != _END:
                raise BundleAltered("The bundle goes on after the last file that was signed.")
    except OSError as error:
        raise BundleError(f"Cannot read or unpack {path}: {error.strerror}.") from None
    return manifest


def _read_manifest(stream: BinaryIO, signer: Digest, folder: Path | None) -> Manifest:
    size = _announced_size(stream)
    text = _copy(stream, MANIFEST_FILE, size, folder)
    _expect(stream, SIGNATURE_FILE, _SIGNATURE_SIZE)
    signature = _copy(stream, SIGNATURE_FILE, _SIGNATURE_SIZE, folder)
    try:
        signed = Signed(document=text.decode(), signatures={signer: signature.hex()})
    except ValueError:
        raise BundleForged("The signer is a public key: 64 hexadecimal digits.") from None
    if not signers(signed, "bundle"):
        raise BundleForged(
            f"The bundle is not signed by {signer[:16]}...; ask its maker for the key, by another "
            "way than the bundle came."
        )
    try:
        manifest = parse_json(Manifest, signed.document)
    except ValueError as error:
        raise BundleUnsafe(f"The bundle's manifest is {error}.") from None
    names = [MANIFEST_FILE, SIGNATURE_FILE, *(file.name for file in manifest.files)]
    # On some systems names that differ in their case are one.
    if len({name.lower() for name in names}) != len(names):
        raise BundleUnsafe("The bundle's manifest names a file twice.")
    return manifest


def _announced_size(stream: BinaryIO) -> int:
    """Reads the manifest's header, whose size nobody could announce before."""
    block = stream.read(_BLOCK)
    try:
        size = tarfile.TarInfo.frombuf(block, "utf-8", "strict").size
    except (tarfile.HeaderError, UnicodeDecodeError):
        raise BundleAltered("This is not a bundle, or its beginning is lost.") from None
    if not 0 <= size <= _LARGEST_MANIFEST:
        raise BundleUnsafe(f"The bundle's manifest has more than {_LARGEST_MANIFEST} bytes.")
    _compare(block, _header(MANIFEST_FILE, size), MANIFEST_FILE)
    return size


def _expect(stream: BinaryIO, name: str, size: int) -> None:
    """Reads a member's header, which must be to the byte the one that `bundle` writes."""
    header = _header(name, size)
    _compare(stream.read(len(header)), header, name)


def _compare(came: bytes, header: bytes, name: str) -> None:
    if came == header:
        return
    try:
        info = tarfile.TarInfo.frombuf(came[:_BLOCK], "utf-8", "strict")
    except (tarfile.HeaderError, UnicodeDecodeError):
        raise BundleAltered(f"The bundle ends or is damaged where {name} should be.") from None
    # It is refused in any case; this only says what was tried.
    if not info.isreg() or "/" in info.name or "\\" in info.name or info.name.startswith("."):
        raise BundleUnsafe(f"The bundle holds a link, a device or a path where {name} should be.")
    raise BundleAltered(f"The bundle holds something else where {name} should be.")


def _copy(
    stream: BinaryIO,
    name: str,
    size: int,
    folder: Path | None,
    see: Callable[[bytes], object] = lambda part: None,
) -> bytes:
    """Reads a member's bytes and padding; returns them if they are few."""
    kept, left = bytearray(), size
    with (folder / name).open("xb") if folder else nullcontext() as file:
        while left:
            part = stream.read(min(_CHUNK, left))
            if not part:
                raise BundleAltered(f"The bundle ends in the middle of {name}.")
            see(part)
            if file is not None:
                file.write(part)
            left -= len(part)
            if size <= _LARGEST_MANIFEST:
                kept += part
    padding = -size % _BLOCK
    if stream.read(padding) != bytes(padding):
        raise BundleAltered(f"The bundle holds something after {name} that was not signed.")
    return bytes(kept)


@contextmanager
def _unpacking(into: Path | None) -> Iterator[Path | None]:
    """Gives a folder that takes its place once everything in it is good, or vanishes."""
    if into is None:
        yield None
        return
    folder = Path(tempfile.mkdtemp(dir=into.parent, prefix=f".{into.name}."))
    try:
        yield folder
        folder.chmod(0o755)
        folder.replace(into)
        sync_folder(into.parent)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _write(archive: Path, manifest: Manifest, paths: Iterable[Path], key: SigningKey) -> None:
    text = to_json(manifest)
    signature = bytes.fromhex(sign(key, "bundle", text))
    with archive.open("wb") as out:
        for name, data in ((MANIFEST_FILE, text.encode()), (SIGNATURE_FILE, signature)):
            out.write(_header(name, len(data)) + data + bytes(-len(data) % _BLOCK))
        for file, path in zip(manifest.files, paths, strict=True):
            out.write(_header(file.name, file.size))
            with path.open("rb") as source:
                shutil.copyfileobj(source, out, _CHUNK)
            out.write(bytes(-file.size % _BLOCK))
        out.write(_END)


def _header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o644
    return info.tobuf(tarfile.GNU_FORMAT, "utf-8", "strict")


def _describe(path: Path) -> BundleFile:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return BundleFile(name=path.name, size=path.stat().st_size, sha256=digest)


def _requirements(wheels: Iterable[BundleFile]) -> str:
    lines = ["# All that Lepton needs, to the byte; see INSTALL.md."]
    for wheel in wheels:
        name, release, _, _ = parse_wheel_filename(wheel.name)
        lines.append(f"{name}=={release} --hash=sha256:{wheel.sha256}")
    return "\n".join(lines) + "\n"


def _guide(name: str, key: SigningKey) -> str:
    text = files("lepton_cli").joinpath("templates/INSTALL.md.j2").read_text("utf-8")
    template = Environment(autoescape=False).from_string(text)  # noqa: S701 (not HTML)
    return template.render(
        bundle=name, signer=key.public_hex, python=_python(), platform=sysconfig.get_platform()
    )


def _python() -> str:
    return f"{sys.version_info.major}.{sys.version_info.minor}"
