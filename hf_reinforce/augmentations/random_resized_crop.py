"""RandomResizedCrop (Szegedy et al., 2015): a box of random area and aspect ratio, resized to the output size."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pyarrow as pa
from torch import Tensor

from hf_reinforce import images
from hf_reinforce.augmentations.base import (
    Bin,
    Crop,
    Params,
    area,
    check_interpolation,
    check_range,
    check_size,
    in_fractions,
    in_percent,
    uniform,
)

_STEPS = range(-3, 4)  # sides of a crop, in factors of sqrt(2) of the view's side


@dataclass(frozen=True)
class RandomResizedCrop(Crop):
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

    def __post_init__(self) -> None:
        check_size(self.name, self.size)
        check_interpolation(self.name, self.interpolation)
        check_range(self.name, "scale", self.scale, 0.0, 1.0)
        check_range(self.name, "ratio", self.ratio, 0.0, math.inf)

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

    def describe(self) -> str:
        return (
            f"random crop of {in_percent(self.scale[0])} to {in_percent(self.scale[1])} of the area, aspect ratio "
            f"{in_fractions(self.ratio[0])} to {in_fractions(self.ratio[1])}, resized to {self.size} x {self.size} "
            f"pixels ({self.interpolation})"
        )

    def bins(self, params: pa.Array, size: int) -> Iterator[Bin]:
        side = np.sqrt(np.maximum(area(params), 1))
        steps = np.clip(np.floor(2 * np.log2(side / size)), _STEPS[0], _STEPS[-1])
        for step in _STEPS:
            low, high = (size * 2 ** (edge / 2) for edge in (step, step + 1))
            words = f"{low:.0f} to {high:.0f} px"
            if step in (_STEPS[0], _STEPS[-1]):
                words = f"below {high:.0f} px" if step < 0 else f"above {low:.0f} px"
            yield "crop, side", words, np.equal(steps, step)
