"""A site's part in SA1, driven by messages: each stage once, by the rules, or an error's name."""

import math
import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from toy_federation import Federation, masked_sum
from toy_site import PARTNER, PERMISSIVE, PRIVACY, VECTOR, ask, context, request

import lepton_client.trainer
from lepton_client.app import app
from lepton_client.site import forget_sites
from lepton_common.arrays import digest_of, pack
from lepton_common.durable import append_synced
from lepton_common.identity.keys import SigningKey
from lepton_common.identity.roster import sign_roster
from lepton_common.messages import train_content
from lepton_common.privacy.ledger_file import read_ledger
from lepton_common.secagg.compression import draw_positions
from lepton_common.secagg.messages import (
    Signed,
    join_boxes,
    join_by_site,
    join_signed,
    split_boxes,
)
from lepton_common.stages import DRAWING, SecAggStage, read_masked, read_stage_reply
from lepton_common.summing import SummedForm, bind

ALL = [1, 2, 3, 4]
STAGES = [stage for stage in SecAggStage if stage not in DRAWING]


@pytest.fixture
def federation(make_site):
    return Federation(make_site)


@pytest.fixture
def trained(monkeypatch):
    """What the sites trained, in order: updates with their losses behind them."""
    seen = []
    train = lepton_client.trainer.train_plain

    def remembering(*arguments):
        update, loss = train(*arguments)
        seen.append(np.append(update, np.float32(loss)))
        return update, loss

    monkeypatch.setattr("lepton_client.trainer.train_plain", remembering)
    return seen


def name_of(reply):
    return reply.error.reason if reply.has_error() else None


def releases(federation, index, spec):
    return [
        record.body
        for record in federation.open(index).audit.records
        if record.kind == "release" and record.body.get("spec") == spec.hash.hex()
    ]


def rounding(spec, sites):
    return sites * 2.0**-spec.ring.scale_bits


@pytest.mark.parametrize("restart", [False, True])
def test_a_round_gives_the_sum_even_if_sites_restart_before_each_stage(
    federation, trained, restart
):
    server = federation.server()
    if restart:
        server.before_each = forget_sites
    total, _ = server.run(ALL)
    assert len(trained) == 4
    np.testing.assert_allclose(total, np.sum(trained, axis=0), atol=rounding(server.spec, 4))
    for index in ALL:
        stages = [body["stage"] for body in releases(federation, index, server.spec)]
        assert stages == ["ADVERTISED", "SHARED", "MASKED", "SIGNED", "UNMASKED"]


def test_sites_that_drop_out_after_sharing_are_not_in_the_sum(federation, trained):
    server = federation.server()
    boxes = server.share(ALL, server.advertise(ALL))
    headers = server.mask([1, 2, 4], boxes)
    total, _ = server.unmask([1, 2, 4], server.sign([1, 2, 4], headers))
    np.testing.assert_allclose(total, np.sum(trained, axis=0), atol=rounding(server.spec, 3))


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("stage", STAGES)
def test_no_stage_is_answered_twice(federation, stage, restart):
    server = federation.server()
    server.run(ALL)
    if restart:
        forget_sites()
    if stage is SecAggStage.UNMASK:  # the same bytes to the same request, and to no other
        first = read_stage_reply(server.replies[1].content)
        assert read_stage_reply(server.send(1, server.shown[stage, 1]).content) == first
        assert name_of(server.send(1, other_view(server, stage, None))) == "StateError"
        return
    expected = "ReplayError" if stage is SecAggStage.ADVERTISE else "StateError"
    assert name_of(server.send(1, server.shown[stage, 1])) == expected


