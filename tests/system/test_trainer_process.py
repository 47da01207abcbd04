"""A real trainer process: the same answers as in this one, and no way out of it."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch
from model_wheel import FILES, kidney
from safetensors.torch import save
from toy_site import PRIVACY, request
from trainer_folder import ASKED, DATA, RULES, SECRET, WEIGHTS, fill

from lepton_client.approved_models import approve, remove
from lepton_client.isolation import cut_off
from lepton_client.rules import TrainerRules
from lepton_client.trainer import LocalTrainer, Wanted
from lepton_client.trainer_process import TrainerProcess
from lepton_common.arrays import Layout
from lepton_common.errors import (
    BaseMissing,
    DataMissing,
    EmptySite,
    IsolationUnavailable,
    ModelNotApproved,
    PackageAltered,
    TrainerFailed,
)
from lepton_common.models.bases import BASES, Based, keep_base
from lepton_common.models.catalog import build_model
from lepton_common.models.wheel import read_model_wheel
from lepton_common.privacy.plan import SharedNoise

pytestmark = pytest.mark.system


def confined():
    try:
        cut_off(["true"], "/nowhere", [])
    except IsolationUnavailable as error:
        return str(error)
    return None


needs_namespaces = pytest.mark.skipif(confined() is not None, reason=str(confined()))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return fill(tmp_path_factory.mktemp("site"))


@pytest.fixture(scope="module")
def local(folder):
    return LocalTrainer("a", DATA, folder, SECRET)


def started(folder):
    isolation = "process" if confined() else "namespace"
    rules = TrainerRules(**{**vars(RULES), "isolation": isolation})
    return TrainerProcess("a", DATA, folder, SECRET, rules)


@pytest.fixture(scope="module")
def remote(folder):
    trainer = started(folder)
    yield trainer
    trainer.stop()


def test_it_trains_as_one_in_this_process(local, remote):
    expected, got = local.train(ASKED, WEIGHTS), remote.train(ASKED, WEIGHTS)
    np.testing.assert_allclose(got.update, expected.update, rtol=1e-5, atol=1e-8)
    assert got.loss == pytest.approx(expected.loss)
    assert got.records == expected.records == 60


def test_it_finds_trained_models_in_the_sites_folder_and_nowhere_else(folder, monkeypatch):
    values = {"0.weight": torch.full((6, 30), 0.5), "0.bias": torch.zeros(6)}
    monkeypatch.setenv("LEPTON_CACHE", str(folder))  # where this process looks
    base = Based(keep_base(save(values), folder / BASES).stem, "head", "layers.linear6-tanh")
    trainer, wanted = started(folder), Wanted(task="breast_cancer", model=base.name, seed=1)
    try:
        built = trainer.initial(wanted)
        assert built.layout == Layout.of(build_model(base.name, (30,), 2)).digest
        assert len(built.vector) == 6 * 2 + 2
        (folder / BASES / f"{base.sha256}.safetensors").unlink()
        with pytest.raises(BaseMissing):
            trainer.initial(wanted)
    finally:
        trainer.stop()


def test_it_knows_the_same_people_and_engine(local, remote):
    assert remote.people() == local.people()
    assert len(remote.people()) == 60
    assert remote.conformance(ASKED) == local.conformance(ASKED)


def test_it_trains_privately_on_the_people_it_told_and_once(remote):
    asked = request(**{**vars(ASKED), "privacy": PRIVACY})
    remote.people()
    update = remote.train_privately(asked, WEIGHTS, PRIVACY.plan("row", 64))
    assert update.shape == WEIGHTS.shape
    assert np.linalg.norm(update) > 0
    with pytest.raises(EmptySite):
        remote.train_privately(asked, WEIGHTS, PRIVACY.plan("row", 64))


@pytest.mark.parametrize("mode", ["distributed", "site"])
def test_it_adds_its_share_to_a_sum(remote, mode):
    rate = 1.0 if mode == "site" else 0.5
    changes = {"mode": mode, "steps_per_round": 1, "sample_rate": rate}
    privacy = type(PRIVACY)(**{**vars(PRIVACY), **changes})
    plan = privacy.plan("row", 64, SharedNoise(3, 3, 1, len(WEIGHTS)))
    remote.people()
    found = remote.noised_sum(request(**{**vars(ASKED), "privacy": privacy}), WEIGHTS, plan)
    assert found.dtype == np.int64
    assert found.shape == WEIGHTS.shape


def test_what_it_raises_keeps_its_name_and_its_trace_stays_here(folder, remote):
    kept = (folder / "rows.npy").read_bytes()
    (folder / "rows.npy").write_bytes(b"no list")
    try:
        with pytest.raises(DataMissing) as raised:
            remote.people()
    finally:
        (folder / "rows.npy").write_bytes(kept)
    assert "load_dataset" not in str(raised.value)
    assert "Cannot read the list of rows" in str(raised.value.__cause__)


def test_where_one_was_killed_the_next_call_has_another(remote):
    remote.people()
    killed = remote._process
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait(10)  # until the system is done with it, what it started still answers
    assert len(remote.people()) == 60
    assert remote._process is not killed


def test_stopping_ends_it_in_the_midst_of_training(remote):
    long = type(ASKED.recipe)(**{**vars(ASKED.recipe), "local_epochs": 10**6})
    raised = []

    def train():
        try:
            remote.train(request(**{**vars(ASKED), "recipe": long}), WEIGHTS)
        except TrainerFailed as error:
            raised.append(error)

    remote.people()
    training = threading.Thread(target=train)
    training.start()
    time.sleep(0.3)
    assert training.is_alive(), raised
    remote.stop()
    training.join(10)
    assert raised
    assert len(remote.people()) == 60


@needs_namespaces
def test_what_is_cut_off_has_no_network_no_neighbours_and_no_key(folder):
    tried = """
