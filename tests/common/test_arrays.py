"""Tests of the flat vector: layout, packing, and no buffer passes."""

import numpy as np
import pytest
import torch
from flwr.app import Array
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch import nn

from lepton_common.arrays import (
    Layout,
    digest_of,
    image_order,
    lend_parameters,
    pack,
    read_parameters,
    take_back_parameters,
    trained,
    unpack,
    write_parameters,
)
from lepton_common.errors import BuffersNotAllowed, MalformedMessage


@pytest.fixture
def module():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(16, 2))


@given(arrays.arrays(np.float32, st.integers(0, 50)))
def test_packing_keeps_every_bit(vector):
    packed = pack(vector)
    assert packed.data == vector.astype("<f4").tobytes()
    again = unpack(packed, len(vector))
    assert again.tobytes() == vector.tobytes()
    assert again.dtype == np.float32
    assert not again.flags.writeable


def test_packing_a_strided_view_keeps_its_order():
    vector = np.arange(10, dtype=np.float32)[::-2]
    np.testing.assert_array_equal(unpack(pack(vector), 5), [9, 7, 5, 3, 1])


@pytest.mark.parametrize(
    "change",
    [
        {"dtype": "float64"},
        {"dtype": "int32"},
        {"dtype": ""},
        {"shape": (2, 2)},
        {"shape": (3,)},
        {"shape": (4, 1)},
        {"shape": ()},
        {"stype": "numpy.ndarray"},
        {"stype": ""},
        {"data": bytes(15)},
        {"data": bytes(20)},
        {"data": b""},
    ],
)
def test_an_array_of_another_form_is_refused(change):
    form = {"dtype": "float32", "shape": (4,), "stype": "lepton.vector.f32le", "data": bytes(16)}
    assert len(unpack(Array(**form), 4)) == 4
    with pytest.raises(MalformedMessage):
        unpack(Array(**{**form, **change}), 4)


def test_a_vector_of_another_size_is_refused():
    with pytest.raises(MalformedMessage, match="5 elements"):
        unpack(pack(np.zeros(4, np.float32)), 5)


def test_a_layout_names_all_parameters_in_order(module):
    layout = Layout.of(module)
    state = module.state_dict()
    assert list(layout.names) == list(state)
    assert list(layout.shapes) == [tuple(value.shape) for value in state.values()]
    assert layout.sizes == [value.numel() for value in state.values()]
    assert layout.size == 108 + 4 + 4 + 4 + 32 + 2


def test_a_layouts_digest_changes_with_names_and_shapes():
    one = Layout(("a", "b"), ((2, 3), (4,)))
    others = [
        Layout(("a", "c"), ((2, 3), (4,))),
        Layout(("b", "a"), ((2, 3), (4,))),
        Layout(("a", "b"), ((3, 2), (4,))),
        Layout(("a", "b"), ((2, 3), (4, 1))),
        Layout(("a", "b"), ((2, 3), (5,))),
    ]
    assert len({one.digest, *(other.digest for other in others)}) == 6
    assert one.digest == Layout(("a", "b"), ((2, 3), (4,))).digest


def test_splitting_and_joining_are_inverse(module):
    layout = Layout.of(module)
    vector = np.random.default_rng(0).standard_normal(layout.size).astype(np.float32)
    pieces = layout.split(vector)
    assert [piece.shape for piece in pieces.values()] == list(layout.shapes)
    np.testing.assert_array_equal(layout.join(list(pieces.values())), vector)
    pieces[layout.names[0]][...] = 7
    assert (vector[:108] == 7).all()
    assert not (vector[108:] == 7).any()


def test_splitting_agrees_with_the_module_itself(module):
    vector = read_parameters(module).numpy()
    for name, piece in Layout.of(module).split(vector).items():
        np.testing.assert_array_equal(piece, module.state_dict()[name].numpy())


def test_parameters_are_written_and_read_back(module):
    vector = torch.arange(Layout.of(module).size, dtype=torch.float32)
    write_parameters(module, vector)
    torch.testing.assert_close(read_parameters(module), vector, rtol=0, atol=0)
    assert float(module[3].bias[1].detach()) == len(vector) - 1
    assert all(parameter.requires_grad for parameter in module.parameters())


