"""Tests of the model catalog: sizes, shapes and nothing but parameters."""

import pytest
import torch
from catalog_models import ANY_OR_IMAGES, made_up, outputs_of, shape_of

from lepton_common.arrays import Layout, read_parameters
from lepton_common.errors import SettingsError, UnknownName
from lepton_common.models.catalog import MODELS, build_model, initial_model
from lepton_common.models.fitting import IMAGES, READS

_IMAGE_MODELS = sorted(name for name, reads in READS.items() if reads == IMAGES)


@pytest.mark.parametrize(
    ("name", "shape", "outputs", "parameters"),
    [
        ("cnn_reference", (3, 32, 32), 10, 1_626_442),
        ("cnn_small", (1, 28, 28), 10, 26_010),
        ("cnn", (1, 28, 28), 10, 416 + 12_832 + 32 * 49 * 128 + 128 + 1290),
        ("logistic", (13,), 1, 14),
        ("logistic", (1, 8, 8), 10, 650),
        ("mlp", (30,), 2, 30 * 64 + 64 + 130),
        ("resnet", (3, 32, 32), 10, 77_850),
        ("lstm", (50, 9), 6, 4 * 64 * (9 + 64 + 2) + 65 * 6),
        ("gru", (50, 9), 6, 3 * 64 * (9 + 64 + 2) + 65 * 6),
        ("char_lstm", (80,), 70, 70 * 32 + 4 * 64 * (32 + 64 + 2) + 65 * 70),
        ("char_gru", (80,), 70, 70 * 32 + 3 * 64 * (32 + 64 + 2) + 65 * 70),
        ("cnn1d", (128, 9), 6, 32 * 46 + 64 * 161 + 65 * 6),
        ("cnn_rnn", (128, 9), 6, 32 * 46 + 32 * 161 + 3 * 64 * (32 + 64 + 2) + 65 * 6),
        ("transformer_lora", (40,), 2, 2 * 2 * 2 * 4 * 32 + 33 * 2),
        ("word_bag", (40,), 1, 4097),
        ("movements", (128, 9), 6, 37 * 6),
        ("autoencoder", (40,), 40, 41 * 40 + 41 * 13 + 14 * 40 + 41 * 40),
        ("audio_cnn", (8000,), 10, 160 + 32 * 145 + 32 * 289 + 10 * (32 * 17 + 1)),
    ],
)
def test_a_model_has_the_published_number_of_parameters(name, shape, outputs, parameters):
    assert Layout.of(build_model(name, shape, outputs)).size == parameters


@pytest.mark.parametrize("name", ANY_OR_IMAGES)
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (1, 28, 28), (2, 15, 17), (1, 9, 20)])
def test_a_model_gives_one_logit_a_class_for_every_record(name, shape):
    model = build_model(name, shape, 7)
    assert model(torch.zeros(3, *shape)).shape == (3, 7)
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    assert list(model.buffers()) == []


@pytest.mark.parametrize("name", _IMAGE_MODELS)
def test_a_network_for_images_fits_every_size_from_eight_pixels(name):
    with torch.device("meta"):
        for height in (*range(8, 20), 28, 31, 32):
            for width in (8, 16, 33):
                model = build_model(name, (1, height, width), 2)
                assert model(torch.zeros(1, 1, height, width)).shape == (1, 2)


@pytest.mark.parametrize("name", sorted(MODELS))
def test_a_record_does_not_influence_another_records_logits(name):
    model = initial_model(name, shape_of(name), outputs_of(name), 0).train()
    records = made_up(name, 4)
    before = model(records)
    records[0] = records[0] * 100 + 3
    after = model(records)
    torch.testing.assert_close(after[1:], before[1:])
    assert not torch.allclose(after[0], before[0])


@pytest.mark.parametrize("name", _IMAGE_MODELS)
@pytest.mark.parametrize("shape", [(13,), (8, 8), (1, 7, 8), (1, 8, 7), (1, 8, 8, 8)])
def test_a_network_for_images_refuses_other_records(name, shape):
    with pytest.raises(SettingsError, match=r"images of at least 8x8.*model=mlp or model=logistic"):
        build_model(name, shape, 2)


def test_an_unknown_model_is_refused():
    with pytest.raises(UnknownName, match="did you mean 'cnn_small'"):
        build_model("cnn_smal", (1, 28, 28), 10)


@pytest.mark.parametrize("name", sorted(MODELS))
def test_initial_weights_depend_on_the_seed_alone(name):
    torch.manual_seed(7)
    kind = shape_of(name), outputs_of(name)
    first = read_parameters(initial_model(name, *kind, seed=1))
    torch.manual_seed(8)
    torch.rand(5)
    again = read_parameters(initial_model(name, *kind, seed=1))
    other = read_parameters(initial_model(name, *kind, seed=2))
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    assert not torch.equal(first, other)


def test_building_an_initial_model_leaves_the_global_generator_as_it_was():
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    initial_model("mlp", (5,), 2, seed=1)
    assert torch.equal(torch.random.get_rng_state(), before)