@pytest.mark.parametrize(
    ("stage", "again"), [(one, other) for one in STAGES for other in STAGES if one is not other]
)
def test_a_stage_out_of_order_is_refused_and_changes_nothing(federation, stage, again):
    """Up to ``stage``, then any message of a whole round of the same form, then on."""
    server = federation.server()
    shown = server.up_to(stage, ALL)
    body = server.shown[again, 1] if (again, 1) in server.shown else server.content(again, b"")
    wanted = {"StateError"} | ({"ReplayError"} if again is SecAggStage.ADVERTISE else set())
    if again is SecAggStage.ADVERTISE or stage is not SecAggStage.ADVERTISE:
        assert name_of(server.send(1, body)) in wanted
    steps = [server.advertise, server.share, server.mask, server.sign, server.unmask]
    for step in steps[STAGES.index(stage) :]:
        shown = step(ALL) if shown is None else step(ALL, shown)


@pytest.mark.parametrize("stage", STAGES[1:4])
def test_no_stage_is_answered_twice_even_if_the_sealed_file_is_rolled_back(federation, stage):
    server = federation.server()
    shown = server.up_to(stage, ALL)
    rounds = federation.folders[0] / "rounds"
    kept = federation.folders[0] / "kept"
    shutil.copytree(rounds, kept)
    getattr(server, stage.value)(ALL, shown)
    shutil.rmtree(rounds)
    shutil.copytree(kept, rounds)
    forget_sites()
    for content in (server.shown[stage, 1], other_view(server, stage, shown)):
        assert name_of(server.send(1, content)) == "StateError"
    assert len(releases(federation, 1, server.spec)) == STAGES.index(stage) + 1


def test_unmasking_is_answered_alike_even_if_the_sealed_file_is_rolled_back(federation):
    server = federation.server()
    signatures = server.up_to(SecAggStage.UNMASK, ALL)
    (path,) = (federation.folders[0] / "rounds").iterdir()
    sealed = path.read_bytes()
    first = read_stage_reply(server.ask(SecAggStage.UNMASK, 1, signatures).content)
    path.write_bytes(sealed)
    forget_sites()
    again = server.send(1, other_view(server, SecAggStage.UNMASK, None))
    assert read_stage_reply(again.content) == first


def other_view(server, stage, shown):
    """Returns a message of a stage that shows site 1 one site fewer, validly signed."""
    coordinator = server.coordinator
    if stage is SecAggStage.SHARE:
        kept = {i: m for i, m in coordinator._adverts.items() if i != 4}
        body = type(coordinator)(server.spec)
        body._adverts = kept
        return server.content(stage, body.close_adverts())
    if stage is SecAggStage.MASK:
        boxes = split_boxes(shown[1])
        boxes.pop(4)
        return server.content(stage, join_boxes(boxes))
    if stage is SecAggStage.SIGN:
        kept = [m for i, m in coordinator._headers.items() if i != 4]
        return server.content(stage, join_signed(kept))
    return server.content(
        stage, join_by_site({i: s for i, s in coordinator._signatures.items() if i != 4})
    )


# Each place where a site may die: what it was about to do, or had just done.
POINTS = [
    "before state",
    pytest.param("torn state", marks=pytest.mark.slow),
    "after state",
    "before record",
    pytest.param("torn record", marks=pytest.mark.slow),
    "after record",
]


