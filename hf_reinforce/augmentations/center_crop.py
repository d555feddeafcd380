"""CenterCrop: the crop of evaluation policies."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from torch import Tensor

from hf_reinforce import images
from hf_reinforce.augmentations.base import Crop, Params, check_size


@dataclass(frozen=True)
class CenterCrop(Crop):
    """The central `size` x `size` box; black where the image is smaller. Rounds as torchvision's `CenterCrop`.

    Args:
        size: side of the box in pixels.
    """

    name: ClassVar[str] = "center_crop"

    def __post_init__(self) -> None:
        check_size(self.name, self.size)

    def sample(self, rng: np.random.Generator, height: int, width: int) -> Params | None:
        return {
            "top": self._offset(height),
            "left": self._offset(width),
            "height": self.size,
            "width": self.size,
        }

    def describe(self) -> str:
        return f"central crop of {self.size} x {self.size} pixels"

    def _offset(self, side: int) -> int:
        if side < self.size:  # torchvision pads floor(missing / 2) in front
            return -((self.size - side) // 2)
        return round((side - self.size) / 2.0)

    def apply(self, image: Tensor, params: Params, scale: float = 1.0) -> Tensor:
        side = round(self.size * scale)
        return images.resize(images.crop(image, params), side, side)
