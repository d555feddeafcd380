"""RandomResizedCrop (Szegedy et al., 2015): a box of random area and aspect ratio, resized to the output size."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from hf_reinforce import images, schema
from hf_reinforce.augmentations.base import (
    Params,
    Stage,
    ViewAugmentation,
    check_interpolation,
    check_range,
    check_size,
    uniform,
)


@dataclass(frozen=True)
class RandomResizedCrop(ViewAugmentation):
    """A random box of the source image, resized to `size` x `size`; the distribution is torchvision's.

    Args:
        size: output side in pixels.
        scale: area of the box as a share of the image's, ascending, in (0, 1].
        ratio: width / height of the box, ascending, > 0.
        interpolation: `"bilinear"` or `"bicubic"`, antialiased.
    """

    size: int = 224
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    interpolation: str = "bilinear"

    name: ClassVar[str] = "random_resized_crop"
    field: ClassVar[str | None] = schema.CROP
    stage: ClassVar[Stage] = "crop"

    def __post_init__(self) -> None:
        check_size(self.name, self.size)
        check_interpolation(self.name, self.interpolation)
        check_range(self.name, "scale", self.scale, 0.0, 1.0)
        check_range(self.name, "ratio", self.ratio, 0.0, math.inf)

    @property
    def feature(self) -> Any:
        return schema.BOX

    def sample(self, rng: np.random.Generator, height: int, width: int) -> Params | None:
        for _ in range(10):
            area = height * width * uniform(rng, *self.scale)
            ratio = math.exp(uniform(rng, math.log(self.ratio[0]), math.log(self.ratio[1])))
            box_width, box_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < box_width <= width and 0 < box_height <= height:
                top = int(rng.integers(0, height - box_height + 1))
                left = int(rng.integers(0, width - box_width + 1))
                return {"top": top, "left": left, "height": box_height, "width": box_width}
        return self._central_box(height, width)

    def _central_box(self, height: int, width: int) -> images.Box:
        """The largest central box whose ratio is in range, for images too narrow for ten tries."""
        ratio = width / height
        box_height, box_width = height, width
        if ratio < self.ratio[0]:
            box_height = max(1, round(width / self.ratio[0]))
        elif ratio > self.ratio[1]:
            box_width = max(1, round(height * self.ratio[1]))
        return {
            "top": (height - box_height) // 2,
            "left": (width - box_width) // 2,
            "height": box_height,
            "width": box_width,
        }

    def apply(self, image: Tensor, params: Params, scale: float = 1.0) -> Tensor:
        side = round(self.size * scale)
        return images.resize(images.crop(image, params), side, side, self.interpolation)
