"""RandomCrop with padding, the augmentation of small images (He et al., 2015, section 4.2)."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from torch import Tensor

from hf_reinforce import images
from hf_reinforce.augmentations.base import Crop, Params, check_size


@dataclass(frozen=True)
class RandomCrop(Crop):
    """A `size` x `size` box of the image padded with black on every side.

    The box is stored in pixels of the image that the operation sees, so it may lie partly outside. An image that is
    smaller than `size` even with its padding is centred in the box.

    Args:
        size: side of the box in pixels.
        padding: black pixels added on every side.
    """

    size: int = 32
    padding: int = 4

    name: ClassVar[str] = "random_crop"

    def __post_init__(self) -> None:
        check_size(self.name, self.size)
        if not 0 <= self.padding <= self.size:
            raise ValueError(f"{self.name}: padding must lie between 0 and the size, {self.size}, not {self.padding}.")

    def sample(self, rng: np.random.Generator, height: int, width: int) -> Params | None:
        top, left = (self._offset(rng, side) for side in (height, width))
        return {"top": top, "left": left, "height": self.size, "width": self.size}

    def describe(self) -> str:
        return f"random crop of {self.size} x {self.size} pixels, padded with {self.padding} black pixels"

    def _offset(self, rng: np.random.Generator, side: int) -> int:
        room = side + 2 * self.padding - self.size
        return int(rng.integers(0, room + 1)) - self.padding if room >= 0 else (side - self.size) // 2

    def apply(self, image: Tensor, params: Params, scale: float = 1.0) -> Tensor:
        side = round(self.size * scale)
        return images.resize(images.crop(image, params), side, side)
