"""The catalog of models: name -> builder."""

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING

from lepton_common.errors import SettingsError
from lepton_common.models import bases, packaged, tree_form
from lepton_common.models.fitting import misfit
from lepton_common.models.layers import PREFIX, build_layers, fault_in
from lepton_common.names import look_up, unknown

if TYPE_CHECKING:
    from torch import nn

Shape = tuple[int, ...]
Builder = Callable[[Shape, int], "nn.Module"]


def _of(module: str, name: str) -> Builder:
    """Returns a builder whose module, and with it PyTorch, is imported once it builds."""

    def build(input_shape: Shape, outputs: int) -> "nn.Module":
        found: Builder = getattr(import_module(f"lepton_common.models.{module}"), name)
        return found(input_shape, outputs)

    return build


MODELS: dict[str, Builder] = {
    "logistic": _of("linear", "logistic"),
    "mlp": _of("mlp", "mlp"),
    "cnn": _of("cnn", "cnn"),
    "cnn_small": _of("cnn", "cnn_small"),
    "cnn_reference": _of("cnn", "cnn_reference"),
    "resnet": _of("resnet", "resnet"),
    "lstm": _of("recurrent", "lstm"),
    "gru": _of("recurrent", "gru"),
    "char_lstm": _of("recurrent", "char_lstm"),
    "char_gru": _of("recurrent", "char_gru"),
    "cnn1d": _of("series", "cnn1d"),
    "cnn_rnn": _of("series", "cnn_rnn"),
    "transformer": _of("transformer", "transformer"),
    "transformer_lora": _of("transformer", "transformer_lora"),
    "word_bag": _of("fixed", "word_bag"),
    "movements": _of("fixed", "movements"),
    "autoencoder": _of("autoencoder", "autoencoder"),
    "audio_cnn": _of("audio", "audio_cnn"),
}


def model_fault(name: str) -> str | None:
    """Returns why there is no such model; None where there is one.

    Of a model from a package this says only whether it is named rightly: whether it is here, and
    may be used, is known where it is built.
    """
    if name.startswith(bases.PREFIX):
        own = bases.without_base(name)
        if own.startswith(tree_form.PREFIX):
            return "Boosted trees begin from nothing: drop start."
        return bases.fault_in(name) or model_fault(own)
    if name.startswith(PREFIX):
        return fault_in(name)
    if name == "layers":
        return "model=layers needs layers, such as layers=[linear64,relu]."
    if name == tree_form.FAMILY:
        return "model=boosted_trees is built from trees.depth, trees.bins and rounds, as numbers."
    if name.startswith(tree_form.PREFIX):
        return tree_form.fault_in(name)
    if name == "wheel":
        return "model=wheel needs the model of an installed package, such as wheel=kidney.unet."
    if name.startswith(packaged.PREFIX):
        return packaged.fault_in(name)
    return None if name in MODELS else unknown("model", name, MODELS)


def build_model(name: str, input_shape: Shape, outputs: int) -> "nn.Module":
    """Returns an uninitialised-by-us model: PyTorch's own initialisation, global generator.

    Batch normalisation, where a builder has it, is replaced; see `replacements`. Of a base there
    is only what stays frozen.

    Args:
        name: a name in the catalog, a list of layers (see `layers`), boosted trees (see
            `tree_form`), a model of a package (see `packaged`), or any but trees that begins from
            a base (see `bases`).
        input_shape: shape of one record, channels first for images.
        outputs: what the task asks of the model: logits, or numbers.

    Raises:
        UnknownName: no such model.
        SettingsError: the model is for other records than these, or the layers do not fit, or
            the model of a package is none or not here, or the base is not here or does not fit.
    """
    if base := bases.based(name):
        return bases.begin(_plain(base.model, input_shape, outputs), base, initial=False)
    return _plain(name, input_shape, outputs)


def _plain(name: str, input_shape: Shape, outputs: int) -> "nn.Module":
    """Returns a model without a base."""
    from lepton_common.models.replacements import replace_batch_norms

    if name.startswith(PREFIX):
        return build_layers(name, input_shape, outputs)
    if name.startswith(tree_form.PREFIX):
        from lepton_common.models.boosted_trees import boosted_trees

        return boosted_trees(name, input_shape, outputs)
    if name.startswith(packaged.PREFIX):
        return replace_batch_norms(_built(name, input_shape, outputs))
    build = look_up(MODELS, name, "model")
    if fault := misfit(name, input_shape):
        raise SettingsError(fault)
    return replace_batch_norms(build(input_shape, outputs))


def _built(name: str, input_shape: Shape, outputs: int) -> "nn.Module":
    from torch import nn

    module: object = packaged.build_of(name)(input_shape, outputs)
    if not isinstance(module, nn.Module):
        raise SettingsError(f"What builds {name} returns no torch.nn.Module; mend the package.")
    return module


def initial_model(name: str, input_shape: Shape, outputs: int, seed: int) -> "nn.Module":
    """Returns the model that a run begins with; the global generator is restored.

    Its weights depend on ``seed`` alone, and on the base where there is one.
    """
    import torch

    base = bases.based(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = _plain(base.model if base else name, input_shape, outputs)
    return bases.begin(module, base, initial=True) if base else module
