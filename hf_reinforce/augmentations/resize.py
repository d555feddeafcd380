"""Resize: a deterministic step before the crop, for policies whose crop works on resized pixels."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from hf_reinforce import images
from hf_reinforce.augmentations.base import Params, Stage, ViewAugmentation, check_interpolation, check_size


@dataclass(frozen=True)
class Resize(ViewAugmentation):
    """Resizes the shorter side, keeping the aspect ratio, as torchvision's `Resize(size)`.

    Args:
        size: shorter side in pixels.
        interpolation: `"bilinear"` or `"bicubic"`, antialiased.
    """

    size: int = 224
    interpolation: str = "bilinear"

    name: ClassVar[str] = "resize"
    field: ClassVar[str | None] = None
    stage: ClassVar[Stage] = "resize"

    def __post_init__(self) -> None:
        check_size(self.name, self.size)
        check_interpolation(self.name, self.interpolation)

    @property
    def feature(self) -> Any:
        return None

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width after the resize."""
        if height <= width:
            return self.size, int(self.size * width / height)
        return int(self.size * height / width), self.size

    def sample(self, rng: np.random.Generator, height: int, width: int) -> Params | None:
        return None

    def describe(self) -> str:
        return f"resize the shorter side to {self.size} pixels ({self.interpolation})"

    def apply(self, image: Tensor, params: Params, scale: float = 1.0) -> Tensor:
        return images.resize(image, *self.output_size(image.shape[1], image.shape[2]), self.interpolation)
