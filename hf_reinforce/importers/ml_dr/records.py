"""Records of the original implementation (apple/ml-dr) as parameters of schema v1 and targets.

`docs/import.md` says how its semantics are carried over. Each value's type is checked before anything else looks at
it: a value that nobody expects may unfold without end.
"""

from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch

from hf_reinforce import schema
from hf_reinforce.augmentations import (
    Crop,
    CutMix,
    HorizontalFlip,
    MixUp,
    RandAugment,
    RandomCrop,
    RandomErasing,
    RandomResizedCrop,
)
from hf_reinforce.augmentations.documents import shortened
from hf_reinforce.augmentations.policies import AugmentationPolicy
from hf_reinforce.augmentations.rand_augment import OPERATIONS
from hf_reinforce.importers.ml_dr.config import TRANSFORMS, WITHOUT_PARAMETERS
from hf_reinforce.targets.class_distribution import Targets

_FLOOR = 1e-7
"""Smallest mass of the classes outside of the top k: the error of a sum of float32 probabilities."""

_NAMES = {cls: name for name, (cls, _, _) in TRANSFORMS.items()}
_OP_INDEX = {name: index for index, name in enumerate(OPERATIONS)}


def read_record(value: Any, policy: AugmentationPolicy, num_classes: int) -> tuple[int, list[dict[str, Any]], Targets]:
    """One image's record, `(index, [{"params": ..., "prob": ...}] * N)`, checked.

    Returns:
        The index of the image in the original's dataset, the `augmentation_params` of its N reinforcements, with the
        partner's index for its row, and their N targets, not rounded.

    Raises:
        ValueError: if it is no such record, or not one of this policy and so many classes.
    """
    try:
        if not isinstance(value, (tuple, list)) or len(value) != 2:
            raise ValueError("it is no index with a list of params and prob")
        index, items = value
        if type(index) is not int or not items or any(len(item) != 2 for item in items):
            raise ValueError("it is no index with a list of params and prob")
        params = [_params(item["params"], policy) for item in items]
        return index, params, _targets([item["prob"] for item in items], num_classes)
    except (TypeError, KeyError, IndexError, AttributeError, OverflowError) as error:
        raise ValueError(f"it does not have the expected structure ({type(error).__name__}: {error})") from error


def _params(stored: Any, policy: AugmentationPolicy) -> dict[str, Any]:
    """The parameters of one reinforcement.

    They are stored as a list: in policies that mix first the partner's index or None, then for each transform the
    value, or own and partner's value where there is a partner, then the values of the mixing operations.
    """
    values = iter(_listed(stored, policy) if isinstance(stored, dict) else stored)
    width = len(policy.operations) + bool(policy.mix_operations)
    if not isinstance(stored, dict) and len(stored) != width:
        raise ValueError(
            f"it has {len(stored)} parameters where policy {policy.name!r} stores {width}, so it was made with "
            "another policy"
        )
    partner = next(values) if policy.mix_operations else None
    if partner is not None and (type(partner) is not int or partner < 0):
        raise ValueError("the index of a partner is not a natural number")
    own: dict[str, Any] = {}
    other: dict[str, Any] = {}
    for operation in policy.view_operations:
        mine, partners = (next(values), None) if partner is None else next(values)
        if operation.field is None:
            _check_resized(operation, mine)
            continue
        own[operation.field] = None if mine is None else _value(operation, mine, policy.image_size)
        other[operation.field] = None if partners is None else _value(operation, partners, policy.image_size)
    for mixing in policy.mix_operations:
        mine = next(values)
        own[mixing.field] = None if mine is None else _value(mixing, mine, policy.image_size)
    if own[Crop.field] is None or policy.mixes(own) != (partner is not None):
        raise ValueError("a crop is missing, or a partner is named where nothing is mixed, or the reverse")
    if partner is not None and other[Crop.field] is None:
        raise ValueError("a mixed image has no crop of its partner")
    if policy.mix_operations:
        own |= {schema.PARTNER_ROW: partner, schema.PARTNER_PARAMS: None if partner is None else other}
    return own


def _listed(stored: dict[str, Any], policy: AugmentationPolicy) -> list[Any]:
    """The parameters that the original stores uncompressed, by name and always in pairs, as a list."""
    mixing = [operation.name for operation in policy.mix_operations]
    names = [_NAMES[type(operation)] for operation in policy.view_operations]
    unknown = stored.keys() - {*names, *mixing, *WITHOUT_PARAMETERS, *(["id2"] if mixing else [])}
    if unknown:
        raise ValueError(f"it has parameters of {shortened(unknown)}, which {policy.name!r} does not use")
    mixed = any(stored[name] is not None for name in mixing)
    values = [stored[name] if mixed else stored[name][0] for name in names]
    return [*([stored["id2"] if mixed else None] if mixing else []), *values, *(stored[name] for name in mixing)]


