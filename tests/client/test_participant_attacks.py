"""What a malicious server or site may try on a participant, each with the error that stops it."""

import contextlib
from dataclasses import replace

import numpy as np
import pytest
from tests.support.sa1 import Drive, make_signers, make_spec

from lepton_client.participant import Participant, Stage
from lepton_common.errors import (
    BadSignature,
    ConsistencyFailure,
    DimensionMismatch,
    DuplicateKey,
    EncodingError,
    InconsistentView,
    LowOrderPoint,
    MalformedMessage,
    OwnMessageAltered,
    PolicyViolation,
    RosterMismatch,
    SecAggError,
    ShareDecryptError,
    StateError,
    TooFewSites,
)
from lepton_common.identity.keys import SigningKey
from lepton_common.secagg import keys
from lepton_common.secagg.encoding import lp
from lepton_common.secagg.messages import (
    Advertisement,
    Header,
    Signed,
    join_boxes,
    join_by_site,
    join_signed,
    split_boxes,
    split_by_site,
    split_signed,
)
from lepton_common.secagg.spec import RoundSpec

SIGNERS = make_signers(5)
SPEC = make_spec(SIGNERS)
VICTIM = 2


def attack(stage, change, spec=SPEC, towards="site"):
    """Runs a round in which ``change`` alters what the victim is shown at a stage.

    Returns the error with which the victim stopped, and the round.
    """

    def tamper(at, to, index, data):
        return change(data) if (at, to, index) == (stage, towards, VICTIM) else data

    drive = Drive(spec, SIGNERS[: len(spec.roster)], tamper=tamper)
    drive.run()
    refused = {index: error for _, index, error in drive.refused}
    assert set(refused) == {VICTIM}
    return type(refused[VICTIM]), drive


def adverts_with(change):
    """Returns a change of the list of advertisements."""

    def altered(data):
        messages = split_signed(data, Advertisement.LENGTH)
        change(messages)
        return join_signed(messages.values())

    return altered


def headers_with(change):
    """Returns a change of the list of headers."""

    def altered(data):
        messages = split_signed(data, Header.LENGTH)
        change(messages)
        return join_signed(messages.values())

    return altered


def signed_advert(index, signer, spec=SPEC, **changes):
    fresh = Participant.begin(spec, spec.roster[index - 1][0], SIGNERS[index - 1])
    advert = Advertisement.from_bytes(Signed.from_bytes(fresh.advertise()).body)
    return Signed.make(signer, "adv", spec, replace(advert, **changes).to_bytes())


def test_a_key_swapped_in_the_middle_is_not_signed_by_its_owner():
    mallory = SigningKey.generate()
    change = adverts_with(lambda m: m.update({3: signed_advert(3, mallory)}))
    assert attack("share", change)[0] is BadSignature


def test_an_invented_site_is_not_in_the_roster():
    foreign = Signed.make(SIGNERS[0], "adv", SPEC, (9).to_bytes(2) + bytes(96))
    assert attack("share", adverts_with(lambda m: m.update({9: foreign})))[0] is RosterMismatch


def test_an_old_advertisement_does_not_fit_a_new_round():
    other = replace(SPEC, round=7)
    change = adverts_with(lambda m: m.update({3: signed_advert(3, SIGNERS[2], other)}))
    assert attack("share", change)[0] is BadSignature


def test_a_dropped_or_altered_own_advertisement_is_seen():
    assert attack("share", adverts_with(lambda m: m.pop(VICTIM)))[0] is OwnMessageAltered
    change = adverts_with(lambda m: m.update({VICTIM: signed_advert(VICTIM, SIGNERS[1])}))
    assert attack("share", change)[0] is OwnMessageAltered


def test_two_sites_with_one_key_are_refused():
    def same(messages):
        key = Advertisement.from_bytes(messages[3].body).mask_key
        messages[4] = signed_advert(4, SIGNERS[3], mask_key=key)

    assert attack("share", adverts_with(same))[0] is DuplicateKey


