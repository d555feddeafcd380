"""RandomErasing (Zhong et al., 2017): a random box is painted black."""

import math
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
    Stage,
    ViewAugmentation,
    area,
    chance,
    check_probability,
    check_range,
    in_percent,
    ranges,
    uniform,
    valid,
)


@dataclass(frozen=True)
class RandomErasing(ViewAugmentation):
    """Paints a box of random area and aspect ratio black, before normalisation; the distribution is torchvision's.

    Args:
        p: probability that a box is erased.
        scale: area of the box as a share of the view's, ascending, in (0, 1].
        ratio: height / width of the box, ascending, > 0.
    """

    p: float = 0.25
    scale: tuple[float, float] = (0.02, 0.33)
    ratio: tuple[float, float] = (0.3, 3.3)

    name: ClassVar[str] = "random_erasing"
    field: ClassVar[str] = "erase"
    stage: ClassVar[Stage] = "image"

    def __post_init__(self) -> None:
        check_probability(self.name, self.p)
        check_range(self.name, "scale", self.scale, 0.0, 1.0)
        check_range(self.name, "ratio", self.ratio, 0.0, math.inf)

    @property
    def feature(self) -> Any:
        return schema.BOX

    def sample(self, rng: np.random.Generator, height: int, width: int) -> Params | None:
        if rng.random() >= self.p:
            return None
        for _ in range(10):
            area = height * width * uniform(rng, *self.scale)
            ratio = math.exp(uniform(rng, math.log(self.ratio[0]), math.log(self.ratio[1])))
            box_height, box_width = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < box_height < height and 0 < box_width < width:
                top = int(rng.integers(0, height - box_height + 1))
                left = int(rng.integers(0, width - box_width + 1))
                return {"top": top, "left": left, "height": box_height, "width": box_width}
        return None

    def apply(self, image: Tensor, params: Params, scale: float = 1.0) -> Tensor:
        box = images.scale_box(params, scale)
        erased = image.clone()
        erased[:, box["top"] : box["top"] + box["height"], box["left"] : box["left"] + box["width"]] = 0
        return erased

    def describe(self) -> str:
        span = f"{in_percent(self.scale[0])} to {in_percent(self.scale[1])}"
        return f"RandomErasing: a box of {span} of the view becomes black{chance(self.p)}"

    def bins(self, params: pa.Array, size: int) -> Iterator[Bin]:
        return ranges("erasing", "of the view", valid(params), area(params) / size**2, 0.1, 0.2)