def _check_resized(operation: Any, value: Any) -> None:
    sides = value if isinstance(value, (list, tuple)) else [operation.size if value is None else value]
    if len(sides) not in (1, 2) or any(type(side) is not int or side != operation.size for side in sides):
        raise ValueError(f"it was not resized to {operation.size} pixels")


def _value(operation: Any, value: Any, image_size: int) -> Any:
    """The parameters of one operation as it stores them itself."""
    name = operation.name
    if isinstance(operation, HorizontalFlip):
        if type(value) is not bool:
            raise ValueError(f"{name} is not one of the expected type")
        return value
    if isinstance(operation, MixUp):
        if type(value) not in (int, float) or not 0 <= value <= 1:
            raise ValueError("a weight of mixup does not lie in [0, 1]")
        return {"lam": value}
    if isinstance(operation, RandAugment):
        return [_step(*step) for step in _several(name, value, operation.num_ops, {tuple, list})]
    if isinstance(operation, CutMix):  # its lam, then x1, y1, x2, y2, of which x is the row; perhaps in a list
        value = [value[0], *value[1]] if len(value) == 2 else value
        edges = _several(name, value, 5, {int, float})[1:]
        if not all(0 <= edge <= image_size and edge == int(edge) for edge in edges):
            raise ValueError(f"a box of cutmix lies outside of 0 to {image_size} pixels")
        top, left, bottom, right = map(int, edges)
        if bottom < top or right < left:
            raise ValueError("a box of cutmix has a negative side")
        return {"top": top, "left": left, "height": bottom - top, "width": right - left}
    low, high = 0, schema.MAX_IMAGE_SIDE if isinstance(operation, RandomResizedCrop) else image_size
    if isinstance(operation, RandomCrop):
        low, high = -operation.padding, schema.MAX_IMAGE_SIDE
        top, left = (offset - operation.padding for offset in _several(name, value, 2, {int}))
        height = width = operation.size
    else:
        top, left, height, width = _several(name, value, 4, {int})
    if isinstance(operation, RandomErasing) and top == -1:  # no box was found
        return None
    if min(top, left) < low or min(height, width) < 1 or max(top + height, left + width) > high:
        raise ValueError(f"a box of {name} lies outside of {low} to {high} pixels")
    return {"top": top, "left": left, "height": height, "width": width}


def _several(name: str, value: Any, count: int, kinds: set[type]) -> Sequence[Any]:
    if type(value) not in (tuple, list) or len(value) != count or not {*map(type, value)} <= kinds:
        raise ValueError(f"{name} is not {count} of the expected type")
    return value  # type: ignore[no-any-return]


def _step(op: Any, magnitude: Any) -> dict[str, Any]:
    """One operation of RandAugment, by number or, uncompressed, by name."""
    number = _OP_INDEX.get(op, -1) if isinstance(op, str) else op
    if type(number) not in (int, float) or number not in range(len(OPERATIONS)):
        raise ValueError(f"an operation of rand_augment is not one of 0 to {len(OPERATIONS) - 1}")
    if type(magnitude) not in (int, float) or not abs(magnitude) <= schema.MAX_IMAGE_SIDE:
        raise ValueError("an operation of rand_augment has no magnitude")
    return {"op": int(number), "magnitude": magnitude}


def _targets(probs: list[Any], num_classes: int) -> Targets:
    """Top k sorted by probability (ties by class), and the logarithms of the probabilities and of the rest."""
    values, classes = [pair[0] for pair in probs], [pair[1] for pair in probs]
    if (
        {len(pair) for pair in probs} != {2}
        or len({len(item) for item in (*values, *classes)}) != 1
        or not {*map(type, chain.from_iterable(values))} <= {int, float}
        or {*map(type, chain.from_iterable(classes))} != {int}
    ):
        raise ValueError("prob is not a list of probabilities with as many classes, of the same length everywhere")
    p, label = np.array(values, float), np.array(classes)
    if ((label < 0) | (label >= num_classes)).any():
        raise ValueError(f"it has class {label.max()}, but there are {num_classes} classes")
    if not ((p >= 0) & (p <= 1.001)).all() or (p.sum(axis=1) > 1.001).any():
        raise ValueError("its probabilities do not lie in [0, 1] or sum to more than 1")
    if any(len(set(item)) < len(item) for item in classes):
        raise ValueError("it names a class twice")
    order = np.lexsort((label, -p))
    p, label = np.take_along_axis(p, order, 1), np.take_along_axis(label, order, 1)
    rest = np.log(np.maximum(1.0 - p.sum(axis=1), _FLOOR)) if p.shape[1] < num_classes else np.full(len(p), -np.inf)
    value = np.log(np.clip(p, 1e-30, 1.0))
    return Targets(torch.from_numpy(label), torch.from_numpy(value).float(), torch.from_numpy(rest).float())