def die_at(point):
    """Makes this process die at a point, once an answer is ready."""
    import lepton_client.vault as vault
    import lepton_common.audit as audit

    def die(*_, **__):
        os._exit(9)

    if point == "before state":
        vault.Vault.save = die
    elif point == "torn state":
        vault.Path.replace = die
    elif point == "after state":
        save = vault.Vault.save

        def then_die(self, part):
            save(self, part)
            os._exit(9)

        vault.Vault.save = then_die
    else:

        def append(path, data):
            if b'"kind":"release"' not in data:
                return append_synced(path, data)
            if point == "torn record":
                append_synced(path, data[: len(data) // 2])
            if point == "after record":
                append_synced(path, data)
            os._exit(9)

        audit.append_synced = append


def killed(server, stage, body, point):
    """Lets site 1 answer in a process of its own that dies at a point: nothing leaves."""
    forget_sites()
    child = os.fork()
    if child == 0:
        try:
            torch.set_num_threads(1)
            die_at(point)
            server.ask(stage, 1, body)
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 9, "the site did not come to this point"


@pytest.fixture
def quick(monkeypatch):
    """Training that gives another update each time it is called."""
    count = iter(range(1, 10**6))

    def train(model, task, records, received, recipe, seed):
        value = np.float32((os.getpid() % 997) / 1e3 + next(count) / 1e2)
        return np.full(len(received), value, np.float32), 0.5

    monkeypatch.setattr("lepton_client.trainer.train_plain", train)


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("stage", STAGES)
def test_a_site_killed_anywhere_never_answers_a_stage_with_two_contents(
    federation, quick, stage, point
):
    server = federation.server()
    shown = server.up_to(stage, ALL)
    body = b"" if shown is None else shown[1] if isinstance(shown, dict) else shown
    killed(server, stage, body, point)
    forget_sites()
    recorded = releases(federation, 1, server.spec)  # the log verifies, and says what may have left
    was_recorded = len(recorded) > STAGES.index(stage)
    assert was_recorded == (point == "after record")

    contents = [server.content(stage, body)] * 2
    if stage is not SecAggStage.ADVERTISE:
        for index in (2, 3, 4):  # so that the server has enough to show another view
            sent = shown[index] if isinstance(shown, dict) else shown
            reply = server.ask(stage, index, sent)
            assert name_of(reply) is None
        contents.append(other_view(server, stage, shown))
    answers = []
    for content in contents:
        reply = server.send(1, content)
        forget_sites()
        if reply.has_content():
            answers.append(reply.content.config_records["secagg"]["body"])
        else:
            assert name_of(reply) in ("StateError", "ReplayError")
    assert len(set(answers)) <= 1
    repeatable = stage is SecAggStage.UNMASK  # one answer, as often as it is asked for
    if was_recorded and not repeatable:
        assert not answers
    if not repeatable:
        assert len(answers) <= 1
    if point == "before state":
        assert answers  # nothing was lost, nothing was spent
    bodies = releases(federation, 1, server.spec)
    digests = {
        (body["stage"], item["sha256"])
        for body in bodies
        for item in body["items"]
        if item["name"] != "receipt"
    }
    stages = {body["stage"] for body in bodies}
    assert len(digests) == len(stages) + ("MASKED" in stages)  # which has a header and a vector

    # The site is not lost: it takes part in a retry by the rule, unless it may have unmasked.
    retry = federation.server(round=2, retry_of=(server.spec.hash,))
    reply = retry.ask(SecAggStage.ADVERTISE, 1)
    if "UNMASKED" in stages:
        assert name_of(reply) == "UpdateAlreadySpent"
    else:
        assert name_of(reply) is None
        rounds = federation.folders[0] / "rounds"
        assert all(server.spec.hash.hex() not in path.name for path in rounds.iterdir())


@pytest.mark.parametrize("where", ["state", "record"])
@pytest.mark.parametrize("stage", STAGES)
def test_a_disk_that_fails_ends_the_round_for_the_site(
    federation, quick, monkeypatch, stage, where
):
    server = federation.server()
    shown = server.up_to(stage, ALL)
    body = b"" if shown is None else shown[1] if isinstance(shown, dict) else shown
    if where == "record":
        monkeypatch.setattr("lepton_common.audit.append_synced", full)
    else:
        monkeypatch.setattr("lepton_client.vault.write_atomic", full)
    assert name_of(server.ask(stage, 1, body)) == "OSError"
    monkeypatch.setattr("lepton_common.audit.append_synced", append_synced)
    if stage is not SecAggStage.ADVERTISE:
        assert name_of(server.ask(stage, 1, body)) == "StateError"
    assert len(releases(federation, 1, server.spec)) == STAGES.index(stage)


def full(*_, **__):
    raise OSError(28, "No space left on device")


def test_two_specifications_of_one_round_do_not_come_together(federation):
    one, other = federation.server(), federation.server(clip=4.0)
    for index in (1, 2):
        one.ask(SecAggStage.ADVERTISE, index)
    for index in (3, 4):
        other.ask(SecAggStage.ADVERTISE, index)
    replies = {**{i: one.replies[i] for i in (1, 2)}, **{i: other.replies[i] for i in (3, 4)}}
    adverts = join_signed(Signed.from_bytes(read_stage_reply(r.content)) for r in replies.values())
    assert name_of(one.ask(SecAggStage.SHARE, 1, adverts)) == "BadSignature"
    assert name_of(other.ask(SecAggStage.SHARE, 3, adverts)) == "BadSignature"


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"app_hash": b"a" * 32}, "PolicyViolation"),
        ({"app_hash": b""}, "PolicyViolation"),
        ({"model_hash": b"a" * 32}, "PolicyViolation"),
        ({"layout_hash": b"a" * 32}, "PolicyViolation"),
        ({"dp": b"epsilon 1"}, "PolicyViolation"),
        ({"weight_bits": 16}, "PolicyViolation"),
        ({"threshold": 2}, "PolicyViolation"),
        ({"threshold": 4}, "PolicyViolation"),
        ({"min_survivors": 2}, "PolicyViolation"),
        ({"width": 1}, "PolicyViolation"),
        ({"round": 0}, "PolicyViolation"),
        ({"dimension": 0}, "PolicyViolation"),
        ({"federation": "others"}, "RosterMismatch"),
    ],
    ids=str,
)
def test_a_round_that_is_not_what_the_site_was_told_is_refused(federation, changes, error):
    assert name_of(federation.server(**changes).ask(SecAggStage.ADVERTISE, 1)) == error


