"""Runs that begin from a trained model, with and without privacy: better than from nothing."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lepton_cli.compose import compose_settings
from lepton_cli.run import Run
from lepton_cli.simulation import resume, start
from lepton_common.datasets.source import MADE_UP
from lepton_common.errors import SettingsError

# A large step, which noise in the few weights of a head can bear and noise in a whole model cannot.
PRIVATE = ["privacy=record", "privacy.epsilon=1", "privacy.sample_rate=0.5",
           "privacy.clipping_norm=1", "train.learning_rate=10", "train.local_steps=4"]  # fmt: skip


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs a small federation on made-up data."""
    monkeypatch.setenv("LEPTON_CACHE", str(tmp_path / "cache"))

    def made(*words):
        return start(
            compose_settings(
                ["sites=3", "data.partition=iid", "secagg=none", f"data.root={MADE_UP}",
                 f"runs={tmp_path / 'runs'}", *words]
            )
        )  # fmt: skip

    return made


@pytest.mark.slow
def test_frozen_features_and_a_private_head_beat_private_training_from_nothing(run):
    base = run("task=fashion_mnist", "model=mlp", "privacy=none", "rounds=4")
    task = ["task=mnist", "model=mlp", "rounds=2", *PRIVATE]
    scratch = run(*task)
    tuned = run(*task, f"start={base.folder.path}", "learn=head")
    # Noise is secret, so figures vary: of eight, 0.53 to 0.83 against 0.08 to 0.18.
    assert tuned.reached > scratch.reached + 0.05
    # The report, the card and the model know what it began from, and only the head has travelled.
    with safe_open(tuned.folder.final_model, "pt") as file:
        assert set(file.keys()) == {"3.weight", "3.bias"}
        facts = json.loads(file.metadata()["lepton"])
    assert facts["model"] == tuned.settings.model
    features = load_file(base.folder.final_model)["1.weight"]
    assert torch.equal(dict(tuned.model().named_parameters())["1.weight"], features)


@pytest.mark.slow
def test_adapters_on_a_trained_base_learn_what_those_on_a_drawn_one_do_not(run, tmp_path):
    base = run("task=sms_spam", "privacy=none", "rounds=5")
    # Without its head, so that all that is known of the labels is learned anew.
    body = {n: v for n, v in load_file(base.folder.final_model).items() if "head" not in n}
    save_file(body, tmp_path / "body.safetensors")
    task = ["task=sms_spam", "model=transformer_lora", "privacy=none", "rounds=2"]
    drawn = run(*task)
    tuned = run(*task, f"start={tmp_path / 'body.safetensors'}", "learn=lora")
    assert tuned.reached > drawn.reached + 0.1
    # What a run has learned with its base is a base again, as one file.
    again = compose_settings(
        ["task=sms_spam", "model=transformer_lora", f"start={tuned.folder.path}", "learn=lora"]
    )
    name = f"{again.model.split('.')[1]}.safetensors"
    whole = load_file(tmp_path / "cache" / "bases" / name)
    assert whole.keys() == dict(tuned.model().named_parameters()).keys()
    assert torch.equal(whole["words.weight"], body["words.weight"])


@pytest.mark.slow
def test_a_run_from_a_model_goes_on_where_it_stopped(run):
    words = ["task=breast_cancer", "model=mlp", "privacy=none", "data.root=null"]
    base = run(*words, "rounds=1")
    tuned = run(*words, "rounds=2", f"start={base.name}", "learn=all")
    first = base.rounds[-1].metrics["loss"]
    assert tuned.rounds[0].metrics["loss"] < first
    tuned.folder.outcome.unlink()  # as if it had been killed before its end
    assert resume(Run(tuned.folder)).reached == tuned.reached


def test_what_cannot_be_begun_from_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv("LEPTON_CACHE", str(tmp_path))
    with pytest.raises(SettingsError, match="neither a safetensors file nor a run"):
        compose_settings([f"start={tmp_path / 'nothing'}"])
    with pytest.raises(SettingsError, match="Unknown learn 'heads'; did you mean 'head'"):
        compose_settings(["start=x", "learn=heads"])
    with pytest.raises(SettingsError, match="learn=head is for a model that begins from another"):
        compose_settings(["learn=head"])
