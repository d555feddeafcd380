"""What an augmentation is: random parameters apart from their application.

`sample` draws parameters and looks at no pixels; `apply` changes pixels and draws nothing. The parameters are plain
Python values that survive Arrow exactly, so that applying them again gives the same pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from hf_reinforce.schema import MAX_IMAGE_SIDE

Params = Any
"""Parameters of one operation: a bool, a dict or a list of dicts; None where the operation was not applied."""

Stage = Literal["resize", "crop", "image", "mix"]


@dataclass(frozen=True)
class ViewAugmentation:
    """An operation on one image.

    Attributes:
        name: key of the operation in a policy file.
        field: field of `augmentation_params` that holds its parameters; None when there is nothing to store.
        stage: where it may stand in a policy: `resize`, then exactly one `crop`, then `image`, then `mix`.
    """

    name: ClassVar[str]
    field: ClassVar[str | None]
    stage: ClassVar[Stage]

    @property
    def feature(self) -> Any:
        """The `datasets` feature of the parameters."""
        raise NotImplementedError

    def sample(self, rng: np.random.Generator, height: int, width: int) -> Params | None:
        """Draws parameters for an image of `height` x `width` pixels; None where the operation is not applied."""
        raise NotImplementedError

    def apply(self, image: Tensor, params: Params, scale: float = 1.0) -> Tensor:
        """Applies parameters to a uint8 image [3, H, W] without changing it in place.

        Args:
            image: uint8 [3, H, W], values 0 to 255.
            params: what `sample` returned.
            scale: replayed output size / output size at sampling; parameters in output pixels scale with it.
        """
        raise NotImplementedError

    def collate(self, params: Sequence[Params | None]) -> NDArray[Any]:
        """Parameters of B images as one array [B, ...] for `apply_batch`; None becomes what changes nothing.

        Raises:
            ValueError: if the operation works on one image at a time only.
        """
        raise ValueError(f"{self.name} works on one image at a time.")

    def apply_batch(self, images: Tensor, params: NDArray[Any]) -> Tensor:
        """`apply` to uint8 images [B, 3, H, W] at once, on their device: within one level of it, on a CPU the same.

        Args:
            images: uint8 [B, 3, H, W], values 0 to 255; not changed.
            params: what `collate` returned.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class MixAugmentation:
    """An operation on an image and its partner, applied to whole batches on the device.

    Attributes: as `ViewAugmentation`.
    """

    name: ClassVar[str]
    field: ClassVar[str]
    stage: ClassVar[Stage] = "mix"

    @property
    def feature(self) -> Any:
        """The `datasets` feature of the parameters."""
        raise NotImplementedError

    def sample(self, rng: np.random.Generator, height: int, width: int) -> Params | None:
        """Draws parameters for a view of `height` x `width` pixels; None where the operation is not applied."""
        raise NotImplementedError

    def collate(self, params: list[Params | None]) -> Tensor:
        """Parameters of B samples as one tensor [B, ...]; None becomes the value that changes nothing."""
        raise NotImplementedError

    def apply(self, images: Tensor, partners: Tensor, params: Tensor, scale: float = 1.0) -> Tensor:
        """Mixes float images [B, 3, H, W] with their partners' [B, 3, H, W]; `params` as `collate` returned them."""
        raise NotImplementedError

    def own_share(self, params: Tensor, size: int) -> Tensor:
        """Share of each mixed image that is its own, float [B] in [0, 1], for views of `size` pixels."""
        raise NotImplementedError


def uniform(rng: np.random.Generator, low: float, high: float) -> float:
    """What `rng.uniform(low, high)` draws, in a third of its time."""
    return low + (high - low) * rng.random()


def check_probability(owner: str, p: float) -> None:
    """Raises a ValueError unless 0 <= p <= 1."""
    if not 0.0 <= p <= 1.0:
        raise ValueError(f"{owner}: p must lie in [0, 1], not {p}.")


def check_range(owner: str, what: str, bounds: tuple[float, float], low: float, high: float) -> None:
    """Raises a ValueError unless `low < bounds[0] <= bounds[1] <= high`."""
    if len(bounds) != 2 or not low < bounds[0] <= bounds[1] <= high:
        raise ValueError(f"{owner}: {what} must be two ascending numbers in ({low}, {high}], not {list(bounds)}.")


def check_size(owner: str, size: int) -> None:
    """Raises a ValueError unless a size is an integer between 1 and what a stored box can hold."""
    if not isinstance(size, int) or not 1 <= size <= MAX_IMAGE_SIDE:
        raise ValueError(f"{owner}: size must be an integer from 1 to {MAX_IMAGE_SIDE}, not {size!r}.")


def check_interpolation(owner: str, interpolation: str) -> None:
    """Raises a ValueError for an interpolation other than bilinear and bicubic."""
    if interpolation not in ("bilinear", "bicubic"):
        raise ValueError(f"{owner}: interpolation must be 'bilinear' or 'bicubic', not {interpolation!r}.")
