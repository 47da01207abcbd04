"""Several augmented views of each record, whose gradients are averaged before they are clipped.

De et al. (2022) call it augmentation multiplicity: the clipped gradient of a record is less noisy
for it, and costs no privacy, because the views are functions of one record and random numbers.
"""

import torch

from lepton_common.errors import RecordsMixed
from lepton_common.messages import Recipe
from lepton_common.privacy.noise import SecretRandom
from lepton_common.tasks.catalog import Task


class Views:
    """Makes views of records as the task allows; see `lepton_common.tasks.augmentation`.

    Attributes:
        count: views of each record.
    """

    def __init__(self, task: Task, recipe: Recipe, secret: SecretRandom) -> None:
        """Takes what suits the task.

        Raises:
            RecordsMixed: the recipe mixes records, of which no one's part is bounded then.
        """
        if recipe.mixup:
            raise RecordsMixed(
                "Mixup makes one record of two people's, so that no clipping bounds what one of "
                "them changes; train without it, or with privacy of whole sites."
            )
        self.count = recipe.augmentations
        self._augmentation = task.augmentation
        # Not PyTorch's generator, which reads 32 bits of its seed: few enough to try them all.
        self._secret = secret

    def of(self, features: torch.Tensor) -> torch.Tensor:
        """Returns the views of each record one after another, shape [n * count, ...].

        Args:
            features: shape [n, ...].
        """
        return self._augmentation.views(features, self.count, self._secret)
