"""Records of the original implementation (apple/ml-dr) as columns: parameters and probabilities.

`docs/import.md` says how its semantics are carried over. Columns are NumPy arrays over records: `field` holds the
values, `field?` whether there are any, and `partner/field` those of a mixed image's partner.
"""

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

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
    Resize,
    ViewAugmentation,
)
from hf_reinforce.augmentations.policies import AugmentationPolicy
from hf_reinforce.augmentations.rand_augment import OPERATIONS
from hf_reinforce.importers.ml_dr.config import TRANSFORMS, WITHOUT_PARAMETERS
from hf_reinforce.targets.class_distribution import FIELDS, ClassDistribution, Targets, encode

Columns = dict[str, NDArray[Any]]

PARTNER = "partner/"
_FLOOR = 1e-7
"""Smallest mass of the classes outside of the top k: the error of a sum of float32 probabilities."""

_NAMES = {cls: name for name, (cls, _, _) in TRANSFORMS.items()}
_OP_INDEX = {name: index for index, name in enumerate(OPERATIONS)}


def read_record(value: Any, policy: AugmentationPolicy, num_classes: int) -> tuple[int, Columns]:
    """One image's record, `(index, [{"params": ..., "prob": ...}] * N)`, checked, as columns over its reinforcements.

    Returns:
        The index of the image in the original's dataset, and the columns.

    Raises:
        ValueError: if it is no such record, or not one of this policy and so many classes.
    """
    try:
        if not isinstance(value, (tuple, list)) or len(value) != 2:
            raise ValueError("it is no index with a list of params and prob")
        index, items = value
        params, probs = [item["params"] for item in items], [item["prob"] for item in items]
        if type(index) is not int or not params or any(len(item) != 2 for item in items):
            raise ValueError("it is no index with a list of params and prob")
        if isinstance(params[0], dict):
            params = [_compressed(item, policy) for item in params]
        columns, values = _partner_column(params, policy)
        paired = columns[schema.PARTNER_ROW] >= 0
        for operation in policy.view_operations:
            own = found = next(values)
            if policy.mix_operations:
                own = [pair[0] if mixed else pair for pair, mixed in zip(found, paired, strict=True)]
                other = [pair[1] if mixed else None for pair, mixed in zip(found, paired, strict=True)]
                columns |= _view_columns(operation, other, PARTNER, policy.image_size)
                if operation.stage == "crop" and not np.array_equal(columns[f"{PARTNER}{operation.field}?"], paired):
                    raise ValueError("a mixed image has no crop of its partner")
            columns |= _view_columns(operation, own, "", policy.image_size)
        mixed = np.zeros(len(items), dtype=bool)
        for mixing in policy.mix_operations:
            columns |= _mix_columns(mixing, next(values), policy.image_size)
            mixed |= columns[f"{mixing.field}?"]
        if not columns[f"{Crop.field}?"].all() or not np.array_equal(mixed, paired):
            raise ValueError("a crop is missing, or a partner is named where nothing is mixed, or the reverse")
        return index, columns | _target_columns(probs, num_classes)
    except (TypeError, KeyError, IndexError, AttributeError, OverflowError) as error:
        raise ValueError(f"it does not have the expected structure ({type(error).__name__}: {error})") from error


def _partner_column(params: list[Any], policy: AugmentationPolicy) -> tuple[Columns, Iterator[Sequence[Any]]]:
    """The indices of the partners, -1 without one, and the values of each further transform, over the records."""
    width = len(policy.operations) + bool(policy.mix_operations)
    if {len(item) for item in params} != {width}:
        raise ValueError(
            f"it has {len(params[0])} parameters where policy {policy.name!r} stores {width}, "
            "so it was made with another policy"
        )
    values = zip(*params, strict=True)
    ids = next(values) if policy.mix_operations else [None] * len(params)
    rows = np.array([-1 if i is None else i if type(i) is int and i >= 0 else -2 for i in ids])
    if rows.dtype.kind != "i" or (rows < -1).any():
        raise ValueError("the index of a partner is not a natural number")
    return {schema.PARTNER_ROW: rows}, values


