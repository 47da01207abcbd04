"""Certificates (RFC 5280): each long-term key issues its own short-lived ones, with no authority.

The roster names the long-term keys. A site that renews its certificate, or that the partners add
or revoke, needs nothing of anybody else: who checks certificates takes the roster's keys as the
anchors. The long-term key is Ed25519 (RFC 8410) and can stay in a token; the key of a short-lived
certificate is P-256, which every TLS library takes.
"""

import ipaddress
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from lepton_common.errors import CertificateInvalid
from lepton_common.identity.keys import SigningKey

LIFETIME = timedelta(days=1)
_AUTHORITY_LIFETIME = timedelta(days=365 * 30)
_CLOCKS_APART = timedelta(minutes=5)


class Leaf(NamedTuple):
    """A short-lived certificate and its private key, both PEM."""

    certificate: bytes
    private_key: bytes


def make_authority(key: SigningKey, name: str, at: datetime | None = None) -> str:
    """Returns the PEM certificate of a long-term key, which may issue nothing but leaves."""
    at = at or datetime.now(UTC)
    public = Ed25519PublicKey.from_public_bytes(bytes.fromhex(key.public_hex))
    builder = (
        _builder(_subject(name), _subject(name), public, at, _AUTHORITY_LIFETIME)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(issues=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
    )
    return _pem(key.sign_certificate(builder)).decode()


def check_authority(pem: str, name: str, public_hex: str) -> None:
    """Checks that a PEM certificate is that of a name and a key, signed by the key itself.

    Raises:
        CertificateInvalid: it is not.
    """
    try:
        authority = x509.load_pem_x509_certificate(pem.encode())
        authority.verify_directly_issued_by(authority)
        key = authority.public_key()
        constraints = authority.extensions.get_extension_for_class(x509.BasicConstraints).value
    except (ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound):
        raise CertificateInvalid(f"The long-term certificate of {name} is damaged.") from None
    fits = (
        isinstance(key, Ed25519PublicKey)
        and key.public_bytes_raw().hex() == public_hex
        and authority.subject == _subject(name)
        and (constraints.ca, constraints.path_length) == (True, 0)
    )
    if not fits:
        raise CertificateInvalid(f"The long-term certificate of {name} is not that of its key.")


def issue_leaf(
    key: SigningKey,
    name: str,
    hosts: Iterable[str] = (),
    *,
    at: datetime | None = None,
    lifetime: timedelta = LIFETIME,
) -> Leaf:
    """Issues a certificate for a fresh key, good from five minutes ago.

    Args:
        key: the long-term key.
        name: whose it is, as in its long-term certificate.
        hosts: names and addresses under which a server answers.
        at: the time; None for now.
        lifetime: how long it is good.
    """
    at = at or datetime.now(UTC)
    private = ec.generate_private_key(ec.SECP256R1())
    authority = Ed25519PublicKey.from_public_bytes(bytes.fromhex(key.public_hex))
    purposes = [ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]
    # Its own name is another one than its issuer's, or some libraries take it for self-signed.
    builder = (
        _builder(_subject(f"{name} tls"), _subject(name), private.public_key(), at, lifetime)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(issues=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(authority), critical=False
        )
    )
    if names := [_host(host) for host in hosts]:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    pem = private.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return Leaf(_pem(key.sign_certificate(builder)), pem)


def check_leaf(pem: bytes, authority: str, at: datetime | None = None, host: str = "") -> datetime:
    """Checks a short-lived certificate, and returns until when it is good.

    Args:
        pem: the certificate.
        authority: the long-term one that should have issued it.
        at: the time; None for now.
        host: the name or address that its owner should answer under; "" for none.

    Raises:
        CertificateInvalid: it is damaged, expired, not yet good, another's or for another host.
    """
    at = at or datetime.now(UTC)
    try:
        leaf = x509.load_pem_x509_certificate(pem)
        issuer = x509.load_pem_x509_certificate(authority.encode())
    except ValueError:
        raise CertificateInvalid("The certificate is damaged; issue it anew.") from None
    who = issuer.subject.rfc4514_string().removeprefix("CN=")
    try:
        leaf.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        raise CertificateInvalid(f"The certificate was not issued by {who}.") from None
    if at > leaf.not_valid_after_utc:
        raise CertificateInvalid(
            f"The certificate of {who} expired on {leaf.not_valid_after_utc:%Y-%m-%d %H:%M} UTC; "
            "renew it, and check both clocks."
        )
    if at < leaf.not_valid_before_utc:
        raise CertificateInvalid(
            f"The certificate of {who} is good from {leaf.not_valid_before_utc:%Y-%m-%d %H:%M} UTC "
            "only; check both clocks."
        )
    if host and _host(host) not in _names(leaf):
        raise CertificateInvalid(f"The certificate of {who} is not for the host {host}.")
    return leaf.not_valid_after_utc


def _names(leaf: x509.Certificate) -> list[x509.GeneralName]:
    try:
        return list(leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    except x509.ExtensionNotFound:
        return []


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public: Ed25519PublicKey | ec.EllipticCurvePublicKey,
    at: datetime,
    lifetime: timedelta,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(at - _CLOCKS_APART)
        .not_valid_after(at + lifetime)
    )


def _subject(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _usage(*, issues: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not issues,
        key_cert_sign=issues,
        crl_sign=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)
