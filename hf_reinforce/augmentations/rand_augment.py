"""RandAugment (Cubuk et al., 2019) with the 14 operations and the magnitude space of torchvision."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from hf_reinforce import images, schema
from hf_reinforce.augmentations.base import Params, Stage, ViewAugmentation, check_probability

NUM_BINS = 31
SIGNED = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color", "Contrast", "Sharpness")
TRANSLATE = ("TranslateX", "TranslateY")


def _affine(image: Image.Image, translate: tuple[int, int] = (0, 0), shear: tuple[float, float] = (0.0, 0.0)) -> Any:
    # Shearing turns about the top-left corner, as in AutoAugment's reference; translation does not depend on it.
    degrees = [math.degrees(math.atan(value)) for value in shear]
    return F.affine(image, angle=0.0, translate=list(translate), scale=1.0, shear=degrees, center=[0.0, 0.0])


def _sharpness(image: Image.Image, factor: float) -> Image.Image:
    # PIL's SMOOTH filter in integers: the same pixels, in half the time.
    pixels = np.array(image).astype(np.uint16)
    rows = pixels[:-2] + pixels[1:-1] + pixels[2:]
    total = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:] + 4 * pixels[1:-1, 1:-1]
    pixels[1:-1, 1:-1] = (2 * total + 13) // 26
    return Image.blend(Image.fromarray(pixels.astype(np.uint8)), image, factor)


# Nearest neighbour and black outside, the defaults of `affine` and `rotate`.
_APPLY: dict[str, Callable[[Image.Image, float], Any]] = {
    "Identity": lambda image, magnitude: image,
    "ShearX": lambda image, magnitude: _affine(image, shear=(magnitude, 0.0)),
    "ShearY": lambda image, magnitude: _affine(image, shear=(0.0, magnitude)),
    "TranslateX": lambda image, magnitude: _affine(image, translate=(int(magnitude), 0)),
    "TranslateY": lambda image, magnitude: _affine(image, translate=(0, int(magnitude))),
    "Rotate": lambda image, magnitude: F.rotate(image, magnitude),
    "Brightness": lambda image, magnitude: F.adjust_brightness(image, 1.0 + magnitude),
    "Color": lambda image, magnitude: F.adjust_saturation(image, 1.0 + magnitude),
    "Contrast": lambda image, magnitude: F.adjust_contrast(image, 1.0 + magnitude),
    "Sharpness": lambda image, magnitude: _sharpness(image, 1.0 + magnitude),
    "Posterize": lambda image, magnitude: F.posterize(image, int(magnitude)),
    "Solarize": lambda image, magnitude: F.solarize(image, magnitude),
    "AutoContrast": lambda image, magnitude: F.autocontrast(image),
    "Equalize": lambda image, magnitude: F.equalize(image),
}


def magnitude_of(op: str, level: int, size: int) -> float:
    """Unsigned magnitude of an operation.

    Args:
        op: one of `schema.RAND_AUGMENT_OPERATIONS`.
        level: 0 (weakest) to 30.
        size: side of the image in pixels; translations grow with it.

    Returns:
        Tangent of the angle for shears, pixels for translations, degrees for Rotate, relative change for Brightness,
        Color, Contrast and Sharpness, bits kept for Posterize, threshold in [0, 255] for Solarize, else 0.
    """
    share = level / (NUM_BINS - 1)
    if op in ("ShearX", "ShearY"):
        return 0.3 * share
    if op in TRANSLATE:
        return 150.0 / 331.0 * size * share
    if op == "Rotate":
        return 30.0 * share
    if op in ("Brightness", "Color", "Contrast", "Sharpness"):
        return 0.9 * share
    if op == "Posterize":
        return float(8 - round(level / ((NUM_BINS - 1) / 4)))
    return 255.0 * (1.0 - share) if op == "Solarize" else 0.0


@dataclass(frozen=True)
class RandAugment(ViewAugmentation):
    """Applies `num_ops` operations drawn uniformly, one after the other, with PIL.

    Args:
        num_ops: operations per view.
        magnitude: strength, 0 to 30.
        p: probability that each drawn operation is applied; where it is not, `Identity` is stored.
    """

    num_ops: int = 2
    magnitude: int = 9
    p: float = 1.0

    name: ClassVar[str] = "rand_augment"
    field: ClassVar[str | None] = schema.RAND_AUGMENT
    stage: ClassVar[Stage] = "image"

    def __post_init__(self) -> None:
        check_probability(self.name, self.p)
        if self.num_ops < 1 or not 0 <= self.magnitude < NUM_BINS:
            raise ValueError(
                f"{self.name}: num_ops must be >= 1 and magnitude in [0, {NUM_BINS - 1}], "
                f"not num_ops={self.num_ops}, magnitude={self.magnitude}."
            )

    @property
    def feature(self) -> Any:
        return schema.rand_augment_feature(self.num_ops)

    def sample(self, rng: np.random.Generator, height: int, width: int) -> Params | None:
        return [self._sample_one(rng, width) for _ in range(self.num_ops)]

    def _sample_one(self, rng: np.random.Generator, size: int) -> dict[str, float]:
        index = int(rng.integers(len(schema.RAND_AUGMENT_OPERATIONS)))
        negative, applied = rng.random(2) < (0.5, self.p)
        if not applied:
            index = 0
        op = schema.RAND_AUGMENT_OPERATIONS[index]
        magnitude = magnitude_of(op, self.magnitude, size)
        if negative and op in SIGNED:
            magnitude = -magnitude
        return {"op": index, "magnitude": float(np.float32(magnitude))}

    def apply(self, image: Tensor, params: Params, scale: float = 1.0) -> Tensor:
        picture = images.to_pil(image)
        for step in params:
            op, magnitude = schema.RAND_AUGMENT_OPERATIONS[step["op"]], step["magnitude"]
            picture = _APPLY[op](picture, magnitude * scale if op in TRANSLATE else magnitude)
        return images.from_pil(picture)
