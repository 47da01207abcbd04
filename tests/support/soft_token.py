"""Tokens of SoftHSM in a temporary folder, which a test can pull out and put back."""

import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

PIN = "2468"
_MODULES = ("/usr/lib/softhsm/libsofthsm2.so", "/usr/lib64/pkcs11/libsofthsm2.so")


@dataclass(frozen=True)
class SoftToken:
    """A token that tests may use.

    Attributes:
        module: path of SoftHSM's library.
        label: the token's.
        folder: where SoftHSM keeps it.
    """

    module: str
    label: str
    folder: Path

    @property
    def options(self) -> str:
        """What a command needs to make a key in it."""
        (self.folder.parent / "pin").write_text(f"{PIN}\n")
        where = f"--token {self.label} --module {self.module}"
        return f"{where} --passphrase-file {self.folder.parent / 'pin'}"

    def pull(self) -> None:
        """Takes it out of the running process's reach."""
        _move(self.folder, self.folder.with_name("pulled"))

    def put_back(self) -> None:
        """Puts it back, as for a process that starts anew."""
        _move(self.folder.with_name("pulled"), self.folder)
        restart()


def restart() -> None:
    """Forgets what the process knows about tokens, as its end would."""
    import pkcs11

    from lepton_common.identity import tokens

    tokens._LOGINS.clear()
    for module in _MODULES:
        if Path(module).exists():
            pkcs11.lib(module).reinitialize()


def add_token(token: SoftToken, label: str) -> SoftToken:
    """Makes another token beside one."""
    _make(label)
    return SoftToken(token.module, label, token.folder)


@pytest.fixture
def token(tmp_path_factory, monkeypatch) -> Iterator[SoftToken]:
    """Returns a fresh token; skips where SoftHSM is not installed."""
    module = next((path for path in _MODULES if Path(path).exists()), None)
    if module is None or shutil.which("softhsm2-util") is None:
        pytest.skip("needs SoftHSM (Debian: apt-get install softhsm2), which is not here")
    pytest.importorskip("pkcs11", reason="needs python-pkcs11: pip install 'lepton-fl[pkcs11]'")
    home = tmp_path_factory.mktemp("softhsm")
    (home / "tokens").mkdir()
    (home / "softhsm2.conf").write_text(
        f"directories.tokendir = {home / 'tokens'}\nobjectstore.backend = file\nlog.level = ERROR\n"
    )
    monkeypatch.setenv("SOFTHSM2_CONF", str(home / "softhsm2.conf"))
    _make("lepton-test")
    restart()
    yield SoftToken(module, "lepton-test", home / "tokens")
    restart()


def _move(here: Path, there: Path) -> None:
    there.mkdir(exist_ok=True)
    for part in here.iterdir():
        part.rename(there / part.name)


def _make(label: str) -> None:
    subprocess.run(
        ["softhsm2-util", "--init-token", "--free", "--label", label, "--pin", PIN,
         "--so-pin", "13579"],
        check=True, capture_output=True,
    )  # fmt: skip
