"""Where a new long-term key is made: in a file, sealed or not, or inside a token."""

from pathlib import Path
from typing import NamedTuple

from lepton_common.errors import IdentityError, SettingsError
from lepton_common.identity.keys import SigningKey


class KeyPlace(NamedTuple):
    """Where a key is made.

    Attributes:
        passphrase: seals a key in a file, None to leave it open to the folder's owner; the PIN
            of a token.
        token: the token's label; None for a file.
        module: PKCS#11 library of the token's maker.
    """

    passphrase: str | None = None
    token: str | None = None
    module: Path | None = None

    def make(self, name: str) -> SigningKey:
        """Makes a key, which a token will call by ``name``.

        Raises:
            KeyUnreadable: the token does not make one.
        """
        if self.token is None or self.module is None:
            return SigningKey.generate()
        from lepton_common.identity.tokens import TokenKey

        return TokenKey.make(str(self.module.absolute()), self.token, name, self.passphrase)


def key_place(passphrase_file: Path | None, token: str | None, module: Path | None) -> KeyPlace:
    """Returns the place that a command's options name.

    Raises:
        IdentityError: the file with the passphrase cannot be read, or is empty.
        SettingsError: half of a token is named.
    """
    if (token is None) != (module is None):
        raise SettingsError("Give --token and --module together.")
    return KeyPlace(read_passphrase(passphrase_file), token, module)


def read_passphrase(path: Path | None) -> str | None:
    """Returns the passphrase in the first line of a file; None without a file.

    Raises:
        IdentityError: it cannot be read, or is empty.
    """
    if path is None:
        return None
    try:
        (line, *_) = path.read_text(encoding="utf-8").splitlines() or [""]
    except OSError as error:
        raise IdentityError(f"Cannot read the passphrase file {path}: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise IdentityError(f"The passphrase file {path} holds no text (UTF-8).") from None
    if not line:
        raise IdentityError(f"The first line of {path} is empty; write the passphrase there.")
    return line
