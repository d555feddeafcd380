"""EvaluationView: frames a photo as timm or transformers do where that isn't `Resize` and `CenterCrop`."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from hf_reinforce import images
from hf_reinforce.augmentations.base import Params, Stage, ViewAugmentation, check_size
from hf_reinforce.augmentations.center_crop import CenterCrop
from hf_reinforce.augmentations.resize import Resize

CROP_MODES = ("center", "squash", "border", "crop", "crop_first")
CROP_ROUNDINGS = ("even", "down", "nearest")


@dataclass(frozen=True)
class EvaluationView(ViewAugmentation):
    """The square that a network is evaluated on. It stores nothing, so it is no operation of a policy file.

    Args:
        size: side of the square in pixels.
        crop_pct: the image is resized to `int(size / crop_pct)` before the crop; above 1 the square gets a margin.
        interpolation: one of `images.INTERPOLATIONS`.
        crop_mode: `"center"`: the shorter side is resized, and the central square cut; `"squash"`: both sides are,
            whatever their ratio; `"border"`: the longer side is, and the margin filled; `"crop"`: nothing is;
            `"crop_first"`: the central square of `crop_pct` times the shorter side is cut, then resized.
        crop_rounding: of half pixels: `"even"` as torchvision and timm round, `"down"` as transformers does; with
            `"nearest"` also the longer side is rounded, as transformers' PP-LCNet does.
        fill: colour of the margin.
    """

    size: int = 224
    crop_pct: float = 1.0
    interpolation: str = "bilinear"
    crop_mode: str = "center"
    crop_rounding: str = "even"
    fill: tuple[int, ...] = (0, 0, 0)

    name: ClassVar[str] = "evaluation_view"
    field: ClassVar[str | None] = None
    stage: ClassVar[Stage] = "crop"

    def __post_init__(self) -> None:
        check_size(self.name, self.size)

    @property
    def feature(self) -> Any:
        return None

    def sample(self, rng: np.random.Generator, height: int, width: int) -> Params | None:
        return None

    def apply(self, image: Tensor, params: Params, scale: float = 1.0) -> Tensor:
        if self.crop_mode == "crop_first":
            image = self._cut(image, int(self.crop_pct * min(image.shape[-2:])))
            return images.resize(image, round(self.size * scale), round(self.size * scale), self.interpolation)
        if self.crop_mode != "crop":
            image = images.resize(image, *self._resized(*image.shape[-2:]), self.interpolation)
        return images.resize(self._cut(image, self.size), round(self.size * scale), round(self.size * scale))

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        side = int(self.size / self.crop_pct)
        if self.crop_mode == "squash":
            return side, side
        if self.crop_mode == "border":
            ratio = max(height / side, width / side)
            return max(1, round(height / ratio)), max(1, round(width / ratio))
        if self.crop_rounding == "nearest":
            return round(height * (side / min(height, width))), round(width * (side / min(height, width)))
        return (side, int(side * width / height)) if height <= width else (int(side * height / width), side)

    def _cut(self, image: Tensor, side: int) -> Tensor:
        top, left = (self._offset(length, side) for length in image.shape[-2:])
        # Outside of the image `crop` is black: with shifted colours, and uint8 wraps around, that is `fill`.
        fill = image.new_tensor(self.fill).view(3, 1, 1)
        return images.crop(image - fill, {"top": top, "left": left, "height": side, "width": side}) + fill

    def _offset(self, length: int, side: int) -> int:
        if length < side:
            return -((side - length) // 2)
        return round((length - side) / 2) if self.crop_rounding == "even" else (length - side) // 2


def evaluation_operations(
    image_size: int, crop_pct: float = 1.0, interpolation: str = "bilinear", **framing: Any
) -> tuple[ViewAugmentation, ...]:
    """What makes the view of evaluation: shorter side to `image_size / crop_pct`, then the central square.

    Args:
        image_size: side of the view in pixels.
        crop_pct: share of the shorter side that is seen.
        interpolation: one of `images.INTERPOLATIONS`.
        framing: `crop_mode`, `crop_rounding` and `fill` of `EvaluationView`, for networks that want it otherwise.
    """
    if framing or interpolation not in ("bilinear", "bicubic"):
        return (EvaluationView(image_size, crop_pct, interpolation, **framing),)
    return Resize(int(image_size / crop_pct), interpolation), CenterCrop(image_size)
