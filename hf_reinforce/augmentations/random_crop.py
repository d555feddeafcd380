"""RandomCrop with padding, the augmentation of small images (He et al., 2015, section 4.2)."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np

from hf_reinforce.augmentations.base import Crop, Params, Size, number


@dataclass(frozen=True)
class RandomCrop(Crop):
    """A `size` x `size` box of the image padded with black on every side.

    The box is stored in pixels of the image that the operation sees, so it may lie partly outside. An image that is
    smaller than `size` even with its padding is centred in the box.

    Args:
        size: side of the box in pixels.
        padding: black pixels added on every side, at most `size`.
    """

    size: Size = 32
    padding: Annotated[int, number(0, whole=True)] = 4

    name: ClassVar[str] = "random_crop"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.padding > self.size:
            raise ValueError(f"{self.name}: padding must be at most the size, {self.size}, not {self.padding}.")

    def sample(self, rng: np.random.Generator, height: int, width: int) -> Params | None:
        top, left = (self._offset(rng, length) for length in (height, width))
        return {"top": top, "left": left, "height": self.size, "width": self.size}

    def _offset(self, rng: np.random.Generator, length: int) -> int:
        room = length + 2 * self.padding - self.size
        return int(rng.integers(0, room + 1)) - self.padding if room >= 0 else (length - self.size) // 2

    def describe(self) -> str:
        return f"random crop of {self.size} x {self.size} pixels, padded with {self.padding} black pixels"
