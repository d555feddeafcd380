"""RandomResizedCrop (Szegedy et al., 2015): a box of random area and aspect ratio, resized to the output size."""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

import numpy as np
import pyarrow as pa
from torch import Tensor

from hf_reinforce import images
from hf_reinforce.augmentations.base import (
    Bin,
    Crop,
    Interpolation,
    Params,
    Ratios,
    Shares,
    area,
    in_percent,
    placed,
    random_sides,
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

    scale: Shares = (0.08, 1.0)
    ratio: Ratios = (3 / 4, 4 / 3)
    interpolation: Interpolation = "bilinear"

    name: ClassVar[str] = "random_resized_crop"

    def sample(self, rng: np.random.Generator, height: int, width: int) -> Params | None:
        for _ in range(10):
            box_width, box_height = random_sides(rng, height * width, self.scale, self.ratio)
            if 0 < box_width <= width and 0 < box_height <= height:
                return placed(rng, height, width, box_height, box_width)
        # As torchvision, of images too narrow for ten tries: the largest central box whose ratio is in range.
        box_height, box_width = height, width
        if width / height < self.ratio[0]:
            box_height = max(1, round(width / self.ratio[0]))
        elif width / height > self.ratio[1]:
            box_width = max(1, round(height * self.ratio[1]))
        top, left = (height - box_height) // 2, (width - box_width) // 2
        return {"top": top, "left": left, "height": box_height, "width": box_width}

    def apply(self, image: Tensor, params: Params, scale: float = 1.0) -> Tensor:
        side = round(self.size * scale)
        return images.resize(images.crop(image, params), side, side, self.interpolation)

    def describe(self) -> str:
        return (
            f"random crop of {in_percent(self.scale)} of the area, aspect ratio {_fraction(self.ratio[0])} to "
            f"{_fraction(self.ratio[1])}, resized to {self.size} x {self.size} pixels ({self.interpolation})"
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


def _fraction(value: float) -> str:
    """A ratio in words, `4/3` rather than `1.33333`."""
    fraction = Fraction(value).limit_denominator(10)
    return str(fraction) if abs(float(fraction) - value) < 1e-6 else f"{value:g}"
