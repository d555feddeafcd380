"""RandAugment (Cubuk et al., 2019) with the 14 operations and the magnitude space of torchvision."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import torch
from datasets import ClassLabel, List, Value
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from hf_reinforce import images
from hf_reinforce.augmentations import photometric
from hf_reinforce.augmentations.base import Bin, Params, Stage, ViewAugmentation, chance, check_probability, valid

OPERATIONS = (
    "Identity",
    "ShearX",
    "ShearY",
    "TranslateX",
    "TranslateY",
    "Rotate",
    "Brightness",
    "Color",
    "Contrast",
    "Sharpness",
    "Posterize",
    "Solarize",
    "AutoContrast",
    "Equalize",
)
"""By the number that is stored."""
NUM_BINS = 31
SIGNED = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color", "Contrast", "Sharpness")
TRANSLATE = ("TranslateX", "TranslateY")


def _shear(image: Image.Image, x: float, y: float) -> Image.Image:
    # Turns about the top-left corner, as in AutoAugment's reference.
    degrees = [math.degrees(math.atan(value)) for value in (x, y)]
    sheared: Image.Image = F.affine(image, 0.0, translate=[0, 0], scale=1.0, shear=degrees, center=[0.0, 0.0])
    return sheared


# Nearest neighbour and black outside, the defaults of `affine` and `rotate`.
_ON_PICTURES: dict[str, Callable[[Image.Image, float], Any]] = {
    "ShearX": lambda image, magnitude: _shear(image, magnitude, 0.0),
    "ShearY": lambda image, magnitude: _shear(image, 0.0, magnitude),
    "Rotate": lambda image, magnitude: F.rotate(image, magnitude),
    "Color": lambda image, magnitude: F.adjust_saturation(image, 1.0 + magnitude),
    "Equalize": lambda image, magnitude: F.equalize(image),
}
# The same pixels as Pillow's, faster.
_ON_ARRAYS: dict[str, Callable[[photometric.Pixels, float], photometric.Pixels]] = {
    "Identity": lambda image, magnitude: image,
    "TranslateX": lambda image, magnitude: photometric.translate(image, 0, int(magnitude)),
    "TranslateY": lambda image, magnitude: photometric.translate(image, int(magnitude), 0),
    "Brightness": lambda image, magnitude: photometric.brightness(image, 1.0 + magnitude),
    "Contrast": lambda image, magnitude: photometric.contrast(image, 1.0 + magnitude),
    "Sharpness": lambda image, magnitude: photometric.sharpness(image, 1.0 + magnitude),
    "Posterize": lambda image, magnitude: photometric.posterize(image, int(magnitude)),
    "Solarize": lambda image, magnitude: photometric.solarize(image, magnitude),
    "AutoContrast": lambda image, magnitude: photometric.auto_contrast(image),
}


def magnitude_of(op: str, level: int, size: int) -> float:
    """Unsigned magnitude of an operation.

    Args:
        op: one of `OPERATIONS`.
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
    field: ClassVar[str] = "rand_augment"
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
        step = {"op": ClassLabel(names=list(OPERATIONS)), "magnitude": Value("float32")}
        return List(step, length=self.num_ops)

    def sample(self, rng: np.random.Generator, height: int, width: int) -> Params | None:
        return [self._sample_one(rng, width) for _ in range(self.num_ops)]

    def _sample_one(self, rng: np.random.Generator, size: int) -> dict[str, float]:
        index = int(rng.integers(len(OPERATIONS)))
        negative, applied = rng.random() < 0.5, rng.random() < self.p
        if not applied:
            index = 0
        op = OPERATIONS[index]
        magnitude = magnitude_of(op, self.magnitude, size)
        if negative and op in SIGNED:
            magnitude = -magnitude
        return {"op": index, "magnitude": float(np.float32(magnitude))}

    def apply(self, image: Tensor, params: Params, scale: float = 1.0) -> Tensor:
        view: Any = image.permute(1, 2, 0).contiguous().numpy()
        for step in params:
            op, magnitude = OPERATIONS[step["op"]], step["magnitude"]
            magnitude = magnitude * scale if op in TRANSLATE else magnitude
            on_picture = op in _ON_PICTURES
            if on_picture != isinstance(view, Image.Image):
                view = Image.fromarray(view) if on_picture else np.array(view)
            view = (_ON_PICTURES if on_picture else _ON_ARRAYS)[op](view, magnitude)
        return images.from_pil(view) if isinstance(view, Image.Image) else torch.from_numpy(view).permute(2, 0, 1)

    def describe(self) -> str:
        return f"RandAugment: {self.num_ops} operations at magnitude {self.magnitude}{chance(self.p)}"

    def caption(self, params: Params) -> str:
        drawn = []
        for step in params:
            magnitude = step["magnitude"]
            number = f"\N{NO-BREAK SPACE}{magnitude:{'.2g' if abs(magnitude) < 10 else '.0f'}}" if magnitude else ""
            drawn.append(f"{OPERATIONS[step['op']]}{number}")
        return ", ".join(drawn)

    def bins(self, params: pa.Array, size: int) -> Iterator[Bin]:
        count = params.type.list_size
        steps = params.values.slice(params.offset * count, len(params) * count)  # flatten() drops those of null lists
        drawn = steps.field("op").fill_null(-1).to_numpy(zero_copy_only=False).reshape(-1, count)
        drawn = np.where(valid(params)[:, None], drawn, -1)
        magnitudes = steps.field("magnitude").fill_null(0).to_numpy(zero_copy_only=False).reshape(-1, count)
        yield "RandAugment", "none", np.asarray((drawn < 0).all(axis=1))
        for index, name in enumerate(OPERATIONS):
            own = drawn == index
            for magnitude in np.unique(magnitudes[own]) if own.any() else [0.0]:  # so the names come in one order
                words = f"{magnitude:.3g}" if magnitude else ""
                yield name, words, (own & (magnitudes == magnitude)).any(axis=1)
