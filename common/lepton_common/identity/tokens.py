"""Signing keys in a PKCS#11 token: they are made in it, sign in it, and never leave it.

A small file stands where the key's own would: it says which module, token and key, and holds no
secret. The token's PIN is what a passphrase is to a sealed key.
"""

import hmac
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple, cast

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import Field

from lepton_common.durable import write_atomic
from lepton_common.errors import KeyUnreadable, TokenGone
from lepton_common.identity.keys import SigningKey, verify
from lepton_common.strict import Digest, parse_json, record, to_json

if TYPE_CHECKING:
    from pkcs11 import Session, Token
    from pkcs11.types import SignMixin

_ED25519 = bytes.fromhex("06032b6570")  # its name in DER: 1.3.101.112 (RFC 8410)
_ID_BYTES, _SECRET_BITS, _SIGNATURE_BYTES = 16, 256, 64
# One call at a time in the whole process: python-pkcs11 starts a module without locks of its own,
# and SoftHSM then crashes when two threads sign at once.
_LOCK = threading.RLock()


class _Login(NamedTuple):
    session: "Session"
    pin: str


# A process logs in to a token once, whatever keys it takes from it.
_LOGINS: dict[tuple[str, str], _Login] = {}


@record
class TokenReference:
    """Where a key is: what stands in the file in place of it.

    Attributes:
        kind: tells it from other files.
        module: the PKCS#11 library of the token's maker.
        token: the token's label.
        key: the id of the key, and of the secret beside it, in the token.
        public_key: the key's public half.
    """

    kind: Literal["pkcs11"]
    module: Annotated[str, Field(min_length=2, pattern="^/")]
    token: Annotated[str, Field(min_length=1, max_length=32)]
    key: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    public_key: Digest


class TokenKey(SigningKey):
    """A key in a token; otherwise like any other."""

    def __init__(self, reference: TokenReference, pin: str | None) -> None:
        """Logs in, and sees that the key is there and is the one that the reference names.

        Raises:
            KeyUnreadable: module, token or key are not there, or the PIN is not right.
        """
        self._reference = reference
        self.public_hex = reference.public_key
        name = bytes.fromhex(reference.key)
        with _opening(reference.token):
            from pkcs11 import KeyType, ObjectClass

            session = _session(reference.module, reference.token, pin)
            signer = session.get_key(ObjectClass.PRIVATE_KEY, KeyType.EC_EDWARDS, id=name)
            secret = session.get_key(ObjectClass.SECRET_KEY, KeyType.GENERIC_SECRET, id=name)
            self._signer, self._secret = cast("SignMixin", signer), cast("SignMixin", secret)
        try:
            self.sign(b"lepton/token/probe/v1" + os.urandom(32))
        except TokenGone:
            raise KeyUnreadable(
                f"The key in the token {reference.token} is not the one that was made for here."
            ) from None

    @classmethod
    def make(cls, module: str, token: str, label: str, pin: str | None) -> "TokenKey":
        """Makes a key inside a token, from where nothing gets it out.

        Args:
            module: path of the PKCS#11 library of the token's maker.
            token: the token's label.
            label: what the token calls the key, for people.
            pin: the token's.

        Raises:
            KeyUnreadable: there is no such module or token, the PIN is not right, or the token
                cannot make such a key.
        """
        name = os.urandom(_ID_BYTES)
        with _opening(token):
            public = _generate(_session(module, token, pin), name, label)
        reference = TokenReference(
            kind="pkcs11", module=module, token=token, key=name.hex(), public_key=public
        )
        return cls(reference, pin)

    def save(self, path: Path, passphrase: str | None = None) -> None:
        """Writes the reference; the PIN is not in it."""
        write_atomic(path, to_json(self._reference).encode() + b"\n", mode=0o600)

    def derive(self, purpose: bytes) -> bytes:
        """Returns a 32-byte secret for one purpose (HKDF-Expand under the token's own secret).

        Raises:
            TokenGone: the token does not answer.
        """
        from pkcs11 import Mechanism

        with self._asking():
            # One block of RFC 5869, section 2.3: HMAC over the purpose and the block's number.
            derived: bytes = self._secret.sign(purpose + b"\x01", mechanism=Mechanism.SHA256_HMAC)
        return derived

    def sign_certificate(self, builder: x509.CertificateBuilder) -> x509.Certificate:
        """Returns a certificate signed with the key.

        Raises:
            TokenGone: the token does not answer.
        """
        # The builder signs with keys of its own library only. A certificate ends in its
        # signature, and one of Ed25519 has always the same length.
        other = builder.sign(Ed25519PrivateKey.generate(), None)
        der = other.public_bytes(serialization.Encoding.DER)
        signature = self.sign(other.tbs_certificate_bytes)
        return x509.load_der_x509_certificate(der[:-_SIGNATURE_BYTES] + signature)

    def sign(self, message: bytes) -> bytes:
        """Returns the 64-byte signature over ``message``.

        Raises:
            TokenGone: the token does not answer, or with another key's signature.
        """
        from pkcs11 import Mechanism

        with self._asking():
            signature: bytes = self._signer.sign(message, mechanism=Mechanism.EDDSA)
        if not verify(self.public_hex, signature, message):
            raise TokenGone(f"The token {self._reference.token} signs with another key.")
        return signature

    @contextmanager
    def _asking(self) -> Iterator[None]:
        from pkcs11 import PKCS11Error

        token = self._reference.token
        with _LOCK:
            try:
                yield
            except PKCS11Error as error:
                raise TokenGone(
                    f"The token {token} does not answer any more ({type(error).__name__}): was it "
                    "pulled out? Put it in, and start again."
                ) from None


