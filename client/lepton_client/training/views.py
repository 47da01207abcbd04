"""Several augmented views of each record, whose gradients are averaged before they are clipped.

De et al. (2022) call it augmentation multiplicity: the clipped gradient of a record is less noisy
for it, and costs no privacy, because the views are functions of one record and random numbers.
"""

import numpy as np
import torch
from torch.nn import functional

from lepton_common.messages import Recipe
from lepton_common.privacy.noise import SecretRandom
from lepton_common.tasks.catalog import Task


class Views:
    """Makes views of images: shifted by up to some pixels, and mirrored where that makes sense.

    Attributes:
        count: views of each record.
    """

    def __init__(self, task: Task, recipe: Recipe, secret: SecretRandom) -> None:
        """Takes what suits the task; records that are no images have one view, themselves."""
        self.count = recipe.augmentations
        self._shift, self._mirror = task.shift, task.mirror
        # Not PyTorch's generator, which reads 32 bits of its seed: few enough to try them all.
        self._secret = secret

    def of(self, features: torch.Tensor) -> torch.Tensor:
        """Returns the views of each record one after another.

        Args:
            features: shape [n, channels, height, width].

        Returns:
            Shape [n * count, channels, height, width].
        """
        images = features.repeat_interleave(self.count, dim=0)
        if self._mirror:
            turned = self._numbers(2, len(images)).to(images.device) == 1
            images = torch.where(turned.view(-1, 1, 1, 1), images.flip(3), images)
        if self._shift:
            images = self._shifted(images)
        return images

    def _shifted(self, images: torch.Tensor) -> torch.Tensor:
        count, _, height, width = images.shape
        padded = functional.pad(images, [self._shift] * 4, mode="replicate")
        moves = self._numbers(2 * self._shift + 1, 2 * count).view(2, count, 1)
        down, right = moves.to(images.device)
        rows = down + torch.arange(height, device=images.device)
        columns = right + torch.arange(width, device=images.device)
        each = torch.arange(count, device=images.device).view(-1, 1, 1)
        # Advanced indices around the channels put these last.
        return padded[each, :, rows.unsqueeze(2), columns.unsqueeze(1)].permute(0, 3, 1, 2)

    def _numbers(self, below: int, count: int) -> torch.Tensor:
        drawn = self._secret.words(count) % np.uint64(below)
        return torch.from_numpy(drawn.astype(np.int64))
