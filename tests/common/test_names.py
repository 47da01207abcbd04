"""Tests of names that somebody got wrong."""

import pytest

from lepton_common.errors import UnknownName
from lepton_common.names import did_you_mean, look_up, unknown

_KNOWN = {"fedavg": 1, "fedadam": 2, "krum": 3}


def test_the_nearest_name_is_proposed():
    assert did_you_mean("fedavgg", _KNOWN) == "; did you mean 'fedavg'?"
    assert did_you_mean("crum", _KNOWN) == "; did you mean 'krum'?"


def test_nothing_is_proposed_for_a_name_far_from_all():
    assert did_you_mean("zzz", _KNOWN) == ""
    assert did_you_mean("fedavg", []) == ""


def test_a_known_name_is_looked_up():
    assert look_up(_KNOWN, "krum", "strategy") == 3


def test_an_unknown_name_is_refused_with_all_there_are():
    with pytest.raises(UnknownName) as refused:
        look_up(_KNOWN, "fedavgg", "strategy")
    assert str(refused.value) == (
        "Unknown strategy 'fedavgg'; did you mean 'fedavg'? Known: fedadam, fedavg, krum."
    )
    assert refused.value.exit_code == 2


def test_a_sentence_about_a_hopeless_name_still_reads_well():
    assert unknown("task", "?", ["b", "a"]) == "Unknown task '?'. Known: a, b."
