"""A model of the catalog is refused for records that it is not for, and another is named."""

import pytest
import torch
from catalog_models import FAMILIES, made_up, outputs_of, shape_of

from lepton_common.errors import SettingsError
from lepton_common.models.catalog import MODELS, build_model
from lepton_common.models.fitting import READS, misfit


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_gives_its_outputs_for_every_record(name):
    model = build_model(name, shape_of(name), outputs_of(name))
    length = (shape_of(name)[0],) if name.startswith("char") else ()
    assert model(made_up(name, 4)).shape == (4, *length, outputs_of(name))
    assert model(made_up(name, 1)).shape == (1, *length, outputs_of(name))
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    assert list(model.buffers()) == []


@pytest.mark.parametrize(
    ("name", "shape", "needs", "choose"),
    [
        ("resnet", (1, 7, 8), "images of at least 8x8", "model=mlp or model=logistic"),
        ("resnet", (128, 9), "images", "model=gru, model=mlp or model=logistic"),
        ("lstm", (30,), "series", "model=mlp or model=logistic"),
        ("gru", (3, 32, 32), "series", "model=cnn_small, model=mlp or model=logistic"),
        ("cnn1d", (7, 9), "at least 8 steps", "model=gru, model=mlp or model=logistic"),
        ("cnn_rnn", (128,), "at least 8 steps", "model=mlp or model=logistic"),
        ("char_lstm", (80, 1), "texts of shape", "model=gru"),
        ("transformer", (1, 8, 8), "texts of shape", "model=cnn_small"),
        ("transformer_lora", (), "texts of shape", "model=mlp or model=logistic"),
        ("word_bag", (48, 1), "texts of shape", "model=gru, model=mlp or model=logistic"),
        ("movements", (128,), "series", "model=mlp or model=logistic"),
        ("audio_cnn", (1023,), "at least 1024", "model=mlp or model=logistic"),
        ("audio_cnn", (2, 8000), "sounds", "model=gru"),
    ],
)
def test_other_records_are_refused_and_what_fits_is_named(name, shape, needs, choose):
    with pytest.raises(SettingsError) as refused:
        build_model(name, shape, 3)
    text = str(refused.value)
    assert f"model={name} needs" in text
    assert needs in text.partition(";")[0]
    assert choose in text.partition(";")[2]
    assert str(shape) in text


def test_the_shortest_records_of_each_kind_are_enough():
    with torch.device("meta"):
        for name, shape in (("lstm", (1, 1)), ("cnn1d", (8, 1)), ("cnn_rnn", (8, 1)),
                            ("transformer", (1,)), ("char_gru", (1,)),
                            ("resnet", (1, 8, 8))):  # fmt: skip
            assert build_model(name, shape, 2)(torch.zeros(3, *shape)).shape[0] == 3
    assert build_model("audio_cnn", (1024,), 2)(torch.zeros(3, 1024)).shape == (3, 2)


def test_what_reads_any_records_is_never_a_misfit():
    assert set(READS) < set(MODELS)
    for name in set(MODELS) - set(READS):
        assert misfit(name, (2, 3, 4, 5)) is None


def test_an_autoencoder_needs_a_task_that_reconstructs():
    with pytest.raises(SettingsError, match="each of a record's 30 numbers, not 2 outputs"):
        build_model("autoencoder", (30,), 2)
    assert build_model("autoencoder", (6, 5), 30)(torch.zeros(2, 6, 5)).shape == (2, 30)
