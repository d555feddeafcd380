"""Policies and columns in words, for cards."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from fractions import Fraction
from typing import Any

from datasets import ClassLabel, Features, Image, List

from hf_reinforce import schema
from hf_reinforce.cards.markdown import code
from hf_reinforce.config import ReinforcementConfig
from hf_reinforce.policies import AugmentationPolicy


def _share(value: float) -> str:
    return f"{100 * value:.3g} %"


def _ratio(value: float) -> str:
    fraction = Fraction(value).limit_denominator(10)
    return str(fraction) if abs(float(fraction) - value) < 1e-6 else f"{value:g}"


def _chance(p: float) -> str:
    return "" if p == 1 else f", with probability {p:g}"


_WORDS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "resize": lambda o: f"resize the shorter side to {o['size']} pixels ({o['interpolation']})",
    "random_resized_crop": lambda o: (
        f"random crop of {_share(o['scale'][0])} to {_share(o['scale'][1])} of the area, aspect ratio "
        f"{_ratio(o['ratio'][0])} to {_ratio(o['ratio'][1])}, resized to {o['size']} x {o['size']} pixels "
        f"({o['interpolation']})"
    ),
    "random_crop": lambda o: (
        f"random crop of {o['size']} x {o['size']} pixels, padded with {o['padding']} black pixels"
    ),
    "center_crop": lambda o: f"central crop of {o['size']} x {o['size']} pixels",
    "horizontal_flip": lambda o: f"mirrored left to right{_chance(o['p'])}",
    "rand_augment": lambda o: f"RandAugment: {o['num_ops']} operations at magnitude {o['magnitude']}{_chance(o['p'])}",
    "random_erasing": lambda o: (
        f"RandomErasing: a box of {_share(o['scale'][0])} to {_share(o['scale'][1])} of the view becomes black"
        f"{_chance(o['p'])}"
    ),
    "mixup": lambda o: f"MixUp with another image, weight from Beta({o['alpha']:g}, {o['alpha']:g}){_chance(o['p'])}",
    "cutmix": lambda o: (
        f"CutMix: a box of another image, area from Beta({o['alpha']:g}, {o['alpha']:g}){_chance(o['p'])}"
    ),
}


def policy_steps(policy: AugmentationPolicy) -> list[str]:
    """The operations of a policy with their parameters, one phrase each, in the order of their application."""
    return [_WORDS.get(operation.name, _options)(asdict(operation)) for operation in policy.operations]


def _options(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in options.items())


_MEANINGS = {
    (schema.SOURCE_ROW,): "row of the image in the source split, from 0",
    (schema.IMAGE_HASH,): "xxh3-64 of the encoded image file, which tells whether an image is the right one",
    (schema.AUGMENTATION_PARAMS,): "the N augmentations; null: not applied to this view",
    (schema.AUGMENTATION_PARAMS, schema.CROP): "box in pixels of the image that is cropped",
    (schema.AUGMENTATION_PARAMS, schema.HFLIP): "mirrored left to right",
    (schema.AUGMENTATION_PARAMS, schema.RAND_AUGMENT): "operations in order, each with its signed magnitude",
    (schema.AUGMENTATION_PARAMS, schema.ERASE): "black box in pixels of the view",
    (schema.AUGMENTATION_PARAMS, schema.MIXUP): "weight of the image's own pixels",
    (schema.AUGMENTATION_PARAMS, schema.CUTMIX): "box in pixels of the view that shows the partner",
    (schema.AUGMENTATION_PARAMS, schema.PARTNER_ROW): "`source_row` of the image that this view is mixed with",
    (schema.AUGMENTATION_PARAMS, schema.PARTNER_PARAMS): "how the partner was augmented; null: as in its own row",
    (schema.TEACHER_LOGITS,): "the N targets: the teacher's answers to these views",
    (schema.TEACHER_LOGITS, schema.LABEL): "the K most likely classes, most likely first",
    (schema.TEACHER_LOGITS, schema.VALUE): "their log-probabilities (natural logarithm)",
    (schema.TEACHER_LOGITS, schema.TAIL): "log of the probability of all other classes together",
}


def column_rows(features: Mapping[str, Features], configs: Mapping[str, ReinforcementConfig]) -> list[list[str]]:
    """The columns of all configurations as rows of a table: name, type, meaning.

    Fields that only some of the configurations have say which.
    """
    found: dict[tuple[str, ...], dict[str, str]] = {}
    for name, of_config in features.items():
        for path, feature in _fields(of_config):
            found.setdefault(path, {})[name] = _type(path, feature, configs[name])
    columns = list(dict.fromkeys(path[0] for path in found))
    fields = list(_MEANINGS)
    rows = []
    for path in sorted(found, key=lambda path: (columns.index(path[0]), fields.index(path) if path in fields else -1)):
        types = found[path]
        meaning = _MEANINGS.get(path, "from the source")
        if len(types) < len(features):
            meaning += f" (only {', '.join(code(name) for name in types)})"
        shown = code(path[0]) if len(path) == 1 else f"&nbsp;&nbsp;{code('.' + path[1])}"
        rows.append([shown, " or ".join(dict.fromkeys(types.values())), meaning])
    return rows


def _fields(columns: Features) -> list[tuple[tuple[str, ...], Any]]:
    """Columns, and the fields of the two that hold one struct for each reinforcement."""
    found: list[tuple[tuple[str, ...], Any]] = []
    for name, feature in columns.items():
        found.append(((name,), feature))
        if name in (schema.AUGMENTATION_PARAMS, schema.TEACHER_LOGITS):
            found += [((name, field), inner) for field, inner in feature.feature.items()]
    return found


def _type(path: tuple[str, ...], feature: Any, config: ReinforcementConfig) -> str:
    if path in ((schema.AUGMENTATION_PARAMS,), (schema.TEACHER_LOGITS,)):
        return f"list of N = {config.num_samples:,} structs"
    if path == (schema.AUGMENTATION_PARAMS, schema.PARTNER_PARAMS):
        return "struct: the parameters of a view"
    if path[0] == schema.TEACHER_LOGITS and isinstance(feature, List):
        return f"list of K = {config.top_k} {feature.feature.dtype}"
    return _plain_type(feature)


def _plain_type(feature: Any) -> str:
    if feature == schema.BOX:
        return "box: top, left, height, width (int16)"
    if isinstance(feature, ClassLabel):
        return f"class label ({feature.num_classes:,} classes)"
    if isinstance(feature, Image):
        return "image"
    if isinstance(feature, List):
        length = f"list of {feature.length}" if feature.length >= 0 else "list of"
        return f"{length} {_plain_type(feature.feature).replace('struct', 'structs', 1)}"
    if isinstance(feature, dict):
        return "struct: " + ", ".join(f"{code(name)}: {_plain_type(inner)}" for name, inner in feature.items())
    return code(feature.dtype if hasattr(feature, "dtype") else type(feature).__name__)
