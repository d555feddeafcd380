"""MixUp (Zhang et al., 2017): a weighted mean of an image and its partner."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import torch
from datasets import Value
from torch import Tensor

from hf_reinforce.augmentations.base import (
    Bin,
    MixAugmentation,
    Params,
    Positive,
    Probability,
    chance,
    numbers,
    ranges,
)


@dataclass(frozen=True)
class MixUp(MixAugmentation):
    """`lam * image + (1 - lam) * partner` with `lam ~ Beta(alpha, alpha)`.

    The original implementation of dataset reinforcement draws `lam / 2`, so that the partner dominates. Partners are
    reciprocal here, so both give mixed images of the same distribution.

    Args:
        alpha: parameter of the Beta distribution, > 0.
        p: probability that an image is mixed.
    """

    alpha: Positive = 1.0
    p: Probability = 0.5

    name: ClassVar[str] = "mixup"
    field: ClassVar[str] = "mixup"
    stored: ClassVar[Any] = {"lam": Value("float32")}

    def sample(self, rng: np.random.Generator, height: int, width: int) -> Params | None:
        if rng.random() >= self.p:
            return None
        return {"lam": float(np.float32(rng.beta(self.alpha, self.alpha)))}

    def collate(self, params: list[Params | None]) -> Tensor:
        return torch.tensor([1.0 if item is None else item["lam"] for item in params])

    def apply(self, images: Tensor, partners: Tensor, params: Tensor, scale: float = 1.0) -> Tensor:
        lam = params.to(images.dtype).view(-1, 1, 1, 1)
        return lam * images + (1 - lam) * partners

    def own_share(self, params: Tensor, size: int) -> Tensor:
        return params

    def describe(self) -> str:
        return f"MixUp with another image, weight from Beta({self.alpha:g}, {self.alpha:g}){chance(self.p)}"

    def bins(self, params: pa.Array, size: int) -> Iterator[Bin]:
        return ranges("mixup", "own image", params, numbers(params, "lam"), 0.25, 0.5, 0.75)
