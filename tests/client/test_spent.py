"""An update leaves once: what a site's log says about its rounds binds it for ever."""

from dataclasses import replace

import numpy as np
import pytest
from toy_federation import Federation, masked_sum
from toy_site import VECTOR

from lepton_client.site import forget_sites
from lepton_common.arrays import digest_of, pack
from lepton_common.stages import SecAggStage
from lepton_common.summing import bind

ALL = [1, 2, 3, 4]
OTHER = VECTOR + np.float32(0.5)


@pytest.fixture
def federation(make_site):
    return Federation(make_site)


def reason(server, index=1):
    reply = server.ask(SecAggStage.ADVERTISE, index)
    return reply.error.reason if reply.has_error() else None


@pytest.mark.parametrize("restart", [False, True])
def test_a_rounds_number_must_grow_even_after_a_restart_and_for_another_model(federation, restart):
    federation.server(round=5).advertise(ALL)
    if restart:
        forget_sites()
    other = federation.request(model_digest=digest_of(pack(OTHER).data))
    for round_ in (1, 4, 5):
        assert reason(federation.server(round=round_)) == "ReplayError"
        assert reason(federation.server(other, round=round_)) == "ReplayError"
    assert reason(federation.server(round=6)) is None
    assert reason(federation.server(federation.request(run="run-2"), round=1)) is None


@pytest.mark.parametrize("stage", [SecAggStage.SIGN, SecAggStage.UNMASK])
@pytest.mark.parametrize("run", ["run-1", "another-run"])
def test_a_rerun_on_a_model_whose_update_has_left_must_say_so(federation, stage, run):
    federation.server().up_to(stage, ALL)
    forget_sites()
    asked = federation.request(run=run)
    assert reason(federation.server(asked, round=2)) == "UpdateAlreadySpent"
    unrelated = federation.server(asked, round=2, retry_of=(b"x" * 32,))
    assert reason(unrelated) == "UpdateAlreadySpent"


def test_before_an_update_has_left_a_rerun_needs_no_word(federation):
    federation.server().up_to(SecAggStage.MASK, ALL)
    assert reason(federation.server(round=2)) is None


def test_after_a_sum_was_unmasked_no_rerun_is_taken_part_in(federation):
    first = federation.server()
    first.run(ALL)
    forget_sites()
    for retry_of in ((), (first.spec.hash,)):
        again = federation.server(round=2, retry_of=retry_of)
        assert reason(again) == "UpdateAlreadySpent"
    # The next model is free.
    next_model = federation.request(round=2, model_digest=digest_of(pack(OTHER).data))
    assert reason(federation.server(next_model)) is None


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("stage", [SecAggStage.SIGN, SecAggStage.UNMASK])
def test_a_declared_retry_succeeds_and_the_earlier_round_is_over(federation, stage, restart):
    first = federation.server()
    shown = first.up_to(stage, ALL)
    second = federation.server(round=2, retry_of=(first.spec.hash,))
    if restart:
        second.before_each = forget_sites
    adverts = second.advertise(ALL)
    # From the advertisement on, nobody answers the earlier round.
    for index in ALL:
        assert first.ask(stage, index, shown).error.reason == "StateError"
    boxes = second.share(ALL, adverts)
    headers = second.mask(ALL, boxes)
    for index in ALL:
        assert first.ask(stage, index, shown).error.reason == "StateError"
    total, _ = second.unmask(ALL, second.sign(ALL, headers))
    assert np.abs(total).max() > 0


def test_the_earlier_round_stays_over_even_if_its_sealed_file_comes_back(federation):
    first = federation.server()
    signatures = first.up_to(SecAggStage.UNMASK, ALL)
    (path,) = (federation.folders[0] / "rounds").iterdir()
    sealed = path.read_bytes()
    federation.server(round=2, retry_of=(first.spec.hash,)).advertise(ALL)
    path.write_bytes(sealed)
    forget_sites()
    assert first.ask(SecAggStage.UNMASK, 1, signatures).error.reason == "StateError"
    # Nor under a run of another name.
    assert federation.open(1).vault.load(first.spec.hash).spec == first.spec


def test_a_retry_under_another_runs_name_renounces_the_earlier_round_too(federation):
    first = federation.server()
    signatures = first.up_to(SecAggStage.UNMASK, ALL)
    asked = federation.request(run="another-run")
    federation.server(asked, round=1, retry_of=(first.spec.hash,)).advertise(ALL)
    forget_sites()
    assert first.ask(SecAggStage.UNMASK, 1, signatures).error.reason == "StateError"


def test_each_of_several_earlier_rounds_must_be_declared(federation):
    first = federation.server()
    first.up_to(SecAggStage.SIGN, ALL)
    second = federation.server(round=2, retry_of=(first.spec.hash,))
    second.up_to(SecAggStage.SIGN, ALL)
    for retry_of in ((first.spec.hash,), (second.spec.hash,)):
        assert reason(federation.server(round=3, retry_of=retry_of)) == "UpdateAlreadySpent"
    federation.server(round=3, retry_of=(first.spec.hash, second.spec.hash)).run(ALL)


def test_a_retry_keeps_the_cohort(federation):
    first = federation.server()
    first.up_to(SecAggStage.SIGN, ALL)
    names = ["site-1", "site-2", "site-3"]
    smaller = federation.request(cohort=3, masked=masked_sum(dict.fromkeys(names, 1)))
    roster = first.spec.roster[:3]
    changes = {"roster": roster, "threshold": 2, "app_hash": bind(smaller), "round": 2}
    retried = federation.server(smaller, **changes, retry_of=(first.spec.hash,))
    assert reason(retried) == "UpdateAlreadySpent"
    undeclared = federation.server(smaller, **changes)
    assert reason(undeclared) == "UpdateAlreadySpent"


def test_a_round_that_was_refused_uses_up_nothing(federation):
    refused = federation.server(round=9, federation="others")
    assert reason(refused) == "RosterMismatch"
    assert reason(federation.server(round=1)) is None


def test_a_retry_may_ask_for_something_else_but_of_the_same_model(federation):
    first = federation.server()
    first.up_to(SecAggStage.SIGN, ALL)
    asked = federation.request(recipe=replace(federation.request().recipe, seed=7))
    federation.server(asked, round=2, retry_of=(first.spec.hash,)).run(ALL)


@pytest.mark.parametrize("smaller", [False, True])
def test_two_rounds_begun_side_by_side_on_one_model_cannot_both_mask(federation, smaller):
    """Their difference would be single updates, whatever the runs are called."""
    one = federation.server(federation.request(run="one"))
    asked, roster, sites = federation.request(run="two"), one.spec.roster, ALL
    if smaller:
        sites, roster = ALL[:3], roster[:3]
        form = masked_sum(dict.fromkeys([name for name, _ in roster], 1))
        asked = federation.request(run="two", cohort=3, masked=form)
    two = federation.server(asked, roster=roster)
    adverts = one.advertise(ALL), two.advertise(sites)
    boxes = one.share(ALL, adverts[0]), two.share(sites, adverts[1])
    one.mask(ALL, boxes[0])
    for index in sites:
        reply = two.ask(SecAggStage.MASK, index, boxes[1][index])
        assert reply.error.reason == "UpdateAlreadySpent"
    assert federation.open(1).spent._masked[asked.model_digest].keys() == {one.spec.hash.hex()}