def _compressed(item: dict[str, Any], policy: AugmentationPolicy) -> list[Any]:
    """The uncompressed parameters of a record, by name and always in pairs, as the compressed ones.

    These are a list by position: in policies that mix the partner's index or None, then for each transform the value,
    or own and partner's value where there is a partner, then the values of the mixing operations.
    """
    mixing = [operation.name for operation in policy.mix_operations]
    names = [_NAMES[type(operation)] for operation in policy.view_operations]
    unknown = item.keys() - {*names, *mixing, *WITHOUT_PARAMETERS, *(["id2"] if mixing else [])}
    if unknown:
        raise ValueError(f"it has parameters of {sorted(unknown)}, which {policy.name!r} does not use")
    mixed = any(item[name] is not None for name in mixing)
    result = [item["id2"] if mixed else None] if mixing else []
    for name in names:
        pair = item[name]
        if name == RandAugment.name:
            pair = [steps and [(_OP_INDEX[op], magnitude) for op, magnitude in steps] for steps in pair]
        result.append(pair if mixed else pair[0])
    for name in mixing:
        value = item[name]
        result.append([value[0], *value[1]] if name == CutMix.name and value is not None else value)
    return result


def _types(values: Any, depth: int) -> set[type]:
    """The types of what lies so deep in nested lists; NumPy would follow lists in lists to any depth and size."""
    for _ in range(depth):
        values = chain.from_iterable(values)
    return set(map(type, values))


_NUMBERS: dict[str, set[type]] = {"b": {bool}, "i": {int}, "if": {int, float}}


