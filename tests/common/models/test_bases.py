"""Tests of models that begin from a trained one: what is taken over, frozen, fresh or refused."""

import hashlib
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save

from lepton_common.arrays import Layout
from lepton_common.errors import BaseMisfit, BaseMissing, BaseUnreadable
from lepton_common.models.bases import Based, based, check_kept, keep_base, look_in, without_base
from lepton_common.models.catalog import build_model, initial_model, model_fault

SHAPE, WIDE = (5,), "layers.linear6-relu-linear4-tanh"


@pytest.fixture(autouse=True)
def place(tmp_path):
    """Where this process looks for bases, in each test another."""
    look_in(tmp_path)
    yield tmp_path
    look_in(None)


def weights(name, outputs=3, seed=7, shape=SHAPE):
    """The weights of a model as another run left them, all of them moved."""
    module = initial_model(name, shape, outputs, seed)
    return {path: values.detach() + 0.25 for path, values in module.named_parameters()}


def kept(tensors, learns, model, **more):
    """Keeps tensors as a base, and names a model that begins from them."""
    return Based(keep_base(save(tensors, **more)).stem, learns, model)


def test_all_weights_begin_as_the_base_has_them_and_are_trained():
    base = kept(weights(WIDE), "all", WIDE)
    module = initial_model(base.name, SHAPE, 3, seed=1)
    for path, values in weights(WIDE).items():
        assert torch.equal(dict(module.named_parameters())[path], values)
    assert all(values.requires_grad for values in module.parameters())
    assert Layout.of(module) == Layout.of(build_model(WIDE, SHAPE, 3))


def test_a_last_layer_for_other_labels_begins_fresh():
    base = kept(weights(WIDE, outputs=3), "all", WIDE)
    own = dict(initial_model(base.name, SHAPE, 7, seed=1).named_parameters())
    fresh = dict(initial_model(WIDE, SHAPE, 7, seed=1).named_parameters())
    assert torch.equal(own["4.weight"], fresh["4.weight"])
    assert torch.equal(own["4.bias"], fresh["4.bias"])
    assert torch.equal(own["0.weight"], weights(WIDE)["0.weight"])


def test_of_a_head_alone_the_rest_is_frozen_and_the_same_on_each_side():
    base = kept(weights(WIDE), "head", WIDE)
    at_server, at_site = initial_model(base.name, SHAPE, 3, 1), build_model(base.name, SHAPE, 3)
    trained = [path for path, values in at_site.named_parameters() if values.requires_grad]
    assert trained == ["4.weight", "4.bias"]
    for module in (at_server, at_site):
        for path, values in weights(WIDE).items():
            if path not in trained:
                assert torch.equal(dict(module.named_parameters())[path], values)
    layout = Layout.of(at_site)
    assert layout == Layout.of(at_server)
    assert layout.size == 4 * 3 + 3
    fresh = dict(initial_model(WIDE, SHAPE, 3, seed=1).named_parameters())["4.weight"]
    assert torch.equal(dict(at_server.named_parameters())["4.weight"], fresh)
    other = kept({path: values + 1 for path, values in weights(WIDE).items()}, "head", WIDE)
    assert Layout.of(build_model(other.name, SHAPE, 3)).digest != layout.digest


def test_adapters_begin_fresh_on_a_base_that_was_trained_without():
    base = kept(weights("transformer", 2, shape=(6,)), "lora", "transformer_lora")
    module = initial_model(base.name, (6,), 2, seed=1)
    own, before = dict(module.named_parameters()), weights("transformer", 2, shape=(6,))
    for path, values in before.items():
        assert torch.equal(own[path], values)
        assert own[path].requires_grad == path.startswith("head.")
    assert all(own[path].requires_grad for path in own.keys() - before.keys())
    assert float(own["blocks.0.query_adapter.up.weight"].detach().abs().max()) == 0
    drawn = build_model("transformer_lora", (6,), 2)
    assert Layout.of(drawn).digest != Layout.of(module).digest
    assert Layout.of(drawn).names == Layout.of(module).names


def test_where_all_is_trained_only_who_begins_the_run_needs_the_file():
    name = Based("0" * 64, "all", WIDE).name
    assert Layout.of(build_model(name, SHAPE, 3)) == Layout.of(build_model(WIDE, SHAPE, 3))
    with pytest.raises(BaseMissing, match="lepton site model base"):
        initial_model(name, SHAPE, 3, seed=1)
    frozen = Based("0" * 64, "head", WIDE)
    with pytest.raises(BaseMissing):
        build_model(frozen.name, SHAPE, 3)


