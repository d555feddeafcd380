"""The common corruptions of ImageNet-C (Hendrycks and Dietterich, ICLR 2019), made while images are read.

The package imagecorruptions-imaug computes them. What differs from the published images is in docs/evaluation.md.
"""

from collections.abc import Mapping
from functools import cache
from importlib import import_module
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hf_reinforce.augmentations.policies import AugmentationPolicy
from hf_reinforce.evaluation.results import Corruption
from hf_reinforce.metrics import ALEXNET_ERRORS
from hf_reinforce.randomness import hash_uniform
from hf_reinforce.replay.views import AugmentedDataset
from hf_reinforce.sources.image_source import ImageSource

CORRUPTIONS = tuple(ALEXNET_ERRORS)
"""The 15 corruptions that count for the mean corruption error."""

SEVERITIES = (1, 2, 3, 4, 5)
SMALLEST = 32

_OWN_GENERATOR = ("impulse_noise", "glass_blur")  # these two take a seed; the others use NumPy's global generator


def corrupt(image: Tensor, corruption: Corruption, seed: int, row: int) -> Tensor:
    """A corrupted image, uint8 [3, H, W] in channels-last memory; a function of the arguments alone.

    `row` is that of the image in its dataset, which has both sides of at least 32 pixels.
    """
    if min(image.shape[-2:]) < SMALLEST:
        raise ValueError(
            f"Corruptions need images of at least {SMALLEST} pixels, not {min(image.shape[-2:])}; pass image_size "
            f"(--image_size) {SMALLEST} or more."
        )
    place = CORRUPTIONS.index(corruption.name)
    drawn = int(hash_uniform(seed, row, place, corruption.severity)[0] % np.uint64(2**32))
    options = {"seed": drawn} if corruption.name in _OWN_GENERATOR else {}
    library, state = _library(), np.random.get_state()
    np.random.seed(drawn)
    try:
        pixels = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
        corrupted = library.corrupt(pixels, corruption.severity, corruption.name, **options)
    finally:
        np.random.set_state(state)
    return torch.from_numpy(np.array(corrupted)).permute(2, 0, 1)


@cache
def _library() -> Any:
    try:
        cv2, library = import_module("cv2"), import_module("imagecorruptions")
    except ImportError as error:
        raise ValueError(
            f"Corruptions need the package imagecorruptions-imaug ({error}); pip install 'hf-reinforce[robustness]'."
        ) from error
    cv2.setNumThreads(0)  # the loader's workers are the threads, and OpenCV's own do not survive a fork
    return library


class CorruptedDataset(AugmentedDataset):
    """The views of evaluation with a corruption on top, made where the images are decoded: in the loader's workers.

    `rows`, int [N], are those of the images in their dataset, which the seed goes with.
    """

    def __init__(
        self,
        source: ImageSource,
        policy: AugmentationPolicy,
        corruption: Corruption,
        rows: NDArray[np.int64],
        seed: int = 0,
    ) -> None:
        super().__init__(source, policy, seed=seed)
        self.corruption, self._rows = corruption, rows
        # Before workers are forked: they inherit what is compiled, and a mistake shows at once.
        corrupt(torch.zeros(3, policy.image_size, policy.image_size, dtype=torch.uint8), corruption, seed, 0)

    def pixels(self, position: int, params: Mapping[str, Any]) -> Tensor:
        """The corrupted view, uint8 [3, S, S]."""
        return corrupt(super().pixels(position, params), self.corruption, self.seed, self.row(position))

    def row(self, position: int) -> int:
        """The row of the dataset."""
        return int(self._rows[position])