@pytest.mark.parametrize("field", ["channel_key", "mask_key"])
def test_a_key_of_low_order_is_refused(field):
    low = signed_advert(3, SIGNERS[2], **{field: bytes(32)})
    drive = Drive(SPEC, SIGNERS)
    with pytest.raises(LowOrderPoint):
        drive.coordinator.take_advert(3, low.to_bytes())
    # A server that lets it pass is stopped at the site that would use it.
    parts = [drive.parts[i] for i in SPEC.indices]
    adverts = {p.index: Signed.from_bytes(p.advertise()) for p in parts} | {3: low}

    def go_on():
        parts[0].share(join_signed(adverts.values()))
        parts[0]._mask_keys(sorted(adverts))

    with pytest.raises(LowOrderPoint):
        go_on()


def test_too_few_advertisements_are_refused():
    def few(messages):
        for index in (3, 4):
            del messages[index]

    assert attack("share", adverts_with(few))[0] is TooFewSites


def test_a_share_altered_or_sealed_for_another_does_not_open():
    def swapped(data):
        boxes = split_boxes(data)
        boxes[1], boxes[3] = boxes[3], boxes[1]
        return join_boxes(boxes)

    assert attack("mask", swapped)[0] is ShareDecryptError

    def altered(data):
        boxes = split_boxes(data)
        boxes[4] = boxes[4][:-1] + bytes([boxes[4][-1] ^ 1])
        return join_boxes(boxes)

    assert attack("mask", altered)[0] is ShareDecryptError


def test_too_few_shares_are_refused():
    few = attack("mask", lambda data: join_boxes({1: split_boxes(data)[1]}))
    assert few[0] is TooFewSites


def test_another_set_of_sharers_for_one_site_ends_in_no_common_view():
    # The victim is shown one sharer less; its header then differs from all others'.
    def fewer(data):
        boxes = split_boxes(data)
        del boxes[5]
        return join_boxes(boxes)

    kind, drive = attack("mask", fewer)
    assert kind is InconsistentView
    assert VICTIM not in drive.coordinator.survivors


def test_altered_headers_are_refused():
    def other_length(messages):
        header = Header.from_bytes(messages[3].body)
        messages[3] = Signed.make(SIGNERS[2], "masked", SPEC, replace(header, length=5).to_bytes())

    assert attack("sign", headers_with(other_length))[0] is InconsistentView

    def unsigned(messages):
        messages[3] = Signed(messages[3].body, bytes(64))

    assert attack("sign", headers_with(unsigned))[0] is BadSignature
    assert attack("sign", headers_with(lambda m: m.pop(VICTIM)))[0] is OwnMessageAltered

    def few(messages):
        del messages[3], messages[4]

    assert attack("sign", headers_with(few))[0] is TooFewSites


def test_split_survivor_lists_never_collect_enough_signatures():
    # The victim signs a list without site 5; the others sign one with it.
    kind, drive = attack("sign", headers_with(lambda m: m.pop(5)))
    assert kind is BadSignature
    own = drive.parts[VICTIM]
    assert own.stage is Stage.SIGNED
    others = {i: drive.coordinator._signatures[i] for i in (1, 3, 4, 5)}
    with pytest.raises(ConsistencyFailure):
        own.unmask(join_by_site(others))
    assert own.stage is Stage.ABORTED


def test_its_own_signature_alone_unmasks_nothing():
    def alone(data):
        return join_by_site({VICTIM: split_by_site(data, 64)[VICTIM]})

    assert attack("unmask", alone)[0] is TooFewSites

    def forged(data):
        return join_by_site(dict.fromkeys(split_by_site(data, 64), bytes(64)))

    assert attack("unmask", forged)[0] is ConsistencyFailure


def test_a_signature_of_a_site_that_is_no_survivor_is_refused():
    shown = {}

    def tamper(stage, towards, index, data):
        shown[stage, towards, index] = data
        return data

    drive = Drive(SPEC, SIGNERS, drops={5: "mask"}, tamper=tamper)
    drive.run()
    victim = drive.parts[VICTIM]
    victim.stage = Stage.SIGNED  # as before its answer
    signatures = split_by_site(shown["unmask", "site", VICTIM], 64)
    signatures[5] = keys.sign(SIGNERS[4], "consistency", SPEC.hash, victim._t3)
    with pytest.raises(ConsistencyFailure):
        victim.unmask(join_by_site(signatures))