def test_whether_it_is_here_is_known_without_reading_it(place):
    base = kept(weights(WIDE), "head", WIDE)
    check_kept(base, place)
    with pytest.raises(BaseMissing):
        check_kept(base, place / "elsewhere")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda t: t | {"0.weight": torch.zeros(6, 9)},
            r"0\.weight has shape \(6, 9\), .*\(6, 5\)",
        ),
        (lambda t: t | {"9.weight": torch.zeros(2)}, r"it has 9\.weight of shape \(2,\), .* none"),
        (lambda t: {p: v for p, v in t.items() if p != "2.bias"}, r"lacks 2\.bias, which stays"),
        (lambda t: {f"x.{p}": v for p, v in t.items()}, r"x\.0\.bias of shape .* and 8 more"),
    ],
)
def test_what_does_not_fit_is_named(change, said):
    base = kept(change(weights(WIDE)), "head", WIDE)
    with pytest.raises(BaseMisfit, match=said):
        build_model(base.name, SHAPE, 3)


def test_a_base_without_any_weight_is_none():
    base = kept({}, "all", WIDE)
    with pytest.raises(BaseMisfit, match="none of the model's weights"):
        initial_model(base.name, SHAPE, 3, seed=1)


@pytest.mark.parametrize(
    ("learns", "model"),
    [("head", "logistic"), ("lora", WIDE), ("all", "transformer_lora")],
)
def test_what_there_is_to_freeze_decides_how_a_model_may_learn(learns, model):
    base = kept(weights(model, 2), learns, model)
    with pytest.raises(BaseMisfit, match=f"learn={learns} does not suit"):
        initial_model(base.name, SHAPE, 2, seed=1)


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"a": torch.tensor([1.0, float("nan")])}, "not finite"),
        ({"a": torch.tensor([1.0, -101.0])}, "beyond 100"),
        ({"a": torch.zeros(2, dtype=torch.float64)}, "convert it to float32"),
        ({"a": torch.zeros(2, dtype=torch.bfloat16)}, "convert it to float32"),
    ],
)
def test_weights_that_would_tell_too_much_or_are_no_float32_are_refused(tensors, said):
    with pytest.raises(BaseUnreadable, match=said):
        keep_base(save(tensors))


def test_only_safetensors_are_read(tmp_path):
    torch.save({"a": torch.zeros(2)}, tmp_path / "model.pt")
    data = save({"a": torch.zeros(2)})
    for wrong in (b"", b"junk", (tmp_path / "model.pt").read_bytes(), data[:-1], data + b"x"):
        with pytest.raises(BaseUnreadable, match="safetensors"):
            keep_base(wrong)


def test_a_base_under_the_name_of_another_is_refused(place):
    base = kept(weights(WIDE), "head", WIDE)
    path = place / f"{base.sha256}.safetensors"
    path.chmod(0o644)
    path.write_bytes(save({name: values + 1 for name, values in weights(WIDE).items()}))
    with pytest.raises(BaseUnreadable, match="other bytes"):
        build_model(base.name, SHAPE, 3)
    again = keep_base(save(weights(WIDE)))
    assert hashlib.sha256(again.read_bytes()).hexdigest() == base.sha256
    build_model(base.name, SHAPE, 3)


def test_a_name_says_the_base_and_the_model():
    name = f"from.{'a' * 64}.head.layers.linear4-relu"
    assert based(name) == Based("a" * 64, "head", "layers.linear4-relu")
    assert (based(name).name, without_base(name)) == (name, "layers.linear4-relu")
    assert (based("cnn"), without_base("cnn")) == (None, "cnn")
    assert model_fault(name) is None
    assert "no layer" in model_fault(f"from.{'a' * 64}.head.layers.linear4-what")
    for wrong in ("from.cnn", f"from.{'a' * 63}.head.cnn", f"from.{'a' * 64}.most.cnn",
                  f"from.{'a' * 64}.all.from.{'a' * 64}.all.cnn"):  # fmt: skip
        assert "start=FILE" in model_fault(wrong)


def test_a_policy_that_names_a_model_means_it_with_any_base(setting_values, make_settings):
    policy = make_settings().policy
    name = f"from.{'a' * 64}.head.cnn"
    assert replace(policy, models=["cnn"]).trains(name)
    assert replace(policy, models=[name]).trains(name)
    assert not replace(policy, models=[name]).trains(f"from.{'b' * 64}.head.cnn")
    assert not replace(policy, models=["mlp"]).trains(name)
    assert not replace(policy, models=[name]).trains("cnn")
