"""Tests of signing keys against RFC 8032 and on disk."""

import json

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from lepton_common.errors import KeyUnreadable
from lepton_common.identity.keys import SigningKey, verify


@pytest.fixture(params=range(3))
def vector(request, vectors):
    known = json.loads((vectors / "rfc8032.json").read_text())["vectors"][request.param]
    return {name: bytes.fromhex(value) for name, value in known.items()}


def test_signs_as_rfc_8032_says(vector):
    key = SigningKey(Ed25519PrivateKey.from_private_bytes(vector["secret"]))
    assert bytes.fromhex(key.public_hex) == vector["public"]
    assert key.sign(vector["message"]) == vector["signature"]
    assert verify(key.public_hex, vector["signature"], vector["message"])


def test_refuses_another_message_signature_or_key(vector):
    public, message, signature = vector["public"].hex(), vector["message"], vector["signature"]
    assert not verify(public, signature, message + b"x")
    for place in (0, 31, 32, 63):
        flipped = bytearray(signature)
        flipped[place] ^= 1
        assert not verify(public, bytes(flipped), message)
    assert not verify(SigningKey.generate().public_hex, signature, message)


@pytest.mark.parametrize("public", ["", "00", "zz" * 32, "é" * 64, "ab" * 31, "ff" * 33])
def test_a_public_key_that_is_none_verifies_nothing(public):
    assert not verify(public, bytes(64), b"")


def test_a_signature_of_another_length_verifies_nothing():
    key = SigningKey.generate()
    assert not verify(key.public_hex, key.sign(b"x")[:-1], b"x")
    assert not verify(key.public_hex, b"", b"x")


def test_a_saved_key_is_read_back_and_only_its_owner_may_read_it(tmp_path):
    key, path = SigningKey.generate(), tmp_path / "key.pem"
    path.write_bytes(b"an older file that all may read")
    path.chmod(0o644)
    key.save(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert SigningKey.load(path).public_hex == key.public_hex
    assert list(tmp_path.iterdir()) == [path]


def test_two_keys_differ():
    assert SigningKey.generate().public_hex != SigningKey.generate().public_hex


def _pem(private, encryption):
    return private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption
    )


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no key at all",
        _pem(generate_private_key(SECP256R1()), serialization.NoEncryption()),
        _pem(Ed25519PrivateKey.generate(), serialization.BestAvailableEncryption(b"secret")),
    ],
    ids=["empty", "junk", "another kind", "encrypted"],
)
def test_a_file_without_a_plain_ed25519_key_is_refused(tmp_path, data):
    path = tmp_path / "key.pem"
    path.write_bytes(data)
    with pytest.raises(KeyUnreadable):
        SigningKey.load(path)


def test_a_missing_key_is_refused_by_name(tmp_path):
    with pytest.raises(KeyUnreadable, match="No such file"):
        SigningKey.load(tmp_path / "key.pem")


def test_a_sealed_key_opens_under_its_passphrase_only(tmp_path):
    path, key = tmp_path / "key.pem", SigningKey.generate()
    key.save(path, "correct horse")
    assert SigningKey.load(path, "correct horse").public_hex == key.public_hex
    assert path.read_bytes().startswith(b"-----BEGIN OPENSSH PRIVATE KEY-----")
    for wrong, said in ((None, "is sealed"), ("battery", "another passphrase")):
        with pytest.raises(KeyUnreadable, match=said):
            SigningKey.load(path, wrong)
    key.save(path)
    with pytest.raises(KeyUnreadable, match="is not sealed"):
        SigningKey.load(path, "correct horse")
