"""What an augmentation is: random parameters apart from their application.

`sample` draws parameters and looks at no pixels; `apply` changes pixels and draws nothing. The parameters are plain
Python values that survive Arrow exactly, so that applying them again gives the same pixels. What an option may be is
the type of its field, and checked here.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from torch import Tensor

from hf_reinforce import images, schema
from hf_reinforce.augmentations.documents import shortened

Params = Any
"""Parameters of one operation: a bool, a number, a dict or a list of dicts; None where it was not applied."""

Mask = NDArray[np.bool_]
Bin = tuple[str, str, Mask]
"""Name of an operation, a strength in words, and which of T views had it: bool [T]."""

Stage = Literal["resize", "crop", "image", "mix"]
Encoding = Literal["DICTIONARY", "BYTE_STREAM_SPLIT"]


class Option(NamedTuple):
    """What an option of an operation may be, in words and as a test."""

    words: str
    fits: Callable[[Any], bool]


def number(low: float, high: float = schema.MAX_IMAGE_SIDE, whole: bool = False) -> Option:
    """An option that is a number from `low` to `high`; True and False are none."""
    kinds = int if whole else (int, float)
    words = f"a {'whole ' if whole else ''}number from {low:g} to {high:g}"
    return Option(words, lambda value: isinstance(value, kinds) and type(value) is not bool and low <= value <= high)


def _ascending(one: Option) -> Option:
    def fits(value: Any) -> bool:
        return type(value) is tuple and len(value) == 2 and all(map(one.fits, value)) and value[0] <= value[1]

    return Option(f"two ascending numbers, each {one.words}", fits)


_LEAST = 1e-6  # of what must not be 0

Probability = Annotated[float, number(0, 1)]
Size = Annotated[int, number(1, whole=True)]
Positive = Annotated[float, number(_LEAST)]
Interpolation = Annotated[str, Option("'bilinear' or 'bicubic'", lambda value: value in ("bilinear", "bicubic"))]
Shares = Annotated[tuple[float, float], _ascending(number(_LEAST, 1))]
Ratios = Annotated[tuple[float, float], _ascending(number(_LEAST))]
_PLAIN = {
    bool: Option("true or false", lambda value: type(value) is bool),
    int: number(-schema.MAX_IMAGE_SIDE, whole=True),
    float: number(-schema.MAX_IMAGE_SIDE),
    str: Option("a text", lambda value: isinstance(value, str)),
}


@dataclass(frozen=True)
class Augmentation:
    """What every operation says about itself: nothing outside its file spells its field or puts it into words.

    Attributes:
        name: key of the operation in a policy file.
        field: field of `augmentation_params` that holds its parameters; None when there is nothing to store.
        stored: the `datasets` feature of its parameters, for all options alike.
        stage: where it may stand in a policy: `resize`, then exactly one `crop`, then `image`, then `mix`.
        encoding: of its parameters in Parquet: a dictionary where few values recur, else numbers split into bytes.

    Raises:
        ValueError: for an option that is not what its type allows.
    """

    name: ClassVar[str]
    field: ClassVar[str | None] = None
    stored: ClassVar[Any] = None
    stage: ClassVar[Stage] = "image"
    encoding: ClassVar[Encoding] = "DICTIONARY"

    def __post_init__(self) -> None:
        for option in fields(self):
            value: Any = getattr(self, option.name)
            kind = next(iter(getattr(option.type, "__metadata__", ())), _PLAIN.get(option.type))  # type: ignore[arg-type]
            if kind is not None and not kind.fits(value):
                found = shortened(list(value) if isinstance(value, tuple) else value)
                raise ValueError(f"{self.name}: {option.name} must be {kind.words}, not {found}.")

    @property
    def feature(self) -> Any:
        """The `datasets` feature of the parameters."""
        return self.stored

    def sample(self, rng: np.random.Generator, height: int, width: int) -> Params | None:
        """Draws parameters for an image of `height` x `width` pixels; None where the operation is not applied."""
        return None

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
            Bins in the order of the table that shows them. Under one name each view has one strength, or as in
            RandAugment one for each time that the operation was drawn.
        """
        applied = valid(params)
        yield _title(self.name), "no", ~applied
        yield _title(self.name), "yes", applied


