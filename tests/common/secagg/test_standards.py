"""Tests of SA1's primitives against published vectors of the IETF and of NIST."""

import json

import numpy as np
import pytest
from cryptography.hazmat.primitives import hashes

from lepton_common.errors import LowOrderPoint, ShareDecryptError
from lepton_common.secagg import keys
from lepton_common.secagg.masks import BACKENDS, add_masks, keystream, lane_bytes

_SINGLE = range(2)
_REFUSED = ["u0", "u1", "u2", "u3", "u4", "u5", "u7"]
_ACCEPTED = ["u6", "u8", "u9", "ua", "ub"]
_WITH_DATA = [14, 15, 16]  # test case 13 has no plaintext, so no keystream


@pytest.fixture
def x25519(vectors):
    return json.loads((vectors / "rfc7748.json").read_text())


@pytest.fixture
def low_order(x25519):
    known = x25519["low_order"]
    return bytes.fromhex(known["scalar"]), {point["name"]: point for point in known["points"]}


@pytest.fixture
def hkdf(vectors):
    found = json.loads((vectors / "rfc5869.json").read_text())["vectors"]
    return {vector["name"]: _bytes(vector, "ikm", "salt", "info", "okm") for vector in found}


@pytest.fixture
def ctr(vectors):
    found = json.loads((vectors / "nist_aes.json").read_text())["ctr"]
    return _bytes(found, "key", "counter", "plaintext", "ciphertext")


@pytest.fixture
def gcm(vectors):
    found = json.loads((vectors / "nist_aes.json").read_text())["gcm"]
    names = ("key", "iv", "plaintext", "aad", "ciphertext", "tag")
    return {int(vector["source"].split()[-1]): _bytes(vector, *names) for vector in found}


@pytest.fixture
def share_as_in(monkeypatch):
    """Gives the sealing of shares a vector's nonce and associated data in place of SA1's own."""

    def put(iv, aad):
        monkeypatch.setattr(keys, "_NONCE", iv)
        monkeypatch.setattr(keys, "_bound_to", lambda *_: aad)

    return put


def _bytes(vector, *names):
    return tuple(bytes.fromhex(vector[name]) for name in names)


