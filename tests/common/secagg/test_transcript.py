"""The known answers of a whole round: five sites, one of which stops before its masked vector."""

import hashlib
import json

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tests.support.sa1 import Drive, counted, make_spec

from lepton_common.errors import MalformedMessage
from lepton_common.identity.keys import SigningKey
from lepton_common.secagg.encoding import idx, lp
from lepton_common.secagg.messages import (
    Advertisement,
    Header,
    join_by_site,
    split_by_site,
    split_signed,
)
from lepton_common.secagg.spec import RoundSpec
from lepton_common.secagg.transcript import hash_adverts, hash_headers, hash_sharers


@pytest.fixture
def known(vectors):
    return json.loads((vectors / "sa1.json").read_text())["transcript"]


def test_a_round_gives_the_known_answers(known):
    draw = counted(b"SA1-KAT")
    signers = [SigningKey(Ed25519PrivateKey.from_private_bytes(draw(32))) for _ in range(5)]
    spec = make_spec(signers, dimension=1000)
    assert (spec.colluders, spec.threshold, spec.min_survivors) == (1, 4, 4)
    assert spec.hash.hex() == known["h0"]
    assert RoundSpec.from_bytes(spec.to_bytes()) == spec

    shown = {}
    line = np.linspace(-1.5, 1.5, 1000).astype(np.float32)
    drive = Drive(
        spec,
        signers,
        drops={4: "mask"},
        values=np.stack([line * np.float32(u / 4) for u in range(1, 6)]),
        weights=[u / 8 for u in range(1, 6)],
        random_bytes=draw,
        tamper=lambda stage, to, i, data: shown.setdefault((stage, to, i), data),
    )
    # Each stage draws for all sites before the next begins, as the known answers do.
    total, weight = drive.run()
    adverts = split_signed(shown["share", "site", 1], Advertisement.LENGTH)
    t1 = hash_adverts(spec.hash, [message.body for message in adverts.values()])
    t2 = hash_sharers(t1, range(1, 6))
    headers = split_signed(shown["sign", "site", 1], Header.LENGTH)
    t3 = hash_headers(t2, [message.body for message in headers.values()])
    assert (t1.hex(), t2.hex(), t3.hex()) == (known["t1"], known["t2"], known["t3"])
    assert headers[1].body.hex() == known["header_1"]

    plain = np.zeros(spec.ring.length, np.uint32)
    for u in (1, 2, 3, 5):
        plain += spec.ring.encode(drive.values[u - 1], drive.weights[u - 1])
    assert hashlib.sha256(plain.tobytes()).hexdigest() == known["sum_sha256"]
    assert np.array_equal(total, spec.ring.decode(plain)[0])
    assert weight == (1 + 2 + 3 + 5) / 8
    assert drive.coordinator.survivors == (1, 2, 3, 5)
    assert drive.refused == []


def test_a_list_as_long_as_it_can_be_is_read_in_linear_time():
    """One site must not be able to keep a server from the others' answers."""
    items = {index: bytes(8) for index in range(1, 2**16)}
    assert split_by_site(join_by_site(items), 8) == items
    shuffled = lp(*(idx(index) + bytes(8) for index in (1, 3, 2)))
    with pytest.raises(MalformedMessage):
        split_by_site(shuffled, 8)
