"""RandomErasing (Zhong et al., 2017): a random box is painted black."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from torch import Tensor

from hf_reinforce import images, schema
from hf_reinforce.augmentations.base import (
    Bin,
    Params,
    Probability,
    Ratios,
    Shares,
    ViewAugmentation,
    area,
    chance,
    in_percent,
    placed,
    random_sides,
    ranges,
)


@dataclass(frozen=True)
class RandomErasing(ViewAugmentation):
    """Paints a box of random area and aspect ratio black, before normalisation; the distribution is torchvision's.

    Args:
        p: probability that a box is erased.
        scale: area of the box as a share of the view's, ascending, in (0, 1].
        ratio: height / width of the box, ascending, > 0.
    """

    p: Probability = 0.25
    scale: Shares = (0.02, 0.33)
    ratio: Ratios = (0.3, 3.3)

    name: ClassVar[str] = "random_erasing"
    field: ClassVar[str] = "erase"
    stored: ClassVar[Any] = schema.BOX

    def sample(self, rng: np.random.Generator, height: int, width: int) -> Params | None:
        if rng.random() >= self.p:
            return None
        for _ in range(10):
            box_height, box_width = random_sides(rng, height * width, self.scale, self.ratio)
            if 0 < box_height < height and 0 < box_width < width:
                return placed(rng, height, width, box_height, box_width)
        return None

    def apply(self, image: Tensor, params: Params, scale: float = 1.0) -> Tensor:
        box = images.scale_box(params, scale)
        erased = image.clone()
        erased[:, box["top"] : box["top"] + box["height"], box["left"] : box["left"] + box["width"]] = 0
        return erased

    def describe(self) -> str:
        return f"RandomErasing: a box of {in_percent(self.scale)} of the view becomes black{chance(self.p)}"

    def bins(self, params: pa.Array, size: int) -> Iterator[Bin]:
        return ranges("erasing", "of the view", params, area(params) / size**2, 0.1, 0.2)