def roster_of(federation, change):
    members = list(federation.spec(federation.request()).roster)
    if change == "stranger":
        members[3] = ("site-9", bytes.fromhex(SigningKey.generate().public_hex))
    if change == "other key":
        members[2] = ("site-3", bytes.fromhex(SigningKey.generate().public_hex))
    if change == "own key":
        members[0] = ("site-1", bytes.fromhex(SigningKey.generate().public_hex))
    if change == "without us":
        members = members[1:]
    if change == "swapped":
        members[1], members[2] = ("site-2", members[2][1]), ("site-3", members[1][1])
    return tuple(members)


@pytest.mark.parametrize("change", ["stranger", "other key", "own key", "without us", "swapped"])
def test_a_cohort_that_is_not_in_the_signed_roster_is_refused(federation, change):
    roster = roster_of(federation, change)
    names = [name for name, _ in roster]
    asked = federation.request(cohort=len(names), masked=masked_sum(dict.fromkeys(names, 1)))
    server = federation.server(asked, roster=roster)
    assert name_of(server.ask(SecAggStage.ADVERTISE, 1)) == "RosterMismatch"


@pytest.mark.parametrize("damage", ["missing", "unsigned", "altered", "not text"])
def test_without_a_roster_that_the_partners_signed_there_is_no_round(federation, damage):
    path = federation.folders[0] / "roster.json"
    if damage == "missing":
        path.unlink()
    elif damage == "unsigned":
        path.write_text(sign_roster(federation.roster, [SigningKey.generate()]))
    elif damage == "altered":
        path.write_text(path.read_text().replace("site-4", "site-5"))
    else:
        path.write_bytes(b"\xff\xfe\x00")
    assert name_of(federation.server().ask(SecAggStage.ADVERTISE, 1)) == "RosterInvalid"


@pytest.mark.parametrize(
    ("policy", "tolerated", "error"),
    [(0, 0, None), (1, 0, "PolicyViolation"), (1, 1, None), (2, 1, "PolicyViolation"), (2, 2, None),
     (None, 0, "PolicyViolation"), (None, 1, None)],
)  # fmt: skip
def test_a_round_tolerates_as_many_colluders_as_the_policy_asks_for(
    make_site, policy, tolerated, error
):
    federation = Federation(make_site, policy=replace(PERMISSIVE, colluders=policy))
    server = federation.server(colluders=tolerated)
    assert name_of(server.ask(SecAggStage.ADVERTISE, 1)) == error


