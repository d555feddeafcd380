"""The configuration of the original implementation (apple/ml-dr), and the policy that it describes."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from hf_reinforce.augmentations import (
    CutMix,
    HorizontalFlip,
    MixUp,
    RandAugment,
    RandomCrop,
    RandomErasing,
    RandomResizedCrop,
    Resize,
)
from hf_reinforce.augmentations.documents import shortened
from hf_reinforce.augmentations.policies import POLICY_NAMES, AugmentationPolicy, named_policy, read_operation
from hf_reinforce.importers.ml_dr.unpickling import Member, safe_load

# The transforms that store parameters, in the order of their application: class, options with the original's defaults,
# and options that are supported at one value only; None: at any, because it is in the stored weights.
_SCALE, _RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
_PADDED = {"pad_if_needed": [False], "fill": [0], "padding_mode": ["constant"]}
_BLACK = {"value": [0], "inplace": [False]}
TRANSFORMS: dict[str, tuple[Any, dict[str, Any], dict[str, Any]]] = {
    "resize": (Resize, {"size": None}, {}),
    "random_crop": (RandomCrop, {"size": None, "padding": 0}, _PADDED),
    "random_resized_crop": (RandomResizedCrop, {"size": None, "scale": _SCALE, "ratio": _RATIO}, {}),
    "random_horizontal_flip": (HorizontalFlip, {"p": 0.5}, {}),
    "rand_augment": (
        RandAugment,
        {"num_ops": 2, "magnitude": 9, "p": 1.0},
        {"num_magnitude_bins": [31], "fill": [None]},
    ),
    "random_erase": (RandomErasing, {"p": 0.5, "scale": (0.02, 0.33), "ratio": (0.3, 3.3)}, _BLACK),
    "mixup": (MixUp, {"alpha": 1.0, "p": 1.0}, {"div_by": None}),
    "cutmix": (CutMix, {"alpha": 1.0, "p": 1.0}, {}),
}
WITHOUT_PARAMETERS = ("uint8", "to_tensor", "normalize")


class OriginalConfig(NamedTuple):
    """What an import reads in a `config.pth.tar`, as far as it is said there."""

    policy: AugmentationPolicy
    num_classes: int | None
    teachers: list[str]  # their names
    normalize: dict[str, list[float]]  # `mean` and `std` of their inputs


def read_config(member: Member) -> OriginalConfig:
    """The original's configuration; a ValueError if the file is none, or has what has no counterpart here."""
    config = safe_load(member.data, member.name)
    try:
        augmentation = {name: {**options} for name, options in config["reinforce"]["image_augmentation"].items()}
        normalize = {key: [*augmentation.get("normalize", {}).get(key, ())] for key in ("mean", "std")}
        teachers, num_classes = config.get("teacher", {}).get("name") or "unknown", config.get("num_classes")
        kinds = {type(number) for numbers in normalize.values() for number in numbers}
        if type(teachers) is not str or type(num_classes) not in (int, type(None)) or not kinds <= {int, float}:
            raise TypeError("a num_classes, a teacher's name, a mean or std is none")
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"{member.name} does not have reinforce: {{image_augmentation: {{...}}}} as the original ({error})."
        ) from error
    return OriginalConfig(policy_of(augmentation), num_classes, teachers.split(","), normalize)


def policy_of(augmentation: Mapping[str, Any]) -> AugmentationPolicy:
    """The policy that `image_augmentation` of the original's configuration describes.

    Its name is that of the named policy with the same operations, else `imported`.

    Raises:
        ValueError: for a transform or an option that has no counterpart.
    """
    enabled = {
        name: {key: value for key, value in options.items() if key != "enable"}
        for name, options in augmentation.items()
        if options.get("enable", True) and name not in WITHOUT_PARAMETERS
    }
    unknown = enabled.keys() - TRANSFORMS.keys()
    if unknown:
        found = shortened(sorted(map(str, unknown)))
        raise ValueError(f"The archive's configuration uses {found}; the transforms read are {list(TRANSFORMS)}.")
    operations = tuple(_operation(name, enabled[name]) for name in TRANSFORMS if name in enabled)
    policy = AugmentationPolicy("imported", operations)
    named = (named_policy(name, policy.image_size) for name in POLICY_NAMES)
    return next((found for found in named if found.operations == operations), policy)


def _operation(name: str, options: dict[str, Any]) -> Any:
    cls, defaults, fixed = TRANSFORMS[name]
    chosen = {**defaults, **{key: value for key, value in options.items() if key in defaults}}
    refused = {
        key: value
        for key, value in options.items()
        if key not in defaults and (key not in fixed or (fixed[key] is not None and value not in fixed[key]))
    }
    size = chosen.get("size")
    if isinstance(size, (list, tuple)):  # two sides for a crop, one for a resize
        square = len(size) == 1 or (len(size) == 2 and size[0] == size[1] and name != "resize")
        chosen["size"] = size[0] if square else refused.setdefault("size", size)
    if refused:
        raise ValueError(f"The archive's configuration uses {name} with {shortened(refused)}, which is not supported.")
    if chosen.get("padding", 0) is None:
        chosen["padding"] = 0
    return read_operation({cls.name: chosen})
