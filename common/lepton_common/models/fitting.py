"""Which records a model of the catalog reads, and what to choose for others."""

from typing import NamedTuple

Shape = tuple[int, ...]


class Reads(NamedTuple):
    """The records that a model is for.

    Attributes:
        what: they are, in words.
        dims: how many dimensions their shape has.
        least: the shortest side of images, or length of others.
    """

    what: str
    dims: int
    least: int

    def fits(self, shape: Shape) -> bool:
        """Says whether records of that shape are such."""
        if len(shape) != self.dims or min(shape) < 1:
            return False
        return (min(shape[1:]) if self.dims == 3 else shape[0]) >= self.least


IMAGES = Reads("images of at least 8x8", 3, 8)
SERIES = Reads("series of shape (time, channels)", 2, 1)
WINDOWS = Reads("series of shape (time, channels), at least 8 steps long", 2, 8)
TOKENS = Reads("texts of shape (tokens,)", 1, 1)
SOUNDS = Reads("sounds of shape (samples,), at least 1024", 1, 1024)

READS: dict[str, Reads] = {
    "cnn": IMAGES,
    "cnn_small": IMAGES,
    "cnn_reference": IMAGES,
    "resnet": IMAGES,
    "lstm": SERIES,
    "gru": SERIES,
    "char_lstm": TOKENS,
    "char_gru": TOKENS,
    "cnn1d": WINDOWS,
    "cnn_rnn": WINDOWS,
    "transformer": TOKENS,
    "transformer_lora": TOKENS,
    "word_bag": TOKENS,
    "movements": SERIES,
    "audio_cnn": SOUNDS,
}
"""By model; those that are not here read any records."""

_BETTER = {3: ("cnn_small", IMAGES), 2: ("gru", SERIES)}


def misfit(model: str, shape: Shape) -> str | None:
    """Returns why a model is not for records of a shape, and which is; None where it is."""
    reads = READS.get(model)
    if reads is None or reads.fits(shape):
        return None
    better, kind = _BETTER.get(len(shape), ("", IMAGES))
    words = [f"model={better}"] if better and kind.fits(shape) else []
    words += ["model=mlp", "model=logistic"]
    return (
        f"model={model} needs {reads.what}, not records of shape {shape}; "
        f"choose {', '.join(words[:-1])} or {words[-1]}."
    )