def test_the_default_of_colluders_is_of_the_whole_roster_and_not_of_the_cohort(make_site):
    federation = Federation(make_site, 7, policy=replace(PERMISSIVE, colluders=None))
    names = ["site-1", "site-2", "site-3", "site-4"]
    asked = federation.request(cohort=4, masked=masked_sum(dict.fromkeys(names, 1)))
    roster = federation.spec(asked).roster[:4]
    for tolerated, error in ((1, "PolicyViolation"), (2, None)):
        changes = {"roster": roster, "threshold": (4 + tolerated) // 2 + 1, "min_survivors": 4}
        server = federation.server(asked, colluders=tolerated, **changes)
        assert name_of(server.ask(SecAggStage.ADVERTISE, 1)) == error


def test_a_site_that_masks_only_trains_for_no_plain_request(make_site):
    federation = Federation(make_site, policy=replace(PERMISSIVE, allow_without_secagg=False))
    folder = federation.folders[0]
    plain = app(ask(train_content(request(cohort=4), VECTOR)), context(folder))
    assert name_of(plain) == "ConsentRefused"
    disguised = app(ask(train_content(federation.request(), VECTOR)), context(folder))
    assert name_of(disguised) == "ConsentRefused"
    federation.server().run(ALL)


def test_a_masked_round_without_weights_is_refused(federation):
    asked = federation.request(masked=None)
    assert name_of(federation.server(asked).ask(SecAggStage.ADVERTISE, 1)) == "ConsentRefused"


@pytest.mark.parametrize(
    ("weights", "errors"),
    [
        ({1: 1, 2: 1, 3: 1, 4: 1}, {1: None, 2: None}),
        ({1: 7, 2: 7, 3: 7, 4: 7}, {1: None, 2: None}),
        ({1: 16, 2: 16, 3: 16, 4: 16}, {1: None, 4: None}),
        # One whose size is told right shows its own update only if all others lie.
        ({1: 16, 2: 1, 3: 1, 4: 1}, {1: None, 2: "PolicyViolation", 4: "PolicyViolation"}),
        ({1: 2**40, 2: 16, 3: 16, 4: 16}, {1: "PolicyViolation", 2: None}),
        ({1: 15, 2: 16, 3: 16, 4: 16}, {1: "PolicyViolation", 3: None}),
    ],
)
def test_no_sites_weight_can_be_shrunk_or_blown_up_without_its_knowing(federation, weights, errors):
    asked = federation.request(masked=masked_sum({f"site-{i}": w for i, w in weights.items()}))
    for index, error in errors.items():
        server = federation.server(asked)
        assert name_of(server.ask(SecAggStage.ADVERTISE, index)) == error


@pytest.mark.parametrize(
    "names", [["site-1", "site-2", "site-3"], [f"site-{i}" for i in range(1, 6)]]
)
def test_weights_are_those_of_the_rounds_own_sites(federation, names):
    asked = federation.request(masked=masked_sum(dict.fromkeys(names, 1)))
    assert name_of(federation.server(asked).ask(SecAggStage.ADVERTISE, 1)) == "PolicyViolation"


def test_sites_scale_by_their_public_size(make_site, trained, tmp_path):
    federation = Federation(make_site)
    path = federation.folders[3] / "site.yaml"
    path.write_text(path.read_text().replace("public_size: 16", "public_size: 64"))
    forget_sites()
    weights = {"site-1": 16, "site-2": 16, "site-3": 16, "site-4": 64}
    server = federation.server(federation.request(masked=masked_sum(weights)))
    total, _ = server.run(ALL)
    expected = np.sum(trained[:3], axis=0) / 4 + trained[3]
    np.testing.assert_allclose(total, expected, atol=rounding(server.spec, 4) + 1e-6)


def restrict(federation, index, **changes):
    """Rewrites some lines of a site's policy."""
    path = federation.folders[index - 1] / "site.yaml"
    lines = path.read_text().splitlines()
    for name, value in changes.items():
        lines = [f"  {name}: {value}" if x.strip().startswith(f"{name}:") else x for x in lines]
    path.write_text("\n".join(lines))
    forget_sites()


@pytest.mark.parametrize(
    ("weights", "colluders", "refused"),
    [
        ({1: 16, 2: 16, 3: 16, 4: 16}, 0, False),
        ({1: 16, 2: 16, 3: 16, 4: 16}, 2, False),  # half of what two colluders leave
        ({1: 16, 2: 1, 3: 1, 4: 1}, 0, True),
        ({1: 16, 2: 2**20, 3: 1, 4: 1}, 0, False),
        ({1: 16, 2: 2**20, 3: 1, 4: 1}, 1, True),  # the heavy one may be the colluder
    ],
)
def test_a_sum_that_is_nearly_one_sites_own_is_refused_by_it(
    federation, weights, colluders, refused
):
    restrict(federation, 1, max_weight_share=0.5)
    asked = federation.request(masked=masked_sum({f"site-{i}": w for i, w in weights.items()}))
    server = federation.server(asked, colluders=colluders)
    expected = "PolicyViolation" if refused else None
    assert name_of(server.ask(SecAggStage.ADVERTISE, 1)) == expected


def test_a_sum_of_fewer_than_the_sites_floor_is_refused(federation):
    restrict(federation, 1, min_cohort=4)
    assert name_of(federation.server().ask(SecAggStage.ADVERTISE, 1)) == "PolicyViolation"
    whole = federation.server(min_survivors=4)
    assert name_of(whole.ask(SecAggStage.ADVERTISE, 1)) is None


def masked(federation, **changes):
    """Returns a request whose sum is formed in another way, and its server."""
    weights = {folder.name: 1 for folder in federation.folders}
    asked = federation.request(masked=masked_sum(weights, **changes))
    form = SummedForm(asked, asked.masked, len(VECTOR))
    bits = 16 if asked.masked.weight_cap else 0
    return federation.server(asked, dimension=form.dimension, weight_bits=bits), form


def test_sites_count_by_their_own_records_without_telling(make_site, trained):
    federation = Federation(make_site)
    for folder, records in zip(federation.folders, (2, 4, 8, 16), strict=True):
        np.save(folder / "rows.npy", np.arange(records))
    forget_sites()
    server, _ = masked(federation, weight_cap=8)
    total, weight = server.run(ALL)
    shares = [2 / 8, 4 / 8, 1, 1]  # the fourth counts at most as the cap
    assert weight == sum(shares)
    expected = np.tensordot(shares, trained, 1)
    np.testing.assert_allclose(total, expected, atol=rounding(server.spec, 4) + 1e-6)


@pytest.mark.parametrize(("bits", "cap"), [(0, 8), (8, 8), (16, None)])
def test_weights_are_masked_as_the_request_says(federation, bits, cap):
    server, _ = masked(federation, weight_cap=cap)
    asked = federation.server(server.request, weight_bits=bits)
    assert name_of(asked.ask(SecAggStage.ADVERTISE, 1)) == "PolicyViolation"


def test_with_dp_no_weight_depends_on_the_number_of_records(federation):
    server, _ = masked(federation, weight_cap=8)
    asked = federation.server(replace(server.request, privacy=PRIVACY), weight_bits=16)
    assert name_of(asked.ask(SecAggStage.ADVERTISE, 1)) == "ConsentRefused"


@pytest.mark.parametrize("rotate", [False, True])
def test_some_coordinates_are_summed_and_the_others_wait_at_the_sites(federation, trained, rotate):
    server, form = masked(federation, coordinates=0.25, rotate=rotate)
    assert form.dimension < len(VECTOR) or rotate
    total, _ = server.run(ALL)
    mean, metrics = form.mean(server.spec, total, 4)
    kept = draw_positions(server.spec.hash, len(VECTOR), math.ceil(len(VECTOR) / 4))
    everything = np.mean(trained, axis=0)
    expected = np.zeros(len(VECTOR))
    expected[kept] = everything[kept]
    np.testing.assert_allclose(mean, expected, atol=1e-5)
    assert metrics["train_loss"] == pytest.approx(everything[-1], abs=1e-5)
    for index, update in enumerate(trained, start=1):
        left = update[:-1].copy()
        left[kept] = 0
        later = replace(server.request, model_digest="b" * 64)
        found = federation.open(index).residuals.before(later, len(VECTOR))
        np.testing.assert_array_equal(found, left)


def test_what_waited_is_sent_in_the_next_round(federation, trained):
    first, _ = masked(federation, coordinates=0.5)
    first.run(ALL)
    waited = [
        federation.open(index).residuals.before(
            replace(first.request, model_digest="b" * 64), len(VECTOR)
        )
        for index in ALL
    ]
    later = VECTOR + np.float32(0.5)
    asked = replace(first.request, round=2, model_digest=digest_of(pack(later).data))
    second = federation.server(asked, dimension=first.spec.dimension)
    boxes = second.up_to(SecAggStage.MASK, ALL)
    for index in ALL:
        reply = second.ask(SecAggStage.MASK, index, boxes[index], model=later)
        header, packed, _ = read_masked(reply.content)
        second.coordinator.take_masked(index, header, packed)
    signatures = second.sign(ALL, second.coordinator.close_masked())
    total, _ = second.unmask(ALL, signatures)
    kept = draw_positions(second.spec.hash, len(VECTOR), math.ceil(len(VECTOR) / 2))
    sent = [update[:-1] + left for update, left in zip(trained[4:], waited, strict=True)]
    assert np.abs(waited).max() > 1e-3
    np.testing.assert_allclose(total[:-1], np.sum(sent, axis=0)[kept], atol=1e-5)


def test_rotation_and_stochastic_rounding_keep_the_mean(federation, trained):
    server, form = masked(federation, rotate=True, rounding="stochastic")
    narrow = federation.server(
        server.request, dimension=form.dimension, width=16, clip=1.0, weight_bits=0
    )
    total, _ = narrow.run(ALL)
    mean, _ = form.mean(narrow.spec, total, 4)
    unit = 2.0**-narrow.spec.ring.scale_bits
    error = mean - np.mean(trained, axis=0)[:-1]
    assert 0 < np.sqrt(np.mean(error**2)) < unit


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"recipe": {"learning_rate": 0.2}}, "PolicyViolation"),
        ({"round": 2}, "PolicyViolation"),
        ({"cohort": 3}, "PolicyViolation"),
        ({"model": VECTOR + 1}, "ModelMismatch"),
        ({"model": VECTOR[:-1]}, "ModelMismatch"),
        ({"spec": bytes(32)}, "StateError"),
    ],
    ids=["recipe", "round", "cohort", "model", "short model", "spec"],
)
def test_what_comes_to_be_masked_is_what_was_agreed_on(federation, changes, error):
    server = federation.server()
    boxes = server.up_to(SecAggStage.MASK, ALL)
    sent = {name: value for name, value in changes.items() if name in ("model", "spec")}
    if not sent:
        recipe = replace(server.request.recipe, **changes.get("recipe", {}))
        asked = {name: value for name, value in changes.items() if name != "recipe"}
        sent = {"request": replace(server.request, recipe=recipe, **asked)}
    reply = server.ask(SecAggStage.MASK, 1, boxes[1], **sent)
    assert name_of(reply) == error
    after = server.ask(SecAggStage.MASK, 1, boxes[1])
    assert name_of(after) == (None if error == "StateError" else "StateError")


