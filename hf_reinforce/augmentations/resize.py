"""Resize: a deterministic step before the crop, for policies whose crop works on resized pixels."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from hf_reinforce import images
from hf_reinforce.augmentations.base import Interpolation, Params, Size, Stage, ViewAugmentation


@dataclass(frozen=True)
class Resize(ViewAugmentation):
    """Resizes the shorter side, keeping the aspect ratio, as torchvision's `Resize(size)`.

    Args:
        size: shorter side in pixels.
        interpolation: `"bilinear"` or `"bicubic"`, antialiased.
    """

    size: Size = 224
    interpolation: Interpolation = "bilinear"

    name: ClassVar[str] = "resize"
    stage: ClassVar[Stage] = "resize"

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width after the resize."""
        if height <= width:
            return self.size, int(self.size * width / height)
        return int(self.size * height / width), self.size

    def apply(self, image: Tensor, params: Params, scale: float = 1.0) -> Tensor:
        return images.resize(image, *self.output_size(image.shape[1], image.shape[2]), self.interpolation)

    def describe(self) -> str:
        return f"resize the shorter side to {self.size} pixels ({self.interpolation})"