def test_never_both_shares_of_one_site():
    released = {}

    def tamper(stage, towards, index, data):
        if (stage, towards) == ("unmask", "server"):
            released[index] = split_by_site(Signed.from_bytes(data).body[2:], 33)
        return data

    drive = Drive(SPEC, SIGNERS, drops={5: "mask"}, tamper=tamper)
    kept = {}
    unmask = drive.parts[VICTIM].unmask

    def spy(data):
        kept.update(drive.parts[VICTIM]._shares)
        return unmask(data)

    drive.parts[VICTIM].unmask = spy
    drive.run()
    for owner, share in released[VICTIM].items():
        of_seed, of_mask = kept[owner][:33], kept[owner][33:]
        assert share == (of_mask if owner == 5 else of_seed)


def test_each_stage_answers_once_and_in_order():
    shown = {}
    drive = Drive(
        SPEC,
        SIGNERS,
        tamper=lambda s, to, i, data: shown.setdefault((s, to, i), data),
    )
    drive.run()
    part = drive.parts[VICTIM]
    repeats = (
        part.advertise,
        lambda: part.share(shown["share", "site", VICTIM]),
        lambda: part.open(shown["mask", "site", VICTIM]),
        lambda: part.mask(np.zeros(8, np.float32)),
        lambda: part.sign(shown["sign", "site", VICTIM]),
        lambda: part.unmask(shown["unmask", "site", VICTIM]),
    )
    for repeat in repeats:
        with pytest.raises(StateError):
            repeat()
    again = part.unmask_again(shown["unmask", "site", VICTIM])
    assert again == shown["unmask", "server", VICTIM]
    with pytest.raises(StateError):
        part.unmask_again(shown["unmask", "site", VICTIM] + b"x")


def test_after_an_error_nothing_more_is_answered_and_no_secret_is_left():
    _, drive = attack("mask", lambda data: data[:-1])
    part = drive.parts[VICTIM]
    assert part.stage is Stage.ABORTED
    assert part._secrets == ()
    assert part._shares == {}
    for call in (part.advertise, lambda: part.sign(b""), lambda: part.unmask(b"")):
        with pytest.raises(StateError):
            call()


def test_no_secret_is_left_after_unmasking():
    drive = Drive(SPEC, SIGNERS)
    secrets = {}
    for index, part in drive.parts.items():
        advertise = part.advertise
        part.advertise = lambda a=advertise, p=part, i=index: (
            a(),
            secrets.update({i: p._secrets}),
        )[0]
    drive.run()
    for index, part in drive.parts.items():
        kept = part.to_bytes()
        assert len(secrets[index]) == 3
        assert not any(secret in kept for secret in secrets[index])


@pytest.mark.parametrize(
    "changes",
    [
        {"threshold": 1},
        {"threshold": 3},
        {"colluders": 0},  # with a threshold of one third
        {"colluders": 4, "threshold": 5, "min_survivors": 5},
        {"min_survivors": 3},
        {"min_survivors": 6},
        {"width": 1},
        {"width": 8},
        {"clip": 0.0},
        {"clip": float("inf")},
        {"clip": float("nan")},
        {"clip": 1e30},
        {"dimension": 0},
        {"weight_bits": 64},
        {"round": 0},
        {"retry_of": (b"x" * 32, b"x" * 32)},
    ],
)
def test_a_specification_that_protects_nobody_is_refused(changes):
    with pytest.raises(PolicyViolation):
        RoundSpec.from_bytes(replace(SPEC, **changes).to_bytes())


def test_a_roster_of_one_or_with_doubles_or_out_of_order_is_refused():
    for roster in (SPEC.roster[:1], SPEC.roster[::-1], (*SPEC.roster, ("z", SPEC.roster[0][1]))):
        with pytest.raises(PolicyViolation):
            RoundSpec.from_bytes(replace(SPEC, roster=roster).to_bytes())