def test_the_request_of_a_round_is_bound_whole(federation):
    asked = federation.request()
    other = replace(asked, recipe=replace(asked.recipe, seed=2))
    assert bind(asked) != bind(other)
    server = federation.server(asked)
    reply = server.ask(SecAggStage.ADVERTISE, 1, request=other)
    assert name_of(reply) == "PolicyViolation"


def test_with_dp_the_masked_vector_is_charged_once_and_says_both(federation):
    asked = federation.request(privacy=PRIVACY)
    server = federation.server(asked)
    headers = server.up_to(SecAggStage.SIGN, ALL)
    *_, receipt = read_masked(server.replies[1].content)
    assert (receipt.steps, receipt.epsilon > 0) == (PRIVACY.steps_per_round, True)
    forget_sites()
    assert name_of(server.send(1, server.shown[SecAggStage.MASK, 1])) == "StateError"
    forget_sites()
    site = federation.open(1)
    entries = read_ledger(site.folder / "ledger.db", site.key.public_hex).records
    charges = [entry for entry in entries if entry.kind == "charge"]
    assert len(charges) == 1
    assert site.ledger.steps("run-1") == PRIVACY.steps_per_round
    body = releases(federation, 1, server.spec)[-1]
    assert body["charge"] == charges[0].hash
    (proof,) = [i["provenance"] for i in body["items"] if i["name"] == "masked"]
    event = charges[0].body["event"]
    assert proof == {"secagg": server.spec.hash.hex(), "dp": event}
    assert {item["name"] for item in body["items"]} == {"secagg", "masked", "receipt"}
    server.unmask(ALL, server.sign(ALL, headers))


