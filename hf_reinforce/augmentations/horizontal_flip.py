"""Horizontal flip."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from datasets import Value
from torch import Tensor

from hf_reinforce.augmentations.base import Bin, Params, Stage, ViewAugmentation, chance, check_probability


@dataclass(frozen=True)
class HorizontalFlip(ViewAugmentation):
    """Mirrors the image left to right with probability p.

    Args:
        p: probability of the flip.
    """

    p: float = 0.5

    name: ClassVar[str] = "horizontal_flip"
    field: ClassVar[str] = "hflip"
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

    def describe(self) -> str:
        return f"mirrored left to right{chance(self.p)}"

    def caption(self, params: Params) -> str:
        return "hflip" if params else ""

    def bins(self, params: pa.Array, size: int) -> Iterator[Bin]:
        flipped = params.fill_null(False).to_numpy(zero_copy_only=False)
        yield "horizontal flip", "no", ~flipped
        yield "horizontal flip", "yes", flipped
