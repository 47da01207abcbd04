"""Certificates: what a long-term key issues, every TLS library takes; what it did not, none."""

import ssl
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509

from lepton_common.errors import CertificateInvalid
from lepton_common.identity.certificates import (
    check_authority,
    check_leaf,
    issue_leaf,
    make_authority,
)
from lepton_common.identity.keys import SigningKey

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
SERVER, SITE, OTHER = (SigningKey.generate() for _ in range(3))


@pytest.fixture
def handshake(tmp_path):
    """Does a TLS handshake in memory with OpenSSL; returns the name of the client's issuer."""

    def context(purpose, leaf, authority, name):
        made = ssl.SSLContext(purpose)
        made.verify_mode = ssl.CERT_REQUIRED
        made.load_verify_locations(cadata=authority)
        chain = tmp_path / f"{name}.pem"
        chain.write_bytes(leaf.certificate + leaf.private_key)
        made.load_cert_chain(chain)
        return made

    def shake(server_leaf, client_leaf, client_anchor, server_anchor, host="localhost"):
        here, there = ssl.MemoryBIO(), ssl.MemoryBIO()
        server = context(ssl.PROTOCOL_TLS_SERVER, server_leaf, client_anchor, "server").wrap_bio(
            here, there, server_side=True
        )
        client = context(ssl.PROTOCOL_TLS_CLIENT, client_leaf, server_anchor, "client").wrap_bio(
            there, here, server_hostname=host
        )
        done = set()
        for _ in range(10):
            for side in (client, server):
                try:
                    side.do_handshake()
                    done.add(side)
                except ssl.SSLWantReadError:
                    pass
        assert len(done) == 2
        return dict(part[0] for part in server.getpeercert()["issuer"])["commonName"]

    return shake


def test_both_sides_of_a_handshake_know_each_other(handshake):
    server = issue_leaf(SERVER, "server", ["localhost", "10.0.0.1"])
    site = issue_leaf(SITE, "site-1")
    anchors = make_authority(SITE, "site-1"), make_authority(SERVER, "server")
    assert handshake(server, site, *anchors) == "site-1"
    assert handshake(server, site, *anchors, host="10.0.0.1") == "site-1"
    with pytest.raises(ssl.SSLCertVerificationError, match="mismatch"):
        handshake(server, site, *anchors, host="example.org")


def test_another_key_under_the_same_name_is_refused(handshake):
    server = issue_leaf(SERVER, "server", ["localhost"])
    anchors = make_authority(SITE, "site-1"), make_authority(SERVER, "server")
    with pytest.raises(ssl.SSLError):
        handshake(server, issue_leaf(OTHER, "site-1"), *anchors)
    expired = issue_leaf(SITE, "site-1", at=NOW - timedelta(days=400))
    with pytest.raises(ssl.SSLError, match="expired"):
        handshake(server, expired, *anchors)


def test_a_leaf_cannot_issue(handshake):
    leaf = x509.load_pem_x509_certificate(issue_leaf(SITE, "site-1").certificate)
    constraints = leaf.extensions.get_extension_for_class(x509.BasicConstraints)
    assert constraints.critical
    assert not constraints.value.ca
    assert leaf.subject != leaf.issuer


def test_an_authority_is_that_of_its_name_and_key():
    pem = make_authority(SITE, "site-1")
    check_authority(pem, "site-1", SITE.public_hex)
    for name, key in (("site-2", SITE), ("site-1", OTHER)):
        with pytest.raises(CertificateInvalid, match="not that of its key"):
            check_authority(pem, name, key.public_hex)
    with pytest.raises(CertificateInvalid, match="damaged"):
        check_authority("", "site-1", SITE.public_hex)
    leaf = issue_leaf(SITE, "site-1").certificate.decode()
    with pytest.raises(CertificateInvalid):
        check_authority(leaf, "site-1", SITE.public_hex)


def test_a_leaf_is_checked_for_issuer_time_and_host():
    leaf = issue_leaf(SERVER, "server", ["fl.example.org", "::1"], at=NOW).certificate
    authority = make_authority(SERVER, "server")
    assert check_leaf(leaf, authority, NOW, "fl.example.org") == NOW + timedelta(days=1)
    check_leaf(leaf, authority, NOW, "::1")
    check_leaf(leaf, authority, NOW - timedelta(minutes=4))
    for at, said in ((NOW + timedelta(days=2), "expired"), (NOW - timedelta(hours=1), "clocks")):
        with pytest.raises(CertificateInvalid, match=said):
            check_leaf(leaf, authority, at)
    for host in ("example.org", "::2", "FL.example.org.evil"):
        with pytest.raises(CertificateInvalid, match="not for the host"):
            check_leaf(leaf, authority, NOW, host)
    with pytest.raises(CertificateInvalid, match="not issued by server"):
        check_leaf(issue_leaf(OTHER, "server", at=NOW).certificate, authority, NOW)
    with pytest.raises(CertificateInvalid, match="damaged"):
        check_leaf(b"", authority, NOW)
    bare = issue_leaf(SERVER, "server", at=NOW).certificate
    with pytest.raises(CertificateInvalid, match="not for the host"):
        check_leaf(bare, authority, NOW, "fl.example.org")
