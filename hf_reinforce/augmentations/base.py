"""What an augmentation is: random parameters apart from their application.

`sample` draws parameters and looks at no pixels; `apply` changes pixels and draws nothing. The parameters are plain
Python values that survive Arrow exactly, so that applying them again gives the same pixels.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from torch import Tensor

from hf_reinforce import schema
from hf_reinforce.schema import MAX_IMAGE_SIDE

Params = Any
"""Parameters of one operation: a bool, a number, a dict or a list of dicts; None where it was not applied."""

Mask = NDArray[np.bool_]
Bin = tuple[str, str, Mask]
"""Name of an operation, a strength in words, and which of T views had it: bool [T]."""

Stage = Literal["resize", "crop", "image", "mix"]


@dataclass(frozen=True)
class Augmentation:
    """What every operation says about itself: nothing outside its file spells its field or puts it into words.

    Attributes:
        name: key of the operation in a policy file.
        field: field of `augmentation_params` that holds its parameters; None when there is nothing to store.
        stage: where it may stand in a policy: `resize`, then exactly one `crop`, then `image`, then `mix`.
        encoding: of its parameters in Parquet: a dictionary where few values recur, else numbers split into bytes.
    """

    name: ClassVar[str]
    field: ClassVar[str | None]
    stage: ClassVar[Stage]
    encoding: ClassVar[Literal["DICTIONARY", "BYTE_STREAM_SPLIT"]] = "DICTIONARY"

    @property
    def feature(self) -> Any:
        """The `datasets` feature of the parameters."""
        raise NotImplementedError

    def sample(self, rng: np.random.Generator, height: int, width: int) -> Params | None:
        """Draws parameters for an image of `height` x `width` pixels; None where the operation is not applied."""
        raise NotImplementedError

    def describe(self) -> str:
        """The operation with its options, in a phrase for cards."""
        return f"{_title(self.name)}: {', '.join(f'{key} {value}' for key, value in asdict(self).items())}"

    def caption(self, params: Params) -> str:
        """Applied parameters in a few words, below the picture of a view; empty where there is nothing to say."""
        return str(self.field)

    def bins(self, params: pa.Array, size: int) -> Iterator[Bin]:
        """Sorts views by how strong the operation was, for statistics; by default whether it was applied.

        Args:
            params: the parameters of T views, null where it was not applied.
            size: side of the views in pixels.

        Yields:
            Bins in the order of the table that shows them; numbers are sorted by value. Under one name each view has
            one strength, or as in RandAugment one for each time that the operation was drawn.
        """
        applied = valid(params)
        yield _title(self.name), "no", ~applied
        yield _title(self.name), "yes", applied


@dataclass(frozen=True)
class ViewAugmentation(Augmentation):
    """An operation on one image.

    Attributes: as `Augmentation`.
    """

    def apply(self, image: Tensor, params: Params, scale: float = 1.0) -> Tensor:
        """Applies parameters to a uint8 image [3, H, W] without changing it in place.

        Args:
            image: uint8 [3, H, W], values 0 to 255.
            params: what `sample` returned.
            scale: replayed output size / output size at sampling; parameters in output pixels scale with it.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class Crop(ViewAugmentation):
    """The operation that makes a square view: a box of the image, in pixels of what it sees.

    Args:
        size: side of the view in pixels.
    """

    size: int = 224

    field: ClassVar[str] = "crop"
    stage: ClassVar[Stage] = "crop"
    encoding: ClassVar[Literal["DICTIONARY", "BYTE_STREAM_SPLIT"]] = "BYTE_STREAM_SPLIT"

    @property
    def feature(self) -> Any:
        return schema.BOX

    def caption(self, params: Params) -> str:
        return ""  # the box is drawn

    def bins(self, params: pa.Array, size: int) -> Iterator[Bin]:
        yield from ()  # all are of one size


@dataclass(frozen=True)
class MixAugmentation(Augmentation):
    """An operation on an image and its partner, applied to whole batches on the device.

    Attributes: as `Augmentation`.
    """

    field: ClassVar[str]
    stage: ClassVar[Stage] = "mix"

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


def in_percent(value: float) -> str:
    """A share in words."""
    return f"{100 * value:.3g} %"


def in_fractions(value: float) -> str:
    """A ratio in words, `4/3` rather than `1.33333`."""
    fraction = Fraction(value).limit_denominator(10)
    return str(fraction) if abs(float(fraction) - value) < 1e-6 else f"{value:g}"


def chance(p: float) -> str:
    """The end of a phrase: how often the operation is applied."""
    return "" if p == 1 else f", with probability {p:g}"


def _title(name: str) -> str:
    return name.replace("_", " ")


def valid(params: pa.Array) -> Mask:
    """Which views an operation was applied to: bool [T]."""
    return np.asarray(params.is_valid().to_numpy(zero_copy_only=False))


def numbers(params: pa.StructArray, name: str) -> NDArray[np.float64]:
    """A field of the parameters of T views, 0 where the operation was not applied."""
    return np.asarray(params.field(name).fill_null(0).to_numpy(zero_copy_only=False), np.float64)


def area(boxes: pa.StructArray) -> NDArray[np.float64]:
    """Areas of T boxes, 0 where there is none."""
    return numbers(boxes, "height") * numbers(boxes, "width")


def ranges(name: str, words: str, applied: Mask, shares: NDArray[np.float64], *edges: float) -> Iterator[Bin]:
    """Bins of shares between 0 and 1, "none" first.

    Args:
        name: of the operation.
        words: what a share is of.
        applied: which views it was applied to: bool [T].
        shares: of each view, [T].
        edges: where a bin ends, ascending, the last below 1.
    """
    yield name, "none", ~applied
    for low, high in zip((0.0, *edges), (*edges, 1.0), strict=True):
        inside = applied & ((shares > low) | (low == 0)) & ((shares <= high) | (high == 1))
        span = f"above {100 * low:.3g}" if high == 1 else f"{100 * low:.3g} to {100 * high:.3g}"
        yield name, f"{span} % {words}", inside
