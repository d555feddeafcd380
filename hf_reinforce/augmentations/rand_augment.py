"""RandAugment (Cubuk et al., 2019) with the 14 operations and the magnitude space of torchvision."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from datasets import ClassLabel, List, Value
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from hf_reinforce import images
from hf_reinforce.augmentations import photometric
from hf_reinforce.augmentations.base import Bin, Params, Probability, ViewAugmentation, chance, number, valid

NUM_BINS = 31


class _Operation(NamedTuple):
    """One operation on a picture of Pillow, or on an array, which gives the same pixels in less time."""

    apply: Callable[[Any, float], Any]  # to an image and a magnitude
    largest: float = 0.0  # magnitude at the highest level, of which other levels have their share
    signed: bool = False
    on_picture: bool = False


def _shear(image: Image.Image, x: float, y: float) -> Image.Image:
    # Turns about the top-left corner, as in AutoAugment's reference.
    degrees = [math.degrees(math.atan(value)) for value in (x, y)]
    sheared: Image.Image = F.affine(image, 0.0, translate=[0, 0], scale=1.0, shear=degrees, center=[0.0, 0.0])
    return sheared


# Nearest neighbour and black outside, the defaults of `affine` and `rotate`.
_TABLE = {
    "Identity": _Operation(lambda image, magnitude: image),
    "ShearX": _Operation(lambda image, tangent: _shear(image, tangent, 0.0), 0.3, True, True),
    "ShearY": _Operation(lambda image, tangent: _shear(image, 0.0, tangent), 0.3, True, True),
    "TranslateX": _Operation(lambda image, pixels: photometric.translate(image, 0, int(pixels)), 150.0 / 331.0, True),
    "TranslateY": _Operation(lambda image, pixels: photometric.translate(image, int(pixels), 0), 150.0 / 331.0, True),
    "Rotate": _Operation(lambda image, degrees: F.rotate(image, degrees), 30.0, True, True),
    "Brightness": _Operation(lambda image, change: photometric.brightness(image, 1.0 + change), 0.9, True),
    "Color": _Operation(lambda image, change: F.adjust_saturation(image, 1.0 + change), 0.9, True, True),
    "Contrast": _Operation(lambda image, change: photometric.contrast(image, 1.0 + change), 0.9, True),
    "Sharpness": _Operation(lambda image, change: photometric.sharpness(image, 1.0 + change), 0.9, True),
    "Posterize": _Operation(lambda image, bits: photometric.posterize(image, int(bits))),
    "Solarize": _Operation(photometric.solarize),
    "AutoContrast": _Operation(lambda image, magnitude: photometric.auto_contrast(image)),
    "Equalize": _Operation(lambda image, magnitude: F.equalize(image), on_picture=True),
}
OPERATIONS = tuple(_TABLE)
"""By the number that is stored."""
SIGNED = tuple(name for name, operation in _TABLE.items() if operation.signed)
TRANSLATE = ("TranslateX", "TranslateY")


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
    if op == "Posterize":
        return float(8 - round(level / ((NUM_BINS - 1) / 4)))
    if op == "Solarize":
        return 255.0 * (1.0 - share)
    return _TABLE[op].largest * (size if op in TRANSLATE else 1) * share


@dataclass(frozen=True)
class RandAugment(ViewAugmentation):
    """Applies `num_ops` operations drawn uniformly, one after the other, with PIL.

    Args:
        num_ops: operations per view.
        magnitude: strength, 0 to 30.
        p: probability that each drawn operation is applied; where it is not, `Identity` is stored.
    """

    num_ops: Annotated[int, number(1, whole=True)] = 2
    magnitude: Annotated[int, number(0, NUM_BINS - 1, whole=True)] = 9
    p: Probability = 1.0

    name: ClassVar[str] = "rand_augment"
    field: ClassVar[str] = "rand_augment"

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
            operation = _TABLE[op]
            if operation.on_picture != isinstance(view, Image.Image):
                view = Image.fromarray(view) if operation.on_picture else np.array(view)
            view = operation.apply(view, magnitude * scale if op in TRANSLATE else magnitude)
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
