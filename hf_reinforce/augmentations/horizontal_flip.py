"""Horizontal flip."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from datasets import Value
from torch import Tensor

from hf_reinforce.augmentations.base import Params, Probability, ViewAugmentation, chance


@dataclass(frozen=True)
class HorizontalFlip(ViewAugmentation):
    """Mirrors the image left to right with probability p.

    Args:
        p: probability of the flip.
    """

    p: Probability = 0.5

    name: ClassVar[str] = "horizontal_flip"
    field: ClassVar[str] = "hflip"
    stored: ClassVar[Any] = Value("bool")

    def sample(self, rng: np.random.Generator, height: int, width: int) -> Params | None:
        return bool(rng.random() < self.p)

    def apply(self, image: Tensor, params: Params, scale: float = 1.0) -> Tensor:
        return image.flip(-1) if params else image

    def describe(self) -> str:
        return f"mirrored left to right{chance(self.p)}"

    def caption(self, params: Params) -> str:
        return "hflip" if params else ""
