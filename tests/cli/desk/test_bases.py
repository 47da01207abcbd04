"""A trained model that runs begin from: the operator puts it at the site, and nothing sends it."""

import json
from dataclasses import replace

import pytest
import torch
from desk_folder import folder, settings  # noqa: F401
from safetensors.torch import save

from lepton_client.site import read_site_file
from lepton_client.trainer import LocalTrainer, Wanted
from lepton_common.models.bases import Based, look_in


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Bases are kept in an empty cache."""
    monkeypatch.setenv("LEPTON_CACHE", str(tmp_path / "cache"))


def put(tmp_path, seed=1):
    """A base for `toy`, as a lead sends its file, and what a run calls a model with it."""
    generator = torch.Generator().manual_seed(seed)
    drawn = {"0.weight": torch.randn(6, 4, generator=generator), "0.bias": torch.zeros(6)}
    file = tmp_path / "base.safetensors"
    file.write_bytes(save(drawn))
    return str(file), drawn


def trainer_at(folder):  # noqa: F811
    return LocalTrainer("site-1", read_site_file(folder / "site.yaml").data, folder, bytes(32))


def state_of(lepton):
    row = json.loads(lepton("site", "requests", "site-1", "--json").out)[0]
    return row["state"], [reason["name"] for reason in row["reasons"]]


def test_from_the_file_to_a_run_that_may_be(lepton, folder, tmp_path):  # noqa: F811
    file, drawn = put(tmp_path)
    ended = lepton("model", "base", file)
    assert ended.code == 0, ended.err
    sha256 = ended.out.strip().rpartition("/")[2].removesuffix(".safetensors")
    base = Based(sha256, "head", "layers.linear6-tanh")
    folder.propose(made=replace(settings(), model=base.name))
    assert state_of(lepton) == ("beyond the policy", ["BaseMissing"])
    ended = lepton("site", "model", "base", "site-1", file)
    assert ended.code == 0, ended.err
    assert f"from.{sha256}" in ended.out
    assert state_of(lepton) == ("waits", [])
    look_in(folder.path / "bases")
    try:
        trainer = trainer_at(folder.path)
        built = trainer.initial(Wanted(task="toy", model=base.name, seed=1))
    finally:
        look_in(None)
    assert len(built.vector) == 6 * 3 + 3  # the head alone
    assert drawn["0.weight"].numel() == 24


def test_where_nothing_stays_frozen_a_site_needs_no_file(lepton, folder):  # noqa: F811
    base = Based("0" * 64, "all", "layers.linear6-tanh")
    folder.propose(made=replace(settings(), model=base.name))
    assert state_of(lepton) == ("waits", [])
    trainer = trainer_at(folder.path)
    assert len(trainer.initial(Wanted(task="toy", model=base.name, seed=1)).vector) == 51


def test_what_is_no_base_is_not_taken(lepton, folder, tmp_path):  # noqa: F811
    wrong = tmp_path / "model.pt"
    torch.save({"0.weight": torch.zeros(6, 4)}, wrong)
    ended = lepton("site", "model", "base", "site-1", str(wrong))
    assert (ended.code, "safetensors" in ended.err) == (2, True)
    ended = lepton("site", "model", "base", "site-1", str(tmp_path / "nothing"))
    assert (ended.code, "no file" in ended.err) == (2, True)
    assert not (folder.path / "bases").exists()
