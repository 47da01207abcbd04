"""Keys in a token: they sign like keys in files, stay where they are, and say what is wrong."""

import json
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from soft_token import PIN, add_token, restart

from lepton_common.errors import CertificateInvalid, KeyUnreadable, TokenGone
from lepton_common.identity import tokens
from lepton_common.identity.certificates import (
    check_authority,
    check_leaf,
    issue_leaf,
    make_authority,
)
from lepton_common.identity.keys import SigningKey, read_public, verify
from lepton_common.identity.tokens import TokenKey


@pytest.fixture
def key(token):
    return TokenKey.make(token.module, token.label, "hospital-a", PIN)


@pytest.fixture
def saved(key, tmp_path):
    """The file that stands in place of the key."""
    key.save(tmp_path / "signing.pem")
    return tmp_path / "signing.pem"


def test_it_signs_as_ed25519_does_and_is_loaded_like_a_key_in_a_file(key, saved):
    again = SigningKey.load(saved, PIN)
    assert again.public_hex == read_public(saved) == key.public_hex
    public = Ed25519PublicKey.from_public_bytes(bytes.fromhex(key.public_hex))
    for message in (b"", b"a", bytes(100_000)):
        public.verify(again.sign(message), message)
        assert again.sign(message) == key.sign(message)
        assert not verify(key.public_hex, key.sign(message), message + b"x")


def test_the_token_gives_neither_key_nor_secret_and_the_file_holds_none(key, saved):
    from pkcs11 import Attribute
    from pkcs11.exceptions import AttributeSensitive

    for held in (key._signer, key._secret):
        assert held[Attribute.SENSITIVE]
        assert not held[Attribute.EXTRACTABLE]
        assert held[Attribute.NEVER_EXTRACTABLE]
        with pytest.raises(AttributeSensitive):
            held[Attribute.VALUE]
    assert saved.stat().st_mode & 0o777 == 0o600
    assert PIN not in saved.read_text()


def test_secrets_of_different_purposes_differ_and_outlive_the_process(key, saved):
    derived = key.derive(b"lepton/vault/v1")
    assert len(derived) == 32
    assert derived != key.derive(b"lepton/vault/v2")
    restart()
    assert SigningKey.load(saved, PIN).derive(b"lepton/vault/v1") == derived


def test_a_derived_secret_is_hkdf_and_no_signature(key, monkeypatch):
    """What the site signs leaves it, so nothing secret may be computed from a signature."""
    from pkcs11 import Attribute, KeyType, ObjectClass

    secret = bytes(range(32))
    key._secret = key._secret.session.create_object({
        Attribute.CLASS: ObjectClass.SECRET_KEY, Attribute.KEY_TYPE: KeyType.GENERIC_SECRET,
        Attribute.VALUE: secret, Attribute.SIGN: True, Attribute.TOKEN: False,
    })  # fmt: skip
    monkeypatch.setattr(key, "_signer", None)
    assert key.derive(b"for this") == HKDFExpand(hashes.SHA256(), 32, b"for this").derive(secret)


def test_openssl_takes_the_certificates_that_it_issues(key, tmp_path):
    authority = make_authority(key, "hospital-a")
    check_authority(authority, "hospital-a", key.public_hex)
    leaf = issue_leaf(key, "hospital-a", ["fl.example.org", "10.0.0.1"])
    check_leaf(leaf.certificate, authority, host="fl.example.org")
    (tmp_path / "authority.pem").write_text(authority)
    (tmp_path / "leaf.pem").write_bytes(leaf.certificate)
    words = ["openssl", "verify", "-x509_strict", "-CAfile", "authority.pem", "leaf.pem"]
    said = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert said.stdout == "leaf.pem: OK\n"
    other = make_authority(SigningKey.generate(), "hospital-a")
    with pytest.raises(CertificateInvalid, match="not issued by hospital-a"):
        check_leaf(leaf.certificate, other)


def test_threads_may_sign_and_derive_at_once(key, token):
    """Without one lock for the whole process SoftHSM crashes here."""
    other = TokenKey.make(add_and_restart(token).module, "second", "b", PIN)
    first = TokenKey.make(token.module, token.label, "hospital-a", PIN)
    secret, wrong = first.derive(b"x"), []

    def work(own):
        for number in range(25):
            message = b"%d" % number
            if not verify(own.public_hex, own.sign(message), message):
                wrong.append(number)
            if own is first and own.derive(b"x") != secret:
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(own,)) for own in (first, other) * 4]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def add_and_restart(token):
    added = add_token(token, "second")
    restart()
    return added


def test_a_wrong_pin_is_tried_once_and_none_not_at_all(key, saved, monkeypatch):
    for again in (False, True):
        with pytest.raises(KeyUnreadable, match="refuses the PIN"):
            SigningKey.load(saved, "9999")
        with pytest.raises(KeyUnreadable, match="give its PIN"):
            SigningKey.load(saved)
        if not again:
            restart()
    tried = []
    flags = SimpleNamespace(flags=0x20000, serial=b"1", open=lambda **_: tried.append(1))
    monkeypatch.setattr(tokens, "_find", lambda *_: flags)
    with pytest.raises(KeyUnreadable, match="one more wrong PIN"):
        SigningKey.load(saved, PIN)
    assert not tried


def altered(saved, **fields):
    saved.write_text(json.dumps({**json.loads(saved.read_text()), **fields}))
    return saved


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"module": "/nowhere.so"}, "no PKCS#11 module"),
        ({"module": sys.executable}, "no PKCS#11 module"),
        ({"module": "softhsm.so"}, "names no key in a token"),
        ({"token": "another"}, "no token another"),
        ({"key": "00" * 16}, "does not hold the key"),
        ({"public_key": SigningKey.generate().public_hex}, "is not the one"),
        ({"kind": "file"}, "names no key in a token"),
        ({"more": 1}, "names no key in a token"),
    ],
)
def test_a_reference_that_does_not_fit_is_refused_by_name(saved, fields, said):
    with pytest.raises(KeyUnreadable, match=said):
        SigningKey.load(altered(saved, **fields), PIN)


def test_a_token_that_is_pulled_out_is_named_and_works_once_it_is_back(key, saved, token):
    token.pull()
    for ask in (lambda: key.sign(b"x"), lambda: key.derive(b"x"), lambda: issue_leaf(key, "a")):
        with pytest.raises(TokenGone, match="pulled out"):
            ask()
    restart()
    with pytest.raises(KeyUnreadable, match="no token lepton-test"):
        SigningKey.load(saved, PIN)
    token.put_back()
    assert SigningKey.load(saved, PIN).public_hex == key.public_hex


def test_a_token_that_signs_with_another_key_is_refused(key, token):
    other = TokenKey.make(token.module, token.label, "b", PIN)
    key._signer = other._signer
    with pytest.raises(TokenGone, match="another key"):
        key.sign(b"x")


def test_without_the_library_it_says_what_to_install(saved, monkeypatch):
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "pkcs11", None)
        with pytest.raises(KeyUnreadable, match=r"pip install 'lepton-fl\[pkcs11\]'"):
            SigningKey.load(saved, PIN)
