"""Tests of augmentation multiplicity: what views are, and that averaging comes before clipping."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from toy_site import RECIPE

from lepton_client.training.conformance import conform
from lepton_client.training.private import Engine, clipped_sum
from lepton_client.training.resident import resident_model
from lepton_client.training.views import Views
from lepton_common.datasets.records import Records
from lepton_common.privacy.noise import SecretRandom
from lepton_common.privacy.plan import PrivacyPlan
from lepton_common.tasks.augmentation import AsTheyAre, OfImages
from lepton_common.tasks.catalog import find_task

_PLAN = PrivacyPlan("row", 1e-5, 1.0, 1.0, 0.05, 1, 5, 8.0)


def _views(task, count):
    return Views(find_task(task), replace(RECIPE, augmentations=count), SecretRandom())


def _images(count, size=28, channels=1):
    generator = torch.Generator().manual_seed(count)
    return torch.rand(count, channels, size, size, generator=generator)


def test_one_view_moves_by_at_most_the_tasks_pixels_and_each_way_comes_up():
    image = _images(1)
    seen = set()
    for view in _views("mnist", 400).of(image):
        moves = [
            (down, right)
            for down in range(-2, 3)
            for right in range(-2, 3)
            if torch.equal(_moved(image[0], down, right), view)
        ]
        assert len(moves) == 1
        seen |= set(moves)
    assert len(seen) == 25


def _moved(image, down, right):
    padded = torch.nn.functional.pad(image[None], [2] * 4, mode="replicate")[0]
    return padded[:, 2 + down : 30 + down, 2 + right : 30 + right]


def test_images_are_mirrored_only_where_the_label_stays():
    image = _images(1, 32, 3)
    task = replace(find_task("cifar10"), augmentation=OfImages(mirror=True))
    views = Views(task, replace(RECIPE, augmentations=60), SecretRandom())
    found = {int(torch.equal(view, image[0])) for view in views.of(image)}
    assert found == {0, 1}
    task = replace(find_task("mnist"), augmentation=AsTheyAre())
    same = Views(task, replace(RECIPE, augmentations=60), SecretRandom())
    assert all(torch.equal(view, image[0]) for view in same.of(image))


def test_views_of_a_record_stand_together_and_depend_on_it_alone():
    images = _images(3)
    views = _views("mnist", 5).of(images)
    assert views.shape == (15, 1, 28, 28)
    for at, view in enumerate(views):
        distances = [float((view - image).abs().mean()) for image in images]
        values = set(view.flatten().tolist())
        assert values <= set(images[at // 5].flatten().tolist()), distances


def test_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    _views("fashion_mnist", 4).of(_images(2))
    assert torch.equal(before, torch.get_rng_state())


def test_the_keystream_alone_decides_what_views_there_are(monkeypatch):
    # PyTorch tells 2**32 seeds apart: a server could try them all, and so know each record's view.
    monkeypatch.setattr(SecretRandom, "words", lambda _, count: np.zeros(count, np.uint64))
    images = _images(2)
    for image, views in zip(images, _views("fashion_mnist", 4).of(images).split(4), strict=True):
        assert all(torch.equal(view, _moved(image, -2, -2)) for view in views)


@pytest.mark.parametrize("batch_size", [4, 64])
@pytest.mark.parametrize("units", [None, np.array([0, 0, 1, 2, 2, 2])])
def test_gradients_of_views_are_averaged_before_they_are_clipped(batch_size, units):
    task = find_task("mnist")
    model = resident_model("cnn_small", (1, 28, 28), 10, torch.device("cpu"), channels_last=False)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        for parameter in model.module.parameters():
            torch.nn.init.normal_(parameter, std=0.05)
    images, labels = _images(6), torch.tensor([1, 7, 3, 3, 0, 9])
    records = Records(images, labels, units)
    given = _views("mnist", 3)
    drawn = []
    plain = given.of
    given.of = lambda features: drawn.append(plain(features)) or drawn[-1]
    of_unit = np.arange(6) if units is None else units
    rows = [np.flatnonzero(of_unit == unit) for unit in np.unique(of_unit)]
    with conform(model, task, (1, 28, 28), 10, (64,)).open(model) as gradients:
        found = clipped_sum(Engine(model, gradients), task, records, rows, batch_size, _PLAN, given)
    views = torch.cat(drawn)
    expected = torch.zeros_like(found)
    for unit in rows:
        gradient = torch.zeros_like(found)
        for row in unit:
            model.module.zero_grad()
            outputs = model.module(views[3 * row : 3 * row + 3])
            torch.autograd.backward(task.losses(outputs, labels[row].repeat(3)).mean())
            gradient += torch.cat([p.grad.flatten() for p in model.module.parameters()])
        expected += gradient * min(1.0, _PLAN.clipping_norm / float(gradient.norm()))
    assert float((found - expected).norm() / expected.norm()) < 1e-5


def test_one_view_is_the_record_itself():
    task = find_task("mnist")
    model = resident_model("cnn_small", (1, 28, 28), 10, torch.device("cpu"), channels_last=False)
    records = Records(_images(4), torch.tensor([1, 2, 3, 4]))
    rows = list(np.arange(4).reshape(-1, 1))
    sums = []
    with conform(model, task, (1, 28, 28), 10, (64,)).open(model) as gradients:
        for views in (None, _views("mnist", 1)):
            engine = Engine(model, gradients)
            sums.append(clipped_sum(engine, task, records, rows, 8, _PLAN, views))
    assert torch.equal(*sums)
