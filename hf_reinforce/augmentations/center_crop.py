"""CenterCrop: the crop of evaluation policies."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from hf_reinforce.augmentations.base import Crop, Params


def central_offset(length: int, side: int) -> int:
    """Where the central `side` of `length` pixels begins; rounds and pads as torchvision's `CenterCrop`."""
    return -((side - length) // 2) if length < side else round((length - side) / 2)


@dataclass(frozen=True)
class CenterCrop(Crop):
    """The central `size` x `size` box; black where the image is smaller. Rounds as torchvision's `CenterCrop`.

    Args:
        size: side of the box in pixels.
    """

    name: ClassVar[str] = "center_crop"

    def sample(self, rng: np.random.Generator, height: int, width: int) -> Params | None:
        top, left = (central_offset(length, self.size) for length in (height, width))
        return {"top": top, "left": left, "height": self.size, "width": self.size}

    def describe(self) -> str:
        return f"central crop of {self.size} x {self.size} pixels"