import os, pathlib, socket, sys
folder, port = pathlib.Path(sys.argv[1]), int(sys.argv[2])
assert sorted(p.name for p in folder.iterdir()) == ["rows.npy"], list(folder.iterdir())
assert len([p for p in os.listdir("/proc") if p.isdigit()]) == 1
for act in (lambda: socket.create_connection(("127.0.0.1", port), 5),
            lambda: socket.create_connection(("192.0.2.1", 443), 5),
            lambda: (folder / "signing.pem").write_text("another"),
            lambda: os.system("umount " + str(folder)) and (folder / "signing.pem").read_text()):
    try:
        act()
    except OSError:
        continue
    sys.exit("it got out")
"""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        words = [sys.executable, "-c", tried, str(folder), str(listening.getsockname()[1])]
        # The same words do get out where nothing cuts them off.
        assert subprocess.run(words, capture_output=True, check=False).returncode == 1
        cut = cut_off(words, folder, ["rows.npy"])
        ended = subprocess.run(cut, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert (folder / "signing.pem").read_text() == "the site's key"


def test_it_trains_an_approved_model_as_the_same_one_of_the_catalog(folder, local, tmp_path):
    wheel = read_model_wheel(kidney(tmp_path))
    asked = request(**{**vars(ASKED), "model": f"wheel.kidney.tiny.{wheel.sha256}"})
    isolation = "process" if confined() else "namespace"
    rules = TrainerRules(**{**vars(RULES), "isolation": isolation})

    def trains(act):
        trainer = TrainerProcess("a", DATA, folder, SECRET, rules)  # as the agent does
        try:
            return act(trainer)
        finally:
            trainer.stop()

    with pytest.raises(ModelNotApproved):
        trains(lambda trainer: trainer.train(asked, WEIGHTS))
    approve(folder, wheel, "dora")
    try:
        found = trains(lambda trainer: trainer.train(asked, WEIGHTS))
        expected = local.train(ASKED, WEIGHTS).update
        np.testing.assert_allclose(found.update, expected, rtol=1e-5, atol=1e-8)
        wanted = Wanted(task=asked.task, model=asked.model, seed=0)
        initial = trains(lambda trainer: trainer.initial(wanted))
        assert initial.layout == ASKED.layout
        np.testing.assert_array_equal(initial.vector, WEIGHTS)
        assert trains(lambda trainer: trainer.conformance(asked)) == local.conformance(ASKED)
        place = folder / "models" / f"kidney-1.0-{wheel.sha256}" / "kidney"
        place.chmod(0o755)
        (place / "nets.py").chmod(0o644)
        (place / "nets.py").write_text(FILES["kidney/nets.py"] + "\nALTERED = True\n")
        with pytest.raises(PackageAltered):
            trains(lambda trainer: trainer.train(asked, WEIGHTS))
    finally:
        remove(folder, "kidney")
    assert "kidney" not in sys.modules
