"""Tests of the replacement of batch normalisation."""

import logging

import pytest
import torch
from torch import nn

from lepton_common.arrays import Layout
from lepton_common.models.catalog import MODELS, build_model
from lepton_common.models.replacements import replace_batch_norms


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 64, 3), nn.BatchNorm2d(64), nn.ReLU())
        self.norm = nn.BatchNorm2d(64, affine=False)

    def forward(self, images):
        return self.norm(self.body(images)).mean((2, 3))


@pytest.mark.parametrize(
    ("channels", "groups"), [(64, 16), (20, 5), (256, 32), (6, 1), (3, 1), (24, 6), (1, 1), (7, 1)]
)
def test_groups_divide_the_channels_and_have_four_or_more(channels, groups):
    new = replace_batch_norms(nn.Sequential(nn.BatchNorm1d(channels)))[0]
    assert isinstance(new, nn.GroupNorm)
    assert (new.num_groups, new.num_channels) == (groups, channels)


def test_nested_layers_are_replaced_and_said(caplog):
    model = Block()
    with torch.no_grad():
        model.body[1].weight.fill_(2.0)
        model.body[1].bias.fill_(0.5)
    with caplog.at_level(logging.WARNING):
        replaced = replace_batch_norms(model)
    assert "body.1 by 16 groups; norm by 16 groups" in caplog.text
    assert not list(replaced.buffers())
    assert torch.all(replaced.body[1].weight == 2.0)
    assert torch.all(replaced.body[1].bias == 0.5)
    assert not list(replaced.norm.parameters())


def test_a_record_no_longer_depends_on_the_others():
    model = replace_batch_norms(Block())
    images = torch.randn(5, 3, 8, 8)
    alone = torch.cat([model(image[None]) for image in images])
    assert torch.allclose(model(images), alone, atol=1e-5)


def test_a_model_that_is_a_batch_normalisation_itself():
    assert isinstance(replace_batch_norms(nn.BatchNorm2d(8)), nn.GroupNorm)


def test_a_model_of_the_catalog_may_have_batch_normalisation(monkeypatch):
    monkeypatch.setitem(MODELS, "mixing", lambda shape, outputs: Block())
    layout = Layout.of(build_model("mixing", (3, 8, 8), 64))
    assert "body.1.weight" in layout.names


def test_a_model_without_any_is_returned_as_it_is(caplog):
    model = nn.Sequential(nn.Linear(3, 2), nn.GroupNorm(1, 2))
    assert replace_batch_norms(model) is model
    assert not caplog.records
