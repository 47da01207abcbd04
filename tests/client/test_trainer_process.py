"""The trainer's own process: the same answers as in this one, and no way out of it."""

import sys
from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save
from trainer_folder import ASKED, DATA, RULES, SECRET, WEIGHTS, fill

from lepton_client.rules import TrainerRules
from lepton_client.trainer_process import TrainerProcess
from lepton_client.trainer_wire import Answer, receive, send
from lepton_common.errors import DataMissing, SettingsError, TrainerFailed
from lepton_common.models.bases import BASES, keep_base
from lepton_common.models.tree_form import TreeForm
from lepton_common.strict import parse


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return fill(tmp_path_factory.mktemp("site"))


def answering(folder, code):
    """Returns a trainer whose launcher starts another program than it was given."""
    script = folder.parent / "stranger.py"
    script.write_text(code)
    rules = TrainerRules(**{**vars(RULES), "launcher": [sys.executable, str(script)]})
    return TrainerProcess("a", DATA, folder, SECRET, rules)


STRANGER = """
import json, struct, sys
def frame(header, blob=b""):
    text = json.dumps(header).encode()
    sys.stdout.buffer.write(struct.pack(">QQ", len(text), len(blob)) + text + blob)
nan, zero = struct.pack("<f", float("nan")), bytes(4)
"""


@pytest.mark.parametrize(
    "code",
    [
        "print('hello')",
        "sys.stdout.buffer.write(b'\\xff' * 64)",
        "frame({}, 62 * nan)",
        "frame({}, 61 * zero)",
        "frame({}, 63 * zero)",
        "frame({}, (1 << 20) * zero)",
        "frame({'what': 'people'}, 62 * zero)",
        "frame({'loss': 'much'}, 62 * zero)",
    ],
)
def test_what_is_no_answer_is_refused(folder, code):
    trainer = answering(folder, STRANGER + code)
    try:
        with pytest.raises(TrainerFailed):
            trainer.train(ASKED, WEIGHTS)
    finally:
        trainer.stop()


def test_what_is_an_answer_is_taken(folder):
    trainer = answering(folder, STRANGER + "frame({'records': 3}, 62 * zero)")
    try:
        assert trainer.train(ASKED, WEIGHTS).records == 3
    finally:
        trainer.stop()


def test_of_trees_a_level_of_sums_is_an_answer(folder):
    form = TreeForm(trees=2, depth=2, bins=4)
    asked, weights = replace(ASKED, model=form.name), np.zeros(form.weights(30), np.float32)
    trainer = answering(folder, STRANGER + f"frame({{}}, {form.answer(30)} * zero)")
    try:
        assert len(trainer.train(asked, weights).update) == form.answer(30)
    finally:
        trainer.stop()
    trainer = answering(folder, STRANGER + f"frame({{}}, {form.weights(30)} * zero)")
    try:
        with pytest.raises(TrainerFailed):
            trainer.train(asked, weights)
    finally:
        trainer.stop()


@pytest.mark.parametrize(("said", "heard"), [(None, "1000"), ("7", "7")])
def test_it_is_told_nothing_of_the_agents_surroundings(folder, monkeypatch, said, heard):
    """But how long its threads may keep a core that they have no use for."""
    monkeypatch.setenv("PASSPHRASE", "of the site's key")
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    if said:
        monkeypatch.setenv("GOMP_SPINCOUNT", said)
    code = (
        "import os; assert 'PASSPHRASE' not in os.environ; "
        f"assert os.environ['GOMP_SPINCOUNT'] == '{heard}'; open(__file__ + '.ok', 'w')"
    )
    trainer = answering(folder, code)
    with pytest.raises(TrainerFailed):
        trainer.people()
    assert (folder.parent / "stranger.py.ok").exists()


@given(st.binary(max_size=200))
def test_no_bytes_do_more_than_be_refused(data):
    with pytest.raises(TrainerFailed):
        receive(BytesIO(data), Answer, 64)


def test_a_frame_comes_back_as_it_was_sent():
    stream, values = BytesIO(), np.arange(7, dtype=np.int64)
    send(stream, Answer(records=3), values)
    stream.seek(0)
    answer, found = receive(stream, Answer, values.nbytes)
    assert answer == Answer(records=3)
    np.testing.assert_array_equal(found.view(np.int64), values)


def test_a_launcher_confines_what_it_launches_itself():
    rules, faults = parse(
        TrainerRules, {**vars(RULES), "launcher": ["srun"], "isolation": "namespace"}
    )
    assert rules is None
    assert "the launcher confines" in faults[0]


def test_a_changed_site_file_is_obeyed_at_once(make_site):
    site = make_site()
    path = site.folder / "site.yaml"
    before = path.read_text()
    path.write_text(before.replace("max_delta: 0.001", "max_delta: 1.0e-09"))
    site.refresh()
    assert site.file.policy.max_delta == 1e-9
    path.write_text(before.replace("min_cohort: 1", "min_cohort: none"))
    for _ in range(2):
        with pytest.raises(SettingsError, match="min_cohort"):
            site.refresh()
    path.write_text(before.replace("name: site-1", "name: site-2"))
    with pytest.raises(SettingsError, match="keeps its name"):
        site.refresh()


def test_a_trained_model_that_was_put_here_is_seen_at_the_next_message(make_site):
    site = make_site()
    before = site.trainer
    site.refresh()
    assert site.trainer is before
    keep_base(save({"0.weight": torch.zeros(2)}), site.folder / BASES)
    site.refresh()
    assert site.trainer is not before


def test_rows_that_are_not_there_are_named_before_it_starts(folder):
    rules = TrainerRules(**{**vars(RULES), "isolation": "namespace"})
    trainer = TrainerProcess("a", replace(DATA, rows="row.npy"), folder, SECRET, rules)
    with pytest.raises(DataMissing, match=r"row\.npy, which data in site.yaml names, is not there"):
        trainer.describe()
