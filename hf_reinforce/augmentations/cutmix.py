"""CutMix (Yun et al., 2019): a box of the image is replaced by its partner's pixels."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from hf_reinforce import schema
from hf_reinforce.augmentations.base import Bin, MixAugmentation, Params, Positive, Probability, area, chance, ranges


@dataclass(frozen=True)
class CutMix(MixAugmentation):
    """Pastes a box of the partner's view; its area before clipping is `1 - lam` with `lam ~ Beta(alpha, alpha)`.

    Args:
        alpha: parameter of the Beta distribution, > 0.
        p: probability that an image is mixed.
    """

    alpha: Positive = 1.0
    p: Probability = 0.5

    name: ClassVar[str] = "cutmix"
    field: ClassVar[str] = "cutmix"
    stored: ClassVar[Any] = schema.BOX

    def sample(self, rng: np.random.Generator, height: int, width: int) -> Params | None:
        if rng.random() >= self.p:
            return None
        share = math.sqrt(1.0 - rng.beta(self.alpha, self.alpha))
        (top, bottom), (left, right) = (self._interval(rng, side, share) for side in (height, width))
        return {"top": top, "left": left, "height": bottom - top, "width": right - left}

    @staticmethod
    def _interval(rng: np.random.Generator, side: int, share: float) -> tuple[int, int]:
        half, centre = int(side * share) // 2, int(rng.integers(side))
        return max(centre - half, 0), min(centre + half, side)

    def collate(self, params: list[Params | None]) -> Tensor:
        """int64 [B, 4]: top, left, bottom, right."""
        boxes = [[0] * 4 if box is None else [box[side] for side in schema.BOX] for box in params]
        top, left, height, width = torch.tensor(boxes, dtype=torch.int64).unbind(1)
        return torch.stack([top, left, top + height, left + width], 1)

    def apply(self, images: Tensor, partners: Tensor, params: Tensor, scale: float = 1.0) -> Tensor:
        edges = (params * scale).round().view(-1, 4, 1, 1)
        rows = torch.arange(images.shape[-2], device=images.device).view(1, -1, 1)
        columns = torch.arange(images.shape[-1], device=images.device).view(1, 1, -1)
        inside = (rows >= edges[:, 0]) & (rows < edges[:, 2]) & (columns >= edges[:, 1]) & (columns < edges[:, 3])
        return torch.where(inside.unsqueeze(1), partners, images)

    def own_share(self, params: Tensor, size: int) -> Tensor:
        area = (params[:, 2] - params[:, 0]) * (params[:, 3] - params[:, 1])
        return 1.0 - area / size**2

    def describe(self) -> str:
        return f"CutMix: a box of another image, area from Beta({self.alpha:g}, {self.alpha:g}){chance(self.p)}"

    def bins(self, params: pa.Array, size: int) -> Iterator[Bin]:
        return ranges("cutmix", "of the view", params, area(params) / size**2, 0.25, 0.5, 0.75)
