"""What may be done to a record without changing its label, by the kind of data.

Each view is a function of one record and of random numbers, so that private training may average
the gradients of several (augmentation multiplicity, De et al. 2022) at no cost. Random numbers
come from whoever trains: secret ones with privacy, seeded ones for tests and without it.
`mix` alone makes a record of two, and is for training without privacy by record.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch


class Draws(Protocol):
    """Where random numbers come from: `lepton_common.privacy.noise.SecretRandom`, or `Seeded`."""

    def words(self, count: int) -> NDArray[np.uint64]:
        """Returns ``count`` uniform 64-bit words."""
        ...


class Seeded:
    """Random numbers by a public seed: for training without privacy, and for tests."""

    def __init__(self, seed: int) -> None:
        """Takes the seed."""
        self._generator = np.random.default_rng(seed)

    def words(self, count: int) -> NDArray[np.uint64]:
        """Returns ``count`` uniform 64-bit words."""
        return self._generator.integers(0, 2**64 - 1, count, np.uint64, endpoint=True)


@dataclass(frozen=True)
class Augmentation(ABC):
    """One way to vary records of one kind of data."""

    def views(self, batch: "torch.Tensor", count: int, generator: Draws) -> "torch.Tensor":
        """Returns views of each record one after another, shape [n * count, ...].

        Args:
            batch: float32, shape [n, ...].
            count: views of each record.
            generator: of the random numbers.
        """
        return self._varied(batch.repeat_interleave(count, dim=0), generator)

    @abstractmethod
    def _varied(self, records: "torch.Tensor", generator: Draws) -> "torch.Tensor":
        """Returns each record varied by itself, in the same shape."""


@dataclass(frozen=True)
class AsTheyAre(Augmentation):
    """No way is known to vary a record: all views are the record itself."""

    def _varied(self, records: "torch.Tensor", generator: Draws) -> "torch.Tensor":
        return records


@dataclass(frozen=True)
class OfImages(Augmentation):
    """Images, shape [n, channels, height, width].

    Attributes:
        shift: by up to how many pixels an image is moved and cropped, its edges repeated.
        mirror: whether left and right may change places.
        cutout: pixels a side of a square that is greyed out, wholly inside (DeVries and Taylor
            2017); 0: none.
    """

    shift: int = 0
    mirror: bool = False
    cutout: int = 0

    def _varied(self, records: "torch.Tensor", generator: Draws) -> "torch.Tensor":
        import torch

        if self.mirror:
            turned = _numbers(generator, 2, len(records)).to(records.device) == 1
            records = torch.where(turned.view(-1, 1, 1, 1), records.flip(3), records)
        if self.shift:
            records = self._shifted(records, generator)
        if self.cutout:
            height, width = records.shape[2:]
            down = _span(generator, len(records), height, self.cutout).to(records.device)
            right = _span(generator, len(records), width, self.cutout).to(records.device)
            hole = down[:, None, :, None] & right[:, None, None, :]
            records = records.masked_fill(hole, 0.0)
        return records

    def _shifted(self, images: "torch.Tensor", generator: Draws) -> "torch.Tensor":
        import torch
        from torch.nn import functional

        count, _, height, width = images.shape
        padded = functional.pad(images, [self.shift] * 4, mode="replicate")
        moves = _numbers(generator, 2 * self.shift + 1, 2 * count).view(2, count, 1)
        down, right = moves.to(images.device)
        rows = down + torch.arange(height, device=images.device)
        columns = right + torch.arange(width, device=images.device)
        each = torch.arange(count, device=images.device).view(-1, 1, 1)
        # Advanced indices around the channels put these last.
        return padded[each, :, rows.unsqueeze(2), columns.unsqueeze(1)].permute(0, 3, 1, 2)


@dataclass(frozen=True)
class OfSeries(Augmentation):
    """Series of measurements, shape [n, time, channels].

    Attributes:
        jitter: deviation of the noise that is added to every value.
        warp: by how much of its length a series is at most ahead of or behind its time, most in
            the middle, not at all at its ends; below 1 / pi, so that time never runs back.
    """

    jitter: float = 0.0
    warp: float = 0.0

    def _varied(self, records: "torch.Tensor", generator: Draws) -> "torch.Tensor":
        import torch

        if self.warp:
            count, steps, _ = records.shape
            through = torch.linspace(0, 1, steps, device=records.device)
            strength = (2 * _fractions(generator, count) - 1).to(records) * self.warp
            at = through + strength[:, None] * torch.sin(torch.pi * through)
            at = at.clamp(0, 1) * (steps - 1)
            before = at.long().clamp(max=max(steps - 2, 0))
            share = (at - before).unsqueeze(2)
            each = torch.arange(count, device=records.device).unsqueeze(1)
            after = (before + 1).clamp(max=steps - 1)
            records = records[each, before] * (1 - share) + records[each, after] * share
        if self.jitter:
            drawn = 2 * _fractions(generator, records.numel()) - 1
            noise = torch.erfinv(drawn) * (2**0.5 * self.jitter)
            records = records + noise.to(records).view_as(records)
        return records


@dataclass(frozen=True)
class OfSounds(Augmentation):
    """Sounds, shape [n, samples]: some of their spectrogram is left out (Park et al. 2019).

    Attributes:
        times: share of the samples that are silenced, in one piece.
        bands: share of the frequencies that are taken out, in one piece.
    """

    times: float = 0.0
    bands: float = 0.0

    def _varied(self, records: "torch.Tensor", generator: Draws) -> "torch.Tensor":
        import torch

        count, samples = records.shape
        if self.bands:
            spectra = torch.fft.rfft(records)
            wide = int(self.bands * spectra.shape[1])
            out = _span(generator, count, spectra.shape[1], wide).to(records.device)
            records = torch.fft.irfft(spectra.masked_fill(out, 0.0), samples)
        if self.times:
            out = _span(generator, count, samples, int(self.times * samples)).to(records.device)
            records = records.masked_fill(out, 0.0)
        return records


@dataclass(frozen=True)
class OfTexts(Augmentation):
    """Texts as tokens, shape [n, length].

    Attributes:
        dropout: share of the tokens that are replaced by padding, each by itself.
    """

    dropout: float = 0.0

    def _varied(self, records: "torch.Tensor", generator: Draws) -> "torch.Tensor":
        drawn = _fractions(generator, records.numel()).view_as(records).to(records.device)
        return records.masked_fill(drawn < self.dropout, 0.0)


class Mixed(NamedTuple):
    """Records, each mixed with another one.

    Attributes:
        features: as they were given, mixed.
        partners: row number of the other one, int64, shape [n].
        shares: how much of a record is its own, from 0 to 1, float32, shape [n].
    """

    features: "torch.Tensor"
    partners: "torch.Tensor"
    shares: "torch.Tensor"


def mix(records: "torch.Tensor", alpha: float, generator: np.random.Generator) -> Mixed:
    """Mixes each record of a batch with another of it, or itself (mixup, Zhang et al. 2018).

    Args:
        records: float32, shape [n, ...].
        alpha: shares are drawn from Beta(alpha, alpha): the smaller, the less is mixed.
        generator: of the pairs, and of the shares.
    """
    import torch

    drawn = generator.beta(alpha, alpha, len(records)).astype(np.float32)
    partners = torch.from_numpy(generator.permutation(len(records))).to(records.device)
    shares = torch.from_numpy(drawn).to(records.device)
    own = shares.view(-1, *[1] * (records.dim() - 1))
    return Mixed(own * records + (1 - own) * records[partners], partners, shares)


def _numbers(generator: Draws, below: int, count: int) -> "torch.Tensor":
    """Returns whole numbers from 0 to ``below`` - 1, int64, shape [count]."""
    import torch

    drawn = generator.words(count) % np.uint64(below)
    return torch.from_numpy(drawn.astype(np.int64))


def _fractions(generator: Draws, count: int) -> "torch.Tensor":
    """Returns numbers strictly between 0 and 1, float64, shape [count]."""
    import torch

    drawn = (generator.words(count) >> np.uint64(12)).astype(np.float64)
    return torch.from_numpy((drawn + 0.5) * 2.0**-52)


def _span(generator: Draws, count: int, length: int, wide: int) -> "torch.Tensor":
    """Returns one run of ``wide`` places in each of ``count`` rows, bool, shape [count, length]."""
    import torch

    wide = min(wide, length)
    start = _numbers(generator, length - wide + 1, count).unsqueeze(1)
    places = torch.arange(length)
    return (places >= start) & (places < start + wide)