def test_with_dp_nothing_rides_behind_the_update(federation):
    server = federation.server(federation.request(privacy=PRIVACY))
    total, _ = server.run(ALL)
    assert len(total) == len(VECTOR)


def test_a_site_that_needs_dp_masks_nothing_without(make_site):
    federation = Federation(make_site, policy=replace(PERMISSIVE, allow_without_dp=False))
    assert name_of(federation.server().ask(SecAggStage.ADVERTISE, 1)) == "ConsentRefused"
    federation.server(federation.request(privacy=PRIVACY)).run(ALL)


def test_nothing_is_charged_for_a_round_that_cannot_be(federation):
    server = federation.server(federation.request(privacy=PRIVACY))
    boxes = server.up_to(SecAggStage.MASK, ALL)
    spoiled = bytearray(boxes[1])
    spoiled[-1] ^= 1
    assert name_of(server.ask(SecAggStage.MASK, 1, bytes(spoiled))) == "ShareDecryptError"
    assert federation.open(1).ledger.steps("run-1") == 0
    assert name_of(server.ask(SecAggStage.MASK, 1, boxes[1])) == "StateError"


def test_diverged_training_is_named_and_ends_the_round(federation, monkeypatch):
    server = federation.server()
    boxes = server.up_to(SecAggStage.MASK, ALL)
    monkeypatch.setattr(
        "lepton_client.trainer.train_plain",
        lambda *_: (np.full(len(VECTOR), np.nan, np.float32), 0.5),
    )
    assert name_of(server.ask(SecAggStage.MASK, 1, boxes[1])) == "EncodingError"
    assert name_of(server.ask(SecAggStage.MASK, 1, boxes[1])) == "StateError"
    assert list((federation.folders[0] / "rounds").iterdir()) == []


@pytest.mark.parametrize("stage", STAGES)
def test_malformed_bodies_are_named(federation, stage):
    server = federation.server()
    server.up_to(stage, ALL)
    changes = {"spec": b"junk"} if stage is SecAggStage.ADVERTISE else {}
    reply = server.ask(stage, 1, b"\0\0\0\x09junk", **changes)
    assert name_of(reply) == "MalformedMessage"


def test_no_secret_of_a_round_is_left_in_flowers_context(federation):
    server = federation.server()
    contexts = [context(folder) for folder in federation.folders]
    server.send = lambda index, content: app(ask(content), contexts[index - 1])
    server.run(ALL)
    assert all(dict(each.state) == {} for each in contexts)


def test_the_partner_key_of_these_tests_is_not_a_sites(federation):
    keys = {member.public_key for member in federation.roster.members}
    assert PARTNER.public_hex not in keys