def _numbers(
    what: str, values: Sequence[Any], shape: tuple[int, ...], kinds: str
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Values that may be None as an array [R, *shape], and which of them are not."""
    valid = np.array([value is not None for value in values]) if None in values else np.ones(len(values), dtype=bool)
    wrong = ValueError(f"{what} is not {' x '.join(map(str, shape)) or 'one'} of the expected type")
    present = [v for v in values if v is not None]
    if not _types(present, len(shape)) <= _NUMBERS[kinds]:
        raise wrong
    try:
        array = np.array(present) if present else np.zeros((0, *shape), int)
    except ValueError as error:  # of different lengths
        raise wrong from error
    if array.shape[1:] != shape or (array.dtype.kind not in kinds and valid.any()):
        raise wrong
    if valid.all():
        return array, valid
    result = np.zeros((len(values), *shape), array.dtype)
    result[valid] = array
    return result, valid


def _view_columns(operation: ViewAugmentation, values: Sequence[Any], prefix: str, image_size: int) -> Columns:
    name, low, high = operation.name, 0, image_size
    if isinstance(operation, Resize):
        listed = [v if isinstance(v, (list, tuple)) else [v] for v in values if v is not None]
        sizes = set(map(tuple, listed)) if _types(listed, 1) <= {int} else {()}
        if not sizes <= {(operation.size,), (operation.size, operation.size)}:
            raise ValueError(f"it was resized to {sizes}, not to {operation.size} pixels")
        return {}
    if isinstance(operation, HorizontalFlip):
        array, valid = _numbers(name, values, (), "b")
        return {f"{prefix}{operation.field}": array.astype(bool), f"{prefix}{operation.field}?": valid}
    if isinstance(operation, RandAugment):
        array, valid = _numbers(name, values, (operation.num_ops, 2), "if")
        ops = array[..., 0]
        if (
            not (abs(array) <= schema.MAX_IMAGE_SIDE).all()
            or ((ops < 0) | (ops >= len(_OP_INDEX)) | (ops != np.floor(ops))).any()
        ):
            raise ValueError(f"an operation of {name} is not one of 0 to {len(_OP_INDEX) - 1}, or has no magnitude")
        return {f"{prefix}{operation.field}": array, f"{prefix}{operation.field}?": valid}
    if isinstance(operation, RandomCrop):
        offsets, valid = _numbers(name, values, (2,), "i")
        array = np.concatenate([offsets - operation.padding, np.full_like(offsets, operation.size)], axis=1)
        low, high = -operation.padding, schema.MAX_IMAGE_SIDE
    else:
        array, valid = _numbers(name, values, (4,), "i")
    if isinstance(operation, RandomResizedCrop):
        high = schema.MAX_IMAGE_SIDE
    if isinstance(operation, RandomErasing):
        valid = valid & (array[:, 0] != -1)  # no box was found
    boxes = array[valid]
    if (boxes[:, :2] < low).any() or (boxes[:, 2:] < 1).any() or (boxes[:, :2] + boxes[:, 2:] > high).any():
        raise ValueError(f"a box of {name} lies outside of {low} to {high} pixels")
    return {f"{prefix}{operation.field}": array, f"{prefix}{operation.field}?": valid}


def _mix_columns(operation: Any, values: Sequence[Any], image_size: int) -> Columns:
    if isinstance(operation, MixUp):
        array, valid = _numbers(operation.name, values, (), "if")
        if not ((array >= 0) & (array <= 1)).all():
            raise ValueError("a weight of mixup does not lie in [0, 1]")
        return {operation.field: array[:, None], f"{operation.field}?": valid}
    array, valid = _numbers(operation.name, values, (5,), "if")
    edges = array[:, 1:]  # x is the row and y the column: top, left, bottom, right
    if (edges != np.floor(edges)).any() or not ((edges >= 0) & (edges <= image_size)).all():
        raise ValueError(f"a box of cutmix lies outside of 0 to {image_size} pixels")
    edges = edges.astype(np.int64)
    if (edges[:, 2:] < edges[:, :2]).any():
        raise ValueError("a box of cutmix has a negative side")
    boxes = np.concatenate([edges[:, :2], edges[:, 2:] - edges[:, :2]], axis=1)
    return {operation.field: boxes, f"{operation.field}?": valid}


def _target_columns(probs: list[Any], num_classes: int) -> Columns:
    """Top k sorted by probability (ties by class), and the logarithms of the probabilities and of the rest."""
    wrong = ValueError("prob is not a list of probabilities with as many classes, of the same length everywhere")
    if not _types((pair[0] for pair in probs), 1) <= {int, float} or _types((pair[1] for pair in probs), 1) != {int}:
        raise wrong
    try:
        p, label = np.array([pair[0] for pair in probs]), np.array([pair[1] for pair in probs])
    except ValueError as error:  # of different lengths
        raise wrong from error
    if p.ndim != 2 or p.shape != label.shape or label.dtype.kind != "i" or {len(pair) for pair in probs} != {2}:
        raise wrong
    if ((label < 0) | (label >= num_classes)).any():
        raise ValueError(f"it has class {label.max()}, but there are {num_classes} classes")
    if p.dtype.kind not in "if" or not ((p >= 0) & (p <= 1.001)).all() or (p.sum(axis=1) > 1.001).any():
        raise ValueError("its probabilities do not lie in [0, 1] or sum to more than 1")
    by_class = label.argsort(axis=1)
    p, label = np.take_along_axis(p, by_class, 1), np.take_along_axis(label, by_class, 1)
    if (label[:, 1:] == label[:, :-1]).any():
        raise ValueError("it names a class twice")
    order = (-p).argsort(axis=1, kind="stable")
    p, label = np.take_along_axis(p, order, 1), np.take_along_axis(label, order, 1)
    rest = np.log(np.maximum(1.0 - p.sum(axis=1), _FLOOR)) if p.shape[1] < num_classes else np.full(len(p), -np.inf)
    value = np.log(np.clip(p, 1e-30, 1.0))
    return dict(zip(FIELDS, (label, value.astype(np.float32), rest.astype(np.float32)), strict=True))


def params_array(columns: Columns, kind: Any, prefix: str = "") -> pa.StructArray:
    """The `augmentation_params` structs, of Arrow type `kind`."""
    arrays = []
    for field in kind:
        if field.name == schema.PARTNER_ROW:
            rows = columns[schema.PARTNER_ROW]
            arrays.append(pa.array(rows, pa.int64(), mask=rows < 0))
        elif field.name == schema.PARTNER_PARAMS:
            arrays.append(params_array(columns, field.type, PARTNER))
        else:
            values, missing = columns[prefix + field.name], ~columns[f"{prefix}{field.name}?"]
            arrays.append(_leaf(values, missing, field.type))
    unmixed = pa.array(columns[schema.PARTNER_ROW] < 0) if prefix else None
    return pa.StructArray.from_arrays(arrays, fields=list(kind), mask=unmixed)


def _leaf(values: NDArray[Any], missing: NDArray[np.bool_], kind: Any) -> pa.Array:
    if pa.types.is_boolean(kind):
        return pa.array(values, mask=missing)
    if pa.types.is_fixed_size_list(kind):
        steps = _structs(values.reshape(-1, values.shape[-1]), kind.value_type, None)
        return pa.FixedSizeListArray.from_arrays(steps, type=kind, mask=pa.array(missing))
    return _structs(values, kind, pa.array(missing))


def _structs(values: NDArray[Any], kind: Any, missing: pa.Array | None) -> pa.StructArray:
    arrays = [pa.array(values[:, i].astype(field.type.to_pandas_dtype())) for i, field in enumerate(kind)]
    return pa.StructArray.from_arrays(arrays, fields=list(kind), mask=missing)


def records_array(columns: Columns, target: ClassDistribution) -> pa.StructArray:
    """The records of a target, rounded to the codebook."""
    return target.records(encode(Targets(*(torch.from_numpy(columns[field]) for field in FIELDS))))