@dataclass(frozen=True)
class ViewAugmentation(Augmentation):
    """An operation on one image."""

    def apply(self, image: Tensor, params: Params, scale: float = 1.0) -> Tensor:
        """Applies what `sample` returned to a uint8 image [3, H, W] without changing it in place.

        `scale` is the replayed output size / the output size at sampling; parameters in output pixels scale with it.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class Crop(ViewAugmentation):
    """The operation that makes a square view: a box of the image, in pixels of what it sees, resized where needed.

    Args:
        size: side of the view in pixels.
    """

    size: Size = 224

    field: ClassVar[str] = "crop"
    stored: ClassVar[Any] = schema.BOX
    stage: ClassVar[Stage] = "crop"
    encoding: ClassVar[Encoding] = "BYTE_STREAM_SPLIT"

    def apply(self, image: Tensor, params: Params, scale: float = 1.0) -> Tensor:
        side = round(self.size * scale)
        return images.resize(images.crop(image, params), side, side)

    def caption(self, params: Params) -> str:
        return ""  # the box is drawn

    def bins(self, params: pa.Array, size: int) -> Iterator[Bin]:
        yield from ()  # all are of one size


@dataclass(frozen=True)
class MixAugmentation(Augmentation):
    """An operation on an image and its partner, applied to whole batches on the device."""

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


def random_sides(rng: np.random.Generator, area: int, scale: Shares, ratio: Ratios) -> tuple[int, int]:
    """Sides of a box whose area is a random share of `area`, and whose first side / second side lies in `ratio`."""
    drawn = area * uniform(rng, *scale)
    quotient = math.exp(uniform(rng, math.log(ratio[0]), math.log(ratio[1])))
    return round(math.sqrt(drawn * quotient)), round(math.sqrt(drawn / quotient))


def placed(rng: np.random.Generator, height: int, width: int, box_height: int, box_width: int) -> images.Box:
    """A box of these sides anywhere inside of `height` x `width` pixels."""
    top = int(rng.integers(0, height - box_height + 1))
    left = int(rng.integers(0, width - box_width + 1))
    return {"top": top, "left": left, "height": box_height, "width": box_width}


def in_percent(span: Shares) -> str:
    """A range of shares in words."""
    return f"{100 * span[0]:.3g} % to {100 * span[1]:.3g} %"


def chance(p: float) -> str:
    """The end of a phrase: how often the operation is applied."""
    return "" if p == 1 else f", with probability {p:g}"


def _title(name: str) -> str:
    return name.replace("_", " ")


def valid(params: pa.Array) -> Mask:
    """Which of T views an operation was applied to, bool [T]: those with parameters, none of which is `false`."""
    applied = params.fill_null(False) if pa.types.is_boolean(params.type) else params.is_valid()
    return np.asarray(applied.to_numpy(zero_copy_only=False))


def numbers(params: pa.StructArray, name: str) -> NDArray[np.float64]:
    """A field of the parameters of T views, 0 where the operation was not applied."""
    return np.asarray(params.field(name).fill_null(0).to_numpy(zero_copy_only=False), np.float64)


def area(boxes: pa.StructArray) -> NDArray[np.float64]:
    """Areas of T boxes, 0 where there is none."""
    return numbers(boxes, "height") * numbers(boxes, "width")


def ranges(name: str, words: str, params: pa.Array, shares: NDArray[np.float64], *edges: float) -> Iterator[Bin]:
    """Bins of T shares between 0 and 1 of something (`words`), "none" first; they end at the ascending edges and 1."""
    applied = valid(params)
    yield name, "none", ~applied
    for low, high in zip((0.0, *edges), (*edges, 1.0), strict=True):
        inside = applied & ((shares > low) | (low == 0)) & ((shares <= high) | (high == 1))
        span = f"above {100 * low:.3g}" if high == 1 else f"{100 * low:.3g} to {100 * high:.3g}"
        yield name, f"{span} % {words}", inside
