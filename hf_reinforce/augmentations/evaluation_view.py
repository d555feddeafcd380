"""EvaluationView: frames a photo as timm or transformers do where that isn't `Resize` and `CenterCrop`."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from hf_reinforce import images
from hf_reinforce.augmentations.base import Params, Size, Stage, ViewAugmentation
from hf_reinforce.augmentations.center_crop import central_offset

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

    size: Size = 224
    crop_pct: float = 1.0
    interpolation: str = "bilinear"
    crop_mode: str = "center"
    crop_rounding: str = "even"
    fill: tuple[int, ...] = (0, 0, 0)

    name: ClassVar[str] = "evaluation_view"
    stage: ClassVar[Stage] = "crop"

    def apply(self, image: Tensor, params: Params, scale: float = 1.0) -> Tensor:
        side, interpolation = self.size, self.interpolation
        if self.crop_mode == "crop_first":
            side = int(self.crop_pct * min(image.shape[-2:]))
        else:
            if self.crop_mode != "crop":
                image = images.resize(image, *self._resized(*image.shape[-2:]), interpolation)
            interpolation = "bilinear"
        return images.resize(self._cut(image, side), round(self.size * scale), round(self.size * scale), interpolation)

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
        down = self.crop_rounding != "even"
        top, left = (
            (length - side) // 2 if down and length >= side else central_offset(length, side)
            for length in image.shape[-2:]
        )
        # Outside of the image `crop` is black: with shifted colours, and uint8 wraps around, that is `fill`.
        fill = image.new_tensor(self.fill).view(3, 1, 1)
        return images.crop(image - fill, {"top": top, "left": left, "height": side, "width": side}) + fill