def read_reference(data: bytes, path: Path) -> TokenReference:
    """Returns the reference that a file holds.

    Raises:
        KeyUnreadable: it holds none.
    """
    try:
        return parse_json(TokenReference, data.decode())
    except ValueError:
        raise KeyUnreadable(
            f"{path} names no key in a token as it should; it was altered. Restore it."
        ) from None


@contextmanager
def _opening(token: str) -> Iterator[None]:
    """Takes the lock, and names what goes wrong while a key is opened or made."""
    try:
        from pkcs11 import PKCS11Error, exceptions
    except ImportError:
        raise KeyUnreadable(
            f"The key is in the token {token}, for which python-pkcs11 is missing: "
            "pip install 'lepton-fl[pkcs11]'."
        ) from None
    with _LOCK:
        try:
            yield
        except exceptions.NoSuchToken:
            said = f"There is no token {token} here; put it in, and try again."
        except exceptions.MultipleTokensReturned:
            said = f"Several tokens are called {token}; leave the right one in."
        except exceptions.NoSuchKey:
            said = f"The token {token} does not hold the key that was made for here."
        except exceptions.PinLocked:
            said = f"The token {token} is locked; unlock it with its maker's tool."
        except (exceptions.PinIncorrect, exceptions.PinInvalid, exceptions.PinLenRange):
            said = _wrong_pin(token)
        except PKCS11Error as error:
            said = f"The token {token} does not do what it should ({type(error).__name__})."
        else:
            return
    raise KeyUnreadable(said)


def _session(module: str, token: str, pin: str | None) -> "Session":
    """Returns the process's session with a token; tries the PIN once at most."""
    from pkcs11 import TokenFlag

    found = _find(module, token)
    if pin is None:
        raise KeyUnreadable(f"The key is in the token {token}; give its PIN (--passphrase-file).")
    place = (module, found.serial.decode(errors="replace"))
    held = _LOGINS.get(place)
    if held is not None:
        if not hmac.compare_digest(held.pin.encode(), pin.encode()):
            raise KeyUnreadable(_wrong_pin(token))
        return held.session
    if found.flags & (TokenFlag.USER_PIN_FINAL_TRY | TokenFlag.USER_PIN_LOCKED):
        raise KeyUnreadable(
            f"The token {token} is locked, or would be by one more wrong PIN; log in with its "
            "maker's tool first."
        )
    _LOGINS[place] = _Login(found.open(rw=True, user_pin=pin), pin)
    return _LOGINS[place].session


def _find(module: str, token: str) -> "Token":
    import pkcs11

    try:
        library = pkcs11.lib(module)
    except pkcs11.PKCS11Error:
        raise KeyUnreadable(
            f"{module} is no PKCS#11 module that works here; give the path of your token's."
        ) from None
    return library.get_token(token_label=token)


def _generate(session: "Session", name: bytes, label: str) -> str:
    """Makes a signing key and a secret beside it; returns the public key, in hexadecimal."""
    from pkcs11 import Attribute, KeyType, Mechanism, MechanismFlag

    locked = {Attribute.SENSITIVE: True, Attribute.EXTRACTABLE: False, Attribute.SIGN: True}
    curve = session.create_domain_parameters(
        KeyType.EC_EDWARDS, {Attribute.EC_PARAMS: _ED25519}, local=True
    )
    public, private = curve.generate_keypair(
        mechanism=Mechanism.EC_EDWARDS_KEY_PAIR_GEN,
        id=name, label=label, store=True, private_template={**locked, Attribute.DERIVE: False},
    )  # fmt: skip
    try:
        session.generate_key(
            KeyType.GENERIC_SECRET, _SECRET_BITS,
            mechanism=Mechanism.GENERIC_SECRET_KEY_GEN,
            id=name, label=label, store=True, capabilities=MechanismFlag.SIGN, template=locked,
        )  # fmt: skip
    except BaseException:
        private.destroy()
        public.destroy()
        raise
    # A DER octet string in most tokens, the bare 32 bytes in some.
    return bytes(public[Attribute.EC_POINT])[-32:].hex()


def _wrong_pin(token: str) -> str:
    return (
        f"The token {token} refuses the PIN. It was tried once: mend the file before you try "
        "again, for tokens lock after a few wrong ones."
    )