def _xor(left, right):
    return bytes(a ^ b for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize("index", _SINGLE)
def test_x25519_of_one_point(x25519, index):
    """RFC 7748, section 5.2, the two single vectors; the second has bit 255 of u set."""
    scalar, u, output = _bytes(x25519["single"][index], "scalar", "u", "output")
    assert keys.agree(scalar, u, 1) == output


@pytest.mark.parametrize("times", [1, 1000])
def test_x25519_iterated(x25519, times):
    """RFC 7748, section 5.2, the iterated test after 1 and after 1,000 iterations."""
    k = u = bytes.fromhex(x25519["iterated"]["start"])
    for _ in range(times):
        k, u = keys.agree(k, u, 1), k
    assert k.hex() == x25519["iterated"]["after"][str(times)]


@pytest.mark.parametrize("who", ["alice", "bob"])
def test_x25519_public_key(x25519, who):
    """RFC 7748, section 6.1, both public keys."""
    secret, public = _bytes(x25519["diffie_hellman"], f"{who}_secret", f"{who}_public")
    assert keys.public_of(secret) == public
    keys.check_order(public, 1)


@pytest.mark.parametrize(("mine", "other"), [("alice", "bob"), ("bob", "alice")])
def test_x25519_agreement(x25519, mine, other):
    """RFC 7748, section 6.1, the shared secret from either side."""
    names = (f"{mine}_secret", f"{other}_public", "shared")
    secret, public, shared = _bytes(x25519["diffie_hellman"], *names)
    assert keys.agree(secret, public, 1) == shared


@pytest.mark.parametrize("bit_255", [0, 0x80])
@pytest.mark.parametrize("name", _REFUSED)
def test_x25519_refuses_low_order(low_order, name, bit_255):
    """RFC 7748, section 6.1, the check for all zeros, by CPace B.1.10; section 5 masks bit 255."""
    scalar, points = low_order
    assert points[name]["output"] is None
    u = bytearray.fromhex(points[name]["u"])
    u[31] |= bit_255
    with pytest.raises(LowOrderPoint, match="Site 7"):
        keys.agree(scalar, bytes(u), 7)
    with pytest.raises(LowOrderPoint, match="Site 7"):
        keys.check_order(bytes(u), 7)


@pytest.mark.parametrize("name", _ACCEPTED)
def test_x25519_masks_bit_255_before_it_judges_the_order(low_order, name):
    """RFC 7748, section 5, by CPace B.1.10: of low order only if bit 255 were not masked."""
    scalar, points = low_order
    u, output = _bytes(points[name], "u", "output")
    assert keys.agree(scalar, u, 1) == output
    keys.check_order(u, 1)


@pytest.mark.parametrize("name", ["A.1", "A.2", "A.3"])
def test_key_derivation(hkdf, name, monkeypatch):
    """RFC 5869, appendix A, the first 32 bytes, by `derive` with the vector's info for SA1's."""
    ikm, salt, info, okm = hkdf[name]
    monkeypatch.setattr(keys, "lp", lambda *_: info)
    assert keys.derive(ikm, salt, "any") == okm[:32]


@pytest.mark.parametrize("name", ["A.1", "A.2", "A.3"])
def test_hkdf_at_full_length(hkdf, name):
    """RFC 5869, appendix A, the whole output, by the class under `derive`, which stops at 32."""
    ikm, salt, info, okm = hkdf[name]
    assert keys.HKDF(hashes.SHA256(), length=len(okm), salt=salt, info=info).derive(ikm) == okm


@pytest.mark.parametrize("block", range(4))
def test_ctr_from_each_block(ctr, block):
    """NIST SP 800-38A, F.5.5, CTR-AES256: 12 bytes of lane, 4 of counter; SA1 counts from 2."""
    key, counter, plaintext, ciphertext = ctr
    lane, first = int.from_bytes(counter[:12]), int.from_bytes(counter[12:]) - 2
    wanted = _xor(plaintext, ciphertext)[16 * block :]
    out = bytearray(len(wanted))
    stream = BACKENDS["ctr"](key, lane, first + block)
    stream.update_into(memoryview(bytes(len(wanted))), out)
    assert out == wanted


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", _WITH_DATA)
def test_lane_is_the_gcm_keystream(gcm, case, backend):
    """GCM specification (SP 800-38D), AES-256: the lane of the IV is ciphertext XOR plaintext."""
    key, iv, plaintext, _, ciphertext, _ = gcm[case]
    stream = lane_bytes(key, int.from_bytes(iv), len(plaintext), backend)
    assert _xor(stream.tobytes(), plaintext) == ciphertext


@pytest.mark.parametrize("backend", [None, *BACKENDS])
def test_lane_0_is_test_case_14(gcm, backend):
    """GCM specification (SP 800-38D), test case 14: zero IV, zero plaintext, so lane 0 itself."""
    key, iv, plaintext, _, ciphertext, _ = gcm[14]
    assert not any(iv + plaintext)
    assert keystream(key, 16, backend).tobytes() == ciphertext


@pytest.mark.parametrize("backend", [None, *BACKENDS])
@pytest.mark.parametrize(("width", "dtype"), [(16, "<u2"), (32, "<u4")])
def test_mask_is_test_case_14(gcm, width, dtype, backend):
    """GCM specification (SP 800-38D), test case 14, as a mask that is added to zeros."""
    key, *_, ciphertext, _ = gcm[14]
    vector = np.zeros(128 // width, dtype)
    add_masks(vector, [(key, 1)], width, backend=backend)
    assert vector.tobytes() == ciphertext


@pytest.mark.parametrize("case", [13, 14, 15, 16])
def test_sealed_share(gcm, case, share_as_in):
    """GCM specification (SP 800-38D), AES-256, test cases 13 to 16: ciphertext and tag."""
    key, iv, plaintext, aad, ciphertext, tag = gcm[case]
    share_as_in(iv, aad)
    assert keys.seal_share(key, b"", b"", 1, 2, plaintext) == ciphertext + tag
    assert keys.open_share(key, b"", b"", 1, 2, ciphertext + tag) == plaintext


@pytest.mark.parametrize("case", [13, 14, 15, 16])
@pytest.mark.parametrize("place", [0, -16, -1])
def test_changed_share_does_not_open(gcm, case, place, share_as_in):
    """NIST SP 800-38D, section 7.2: decryption fails where the tag is not the data's."""
    key, iv, _, aad, ciphertext, tag = gcm[case]
    share_as_in(iv, aad)
    box = bytearray(ciphertext + tag)
    box[place] ^= 1
    with pytest.raises(ShareDecryptError, match="site 1"):
        keys.open_share(key, b"", b"", 1, 2, bytes(box))


def test_sa1_own_nonce_is_zero(gcm):
    """GCM specification (SP 800-38D), test case 14: the ciphertext under SA1's own nonce."""
    key, _, plaintext, _, ciphertext, _ = gcm[14]
    assert keys.seal_share(key, b"", b"", 1, 2, plaintext)[:-16] == ciphertext