def test_what_was_read_is_a_copy(module):
    before = read_parameters(module)
    copy = before.clone()
    write_parameters(module, torch.zeros_like(before))
    torch.testing.assert_close(before, copy, rtol=0, atol=0)
    single = nn.Linear(3, 1, bias=False)
    vector = read_parameters(single)
    vector.zero_()
    assert bool((single.weight != 0).any())


def test_image_order_changes_the_memory_and_no_value(module):
    vector, images = read_parameters(module), torch.randn(2, 3, 4, 4)
    before = module(images)
    assert image_order(module) is module
    assert module[0].weight.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(read_parameters(module), vector, rtol=0, atol=0)
    torch.testing.assert_close(module(images), before)
    write_parameters(module, vector * 2)
    assert module[0].weight.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(read_parameters(module), vector * 2, rtol=0, atol=0)


def test_lent_parameters_are_the_vector_s_memory_and_are_taken_back(module):
    layout, images = Layout.of(module), torch.randn(2, 3, 4, 4)
    vector = read_parameters(module)
    expected = module(images)
    take_back_parameters(module)
    assert all(parameter.numel() == 0 for parameter in module.parameters())
    for _ in range(2):
        lend_parameters(module, layout, vector)
        assert module[3].bias.data_ptr() == vector[-2:].data_ptr()
        torch.testing.assert_close(module(images), expected)
        take_back_parameters(module)
    assert Layout.of(module).size == 0


def test_what_is_not_trained_does_not_travel(module):
    before = Layout.of(module)
    module[0].requires_grad_(False)
    layout, still = Layout.of(module), module[0].weight.clone()
    assert layout.names == ("1.weight", "1.bias", "3.weight", "3.bias")
    assert len(read_parameters(module)) == layout.size == 4 + 4 + 32 + 2
    assert [id(p) for p in trained(module)] == [id(p) for p in list(module.parameters())[2:]]
    vector = torch.arange(layout.size, dtype=torch.float32)
    write_parameters(module, vector)
    torch.testing.assert_close(read_parameters(module), vector, rtol=0, atol=0)
    take_back_parameters(module)
    lend_parameters(module, layout, vector)
    torch.testing.assert_close(module[0].weight, still, rtol=0, atol=0)
    assert module[3].bias.data_ptr() == vector[-2:].data_ptr()
    assert layout.digest != Layout(layout.names, layout.shapes).digest
    assert before.frozen == ""


@pytest.mark.parametrize("change", ["value", "name"])
def test_other_frozen_weights_are_another_layout(module, change):
    module[0].requires_grad_(False)
    layout = Layout.of(module)
    assert Layout.of(image_order(module)) == layout  # wherever the numbers lie
    if change == "value":
        with torch.no_grad():
            module[0].weight[0, 0, 0, 0].mul_(1 + 1e-6)
        other = module
    else:
        other = nn.Sequential(nn.Identity(), *module)
    assert Layout.of(other).digest != layout.digest
    assert Layout.of(other).frozen != layout.frozen


class _Remembering(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.register_buffer("seen", torch.zeros(2), persistent=False)


@pytest.mark.parametrize(
    "layer",
    [
        nn.BatchNorm1d(4),
        nn.BatchNorm2d(4, affine=False),
        nn.BatchNorm2d(4).requires_grad_(False),
        nn.BatchNorm2d(4).eval(),
        nn.SyncBatchNorm(4),
        nn.InstanceNorm2d(4, track_running_stats=True),
        nn.InstanceNorm2d(4, affine=True, track_running_stats=True),
        _Remembering(),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_a_model_with_buffers_has_no_layout(layer):
    with pytest.raises(BuffersNotAllowed, match="GroupNorm"):
        Layout.of(nn.Sequential(nn.Linear(4, 4), layer))


def test_the_digest_is_sha256():
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert digest_of(b"abc") == expected
