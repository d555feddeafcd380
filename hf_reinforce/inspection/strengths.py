"""Which views of a batch had which operation, and how strong it was."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hf_reinforce import schema
from hf_reinforce.augmentations import RandomResizedCrop
from hf_reinforce.config import ReinforcementConfig

Mask = NDArray[np.bool_]

_CROP_STEPS = range(-3, 4)  # sides of a crop, in factors of sqrt(2) of the view's side
_ERASED = ((0.0, 0.1), (0.1, 0.2), (0.2, 1.0))  # shares of the view
_MIXED = ((0.0, 0.25), (0.25, 0.5), (0.5, 0.75), (0.75, 1.0))  # weight of the image itself, or shares of the view
_NAMES = (
    *("crop, side", "horizontal flip", "RandAugment", *schema.RAND_AUGMENT_OPERATIONS),
    *("erasing", "mixup", "cutmix"),
)


def strengths(params: pa.StructArray, config: ReinforcementConfig) -> Iterator[tuple[str, str, Mask]]:
    """Sorts the views of a batch by operation and strength; operations overlap, the strengths of one do not.

    Args:
        params: augmentation parameters of T views.
        config: their configuration.

    Yields:
        Name of an operation, its strength in words, and which views had it: bool [T]. Crops are told apart by the
        square root of their area; those of a policy whose crops are all of one size are left out.
    """
    size = config.policy.image_size
    names = {params.type.field(i).name for i in range(params.type.num_fields)}
    if any(isinstance(operation, RandomResizedCrop) for operation in config.policy.operations):
        yield from _crops(params.field(schema.CROP), size)
    if schema.HFLIP in names:
        flipped = params.field(schema.HFLIP).fill_null(False).to_numpy(zero_copy_only=False)
        yield "horizontal flip", "no", ~flipped
        yield "horizontal flip", "yes", flipped
    if schema.RAND_AUGMENT in names:
        yield from _rand_augment(params.field(schema.RAND_AUGMENT))
    if schema.ERASE in names:
        erase = params.field(schema.ERASE)
        yield from _shares("erasing", "of the view", _valid(erase), _area(erase) / size**2, _ERASED)
    if schema.MIXUP in names:
        mixup = params.field(schema.MIXUP)
        yield from _shares("mixup", "own image", _valid(mixup), _numbers(mixup, "lam"), _MIXED)
    if schema.CUTMIX in names:
        cutmix = params.field(schema.CUTMIX)
        yield from _shares("cutmix", "of the view", _valid(cutmix), _area(cutmix) / size**2, _MIXED)


def order(operation: str, strength: str) -> tuple[int, float]:
    """Sorts what `strengths` yields: operations as they are applied, magnitudes by their value."""
    magnitude = float(strength or 0) if operation in schema.RAND_AUGMENT_OPERATIONS else 0.0
    return _NAMES.index(operation), magnitude


def mixed(params: pa.StructArray) -> Mask:
    """Which views are mixed with another image, so that their targets are not about the label alone: bool [T]."""
    names = {params.type.field(i).name for i in range(params.type.num_fields)}
    found = np.zeros(len(params), dtype=np.bool_)
    for name in names & {schema.MIXUP, schema.CUTMIX}:
        found |= _valid(params.field(name))
    return found


def _crops(crop: pa.StructArray, size: int) -> Iterator[tuple[str, str, Mask]]:
    ratio = np.sqrt(np.maximum(_area(crop), 1)) / size
    steps = np.clip(np.floor(2 * np.log2(ratio)), _CROP_STEPS[0], _CROP_STEPS[-1])
    for step in _CROP_STEPS:
        low, high = (size * 2 ** (edge / 2) for edge in (step, step + 1))
        words = f"{low:.0f} to {high:.0f} px"
        if step == _CROP_STEPS[0]:
            words = f"below {high:.0f} px"
        elif step == _CROP_STEPS[-1]:
            words = f"above {low:.0f} px"
        yield "crop, side", words, np.equal(steps, step)


def _rand_augment(lists: Any) -> Iterator[tuple[str, str, Mask]]:
    count = lists.type.list_size
    steps = lists.values.slice(lists.offset * count, len(lists) * count)  # flatten() would drop those of null lists
    drawn = steps.field("op").fill_null(-1).to_numpy(zero_copy_only=False).reshape(-1, count)
    drawn = np.where(_valid(lists)[:, None], drawn, -1)
    magnitudes = steps.field("magnitude").fill_null(0).to_numpy(zero_copy_only=False).reshape(-1, count)
    yield "RandAugment", "none", np.asarray((drawn < 0).all(axis=1))
    for index, name in enumerate(schema.RAND_AUGMENT_OPERATIONS):
        own = drawn == index
        for magnitude in np.unique(magnitudes[own]):
            words = f"{magnitude:.3g}" if magnitude else ""
            yield name, words, (own & (magnitudes == magnitude)).any(axis=1)


def _shares(
    name: str, words: str, valid: Mask, share: NDArray[np.float64], ranges: tuple[tuple[float, float], ...]
) -> Iterator[tuple[str, str, Mask]]:
    yield name, "none", ~valid
    for low, high in ranges:
        inside = valid & ((share > low) | (low == 0)) & ((share <= high) | (high == ranges[-1][1]))
        span = f"above {100 * low:.3g}" if high == 1 else f"{100 * low:.3g} to {100 * high:.3g}"
        yield name, f"{span} % {words}", inside


def _valid(array: Any) -> Mask:
    found: Mask = array.is_valid().to_numpy(zero_copy_only=False)
    return found


def _numbers(structs: Any, name: str) -> NDArray[np.float64]:
    found: NDArray[np.float64] = structs.field(name).fill_null(0).to_numpy(zero_copy_only=False).astype(np.float64)
    return found


def _area(boxes: Any) -> NDArray[np.float64]:
    return _numbers(boxes, "height") * _numbers(boxes, "width")
