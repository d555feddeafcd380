"""The configuration of the original implementation (apple/ml-dr), and the policy that it describes."""

from collections.abc import Mapping
from typing import Any

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
# and options that are supported at one value only. The weight that MixUp divides by is in the stored weights.
_SCALE, _RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
TRANSFORMS: dict[str, tuple[Any, dict[str, Any], dict[str, Any]]] = {
    "resize": (Resize, {"size": None}, {}),
    "random_crop": (
        RandomCrop,
        {"size": None, "padding": 0},
        {"pad_if_needed": False, "fill": 0, "padding_mode": "constant"},
    ),
    "random_resized_crop": (RandomResizedCrop, {"size": None, "scale": _SCALE, "ratio": _RATIO}, {}),
    "random_horizontal_flip": (HorizontalFlip, {"p": 0.5}, {}),
    "rand_augment": (
        RandAugment,
        {"num_ops": 2, "magnitude": 9, "p": 1.0},
        {"num_magnitude_bins": 31, "fill": None},
    ),
    "random_erase": (
        RandomErasing,
        {"p": 0.5, "scale": (0.02, 0.33), "ratio": (0.3, 3.3)},
        {"value": 0, "inplace": False},
    ),
    "mixup": (MixUp, {"alpha": 1.0, "p": 1.0}, {}),
    "cutmix": (CutMix, {"alpha": 1.0, "p": 1.0}, {}),
}
WITHOUT_PARAMETERS = ("uint8", "to_tensor", "normalize")


def read_config(member: Member) -> dict[str, Any]:
    """The original's configuration in a `config.pth.tar`.

    Raises:
        UnsafePickleError: as `safe_load`.
        ValueError: if it is not one.
    """
    config = safe_load(member.data, member.name)
    parts = (config.get("reinforce"), config.get("teacher", {})) if isinstance(config, dict) else (None,)
    augmentation = parts[0].get("image_augmentation") if isinstance(parts[0], dict) else None
    if not isinstance(augmentation, dict) or not all(isinstance(v, dict) for v in (*parts, *augmentation.values())):
        raise ValueError(f"{member.name} does not have reinforce: {{image_augmentation: {{...}}}}.")
    normalize = augmentation.get("normalize", {})
    numbers = [normalize.get(key, []) for key in ("mean", "std")]
    if (
        type(config.get("num_classes")) not in (int, type(None))
        or type(config.get("teacher", {}).get("name")) not in (str, type(None))
        or not all(type(item) in (list, tuple) and {*map(type, item)} <= {int, float} for item in numbers)
    ):
        raise ValueError(f"{member.name} has a num_classes, a teacher's name, a mean or std that are none.")
    return dict(config)


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
    unknown = sorted(map(str, set(enabled) - set(TRANSFORMS)))
    if unknown:
        raise ValueError(
            f"The archive's configuration uses {shortened(unknown)}; the transforms read are {list(TRANSFORMS)}."
        )
    operations = tuple(_operation(name, enabled[name]) for name in TRANSFORMS if name in enabled)
    policy = AugmentationPolicy("imported", operations)
    for name in POLICY_NAMES:
        if named_policy(name, policy.image_size).operations == operations:
            return named_policy(name, policy.image_size)
    return policy


def _operation(name: str, options: dict[str, Any]) -> Any:
    cls, defaults, fixed = TRANSFORMS[name]
    if name == "mixup":
        options = {key: value for key, value in options.items() if key != "div_by"}
    values = {**defaults, **fixed, **options}
    refused = {k: v for k, v in values.items() if k not in defaults and (k not in fixed or v != fixed[k])}
    size = values.get("size")
    if isinstance(size, (list, tuple)):  # two sides for a crop, one for a resize
        square = len(size) == 1 or (len(size) == 2 and size[0] == size[1] and name != "resize")
        values["size"] = size[0] if square else refused.setdefault("size", size)
    if refused:
        raise ValueError(f"The archive's configuration uses {name} with {shortened(refused)}, which is not supported.")
    chosen = {key: 0 if key == "padding" and values[key] is None else values[key] for key in defaults}
    return read_operation({cls.name: chosen})