def test_a_round_that_lists_another_key_for_the_site_is_refused():
    with pytest.raises(OwnMessageAltered):
        Participant.begin(SPEC, "site-001", SIGNERS[1])
    with pytest.raises(RosterMismatch):
        Participant.begin(SPEC, "site-009", SIGNERS[1])


def test_two_specifications_do_not_meet():
    # Two sites are shown another model: their messages are signed for another round.
    other = replace(SPEC, model_hash=b"other model, same everything els")
    first, second = Drive(SPEC, SIGNERS), Drive(other, SIGNERS)
    adverts = {i: Signed.from_bytes(first.parts[i].advertise()) for i in (1, 2, 3)}
    adverts |= {i: Signed.from_bytes(second.parts[i].advertise()) for i in (4, 5)}
    with pytest.raises(BadSignature):
        first.parts[1].share(join_signed(adverts.values()))


def test_values_that_cannot_be_summed_are_refused():
    for values, error in (
        (np.full(8, np.nan, np.float32), EncodingError),
        (np.full(8, np.inf, np.float32), EncodingError),
        (np.zeros(7, np.float32), DimensionMismatch),
    ):
        drive = Drive(SPEC, SIGNERS, values=np.zeros((5, 8), np.float32))
        mask = drive.parts[VICTIM].mask
        drive.parts[VICTIM].mask = lambda _, weight, v=values, m=mask: m(v, weight)
        drive.run()
        assert [type(e) for _, _, e in drive.refused] == [error]


def test_a_masked_vector_of_zeros_is_uniform_and_unlike_any_other():
    spec = make_spec(SIGNERS, dimension=1 << 16)
    zeros = np.zeros((5, 1 << 16), np.float32)
    rounds = [Drive(spec, SIGNERS, values=zeros) for _ in range(2)]
    for drive in rounds:
        drive.run()
    for packed in rounds[0].masked.values():
        counts = np.bincount(np.frombuffer(packed, np.uint8), minlength=256)
        expected = counts.sum() / 256
        # 255 degrees of freedom: 450 is ten standard deviations out.
        assert ((counts - expected) ** 2 / expected).sum() < 500
    vectors = [m for drive in rounds for m in drive.masked.values()]
    assert len(set(vectors)) == len(vectors)


def test_masks_use_the_whole_key():
    from lepton_common.secagg.masks import keystream

    # Flower folds its seed to 28 bits: bit 7 of each byte and all but 4 bytes are lost.
    base = bytearray(32)
    seen = {keystream(bytes(base), 32).tobytes()}
    for place in range(32):
        for bit in range(8):
            key = bytearray(base)
            key[place] ^= 1 << bit
            seen.add(keystream(bytes(key), 32).tobytes())
    assert len(seen) == 1 + 256


def test_parsers_meet_noise_with_named_errors_only():
    rng = np.random.default_rng(3)
    drive = Drive(SPEC, SIGNERS)
    drive.run()
    genuine = [
        SPEC.to_bytes(),
        drive.parts[1].to_bytes(),
        drive.coordinator.to_bytes(),
        join_by_site({1: bytes(64), 2: bytes(64)}),
    ]
    from lepton_server.rounds.coordinator import Coordinator

    parsers = [
        RoundSpec.from_bytes,
        lambda data: Participant.from_bytes(data, SIGNERS[0]),
        Coordinator.from_bytes,
        lambda data: split_by_site(data, 64),
        lambda data: split_signed(data, 98),
        split_boxes,
        Signed.from_bytes,
        SPEC.ring.unpack,
    ]
    for turn in range(600):
        data = bytearray(genuine[turn % len(genuine)])
        for _ in range(int(rng.integers(1, 4))):
            data[int(rng.integers(len(data)))] = int(rng.integers(256))
        if turn % 3 == 0:
            data = data[: int(rng.integers(len(data)))]
        if turn % 5 == 0:
            data = bytearray(lp(rng.bytes(int(rng.integers(100)))))
        for parse in parsers:
            with contextlib.suppress(SecAggError, MalformedMessage):
                parse(bytes(data))
