"""Merkle roots against the reference vectors of Certificate Transparency."""

import hashlib

import pytest

from lepton_common.merkle import merkle_root

# From the reference implementation of RFC 6962 (certificate-transparency, merkle_tree_test).
_ENTRIES = ["", "00", "10", "2021", "3031", "40414243", "5051525354555657",
            "606162636465666768696a6b6c6d6e6f"]  # fmt: skip
_ROOTS = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]


@pytest.mark.parametrize("count", range(1, 9))
def test_published_roots(count):
    assert merkle_root([bytes.fromhex(entry) for entry in _ENTRIES[:count]]) == _ROOTS[count - 1]


def test_no_entries():
    assert merkle_root([]) == hashlib.sha256(b"").hexdigest()


def _by_definition(entries: list[bytes]) -> bytes:
    """RFC 6962's own recursion: split at the largest power of two below the length."""
    if len(entries) == 1:
        return hashlib.sha256(b"\x00" + entries[0]).digest()
    k = 1
    while 2 * k < len(entries):
        k *= 2
    left, right = _by_definition(entries[:k]), _by_definition(entries[k:])
    return hashlib.sha256(b"\x01" + left + right).digest()


@pytest.mark.parametrize("count", [9, 13, 64, 100, 127, 500])
def test_any_number_of_entries_by_the_definition(count):
    entries = [f"entry {index}".encode() for index in range(count)]
    assert merkle_root(entries) == _by_definition(entries).hex()


def test_an_inner_node_is_no_entry():
    a, b = hashlib.sha256(b"\x00a").digest(), hashlib.sha256(b"\x00b").digest()
    assert merkle_root([a + b]) != merkle_root([b"a", b"b"])
