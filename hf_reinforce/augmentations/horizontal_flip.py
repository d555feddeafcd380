"""Horizontal flip."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from datasets import Value
from numpy.typing import NDArray
from torch import Tensor

from hf_reinforce import schema
from hf_reinforce.augmentations import batched
from hf_reinforce.augmentations.base import Params, Stage, ViewAugmentation, check_probability


@dataclass(frozen=True)
class HorizontalFlip(ViewAugmentation):
    """Mirrors the image left to right with probability p.

    Args:
        p: probability of the flip.
    """

    p: float = 0.5

    name: ClassVar[str] = "horizontal_flip"
    field: ClassVar[str | None] = schema.HFLIP
    stage: ClassVar[Stage] = "image"

    def __post_init__(self) -> None:
        check_probability(self.name, self.p)

    @property
    def feature(self) -> Any:
        return Value("bool")

    def sample(self, rng: np.random.Generator, height: int, width: int) -> Params | None:
        return bool(rng.random() < self.p)

    def apply(self, image: Tensor, params: Params, scale: float = 1.0) -> Tensor:
        return image.flip(-1) if params else image

    def collate(self, params: Sequence[Params | None]) -> NDArray[Any]:
        return np.array([bool(item) for item in params])

    def apply_batch(self, images: Tensor, params: NDArray[Any]) -> Tensor:
        return batched.flip(images, torch.from_numpy(params).to(images.device))
