"""Augmentation policies: ordered operations that make a view of an image, and mix views.

The named policies follow the paper (Faghri et al., ICCV 2023). Parameters of a view are sampled once, stored, and
applied again as often as wanted; `AugmentationPolicy.apply` is the code that both generation and replay run.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hf_reinforce import images, schema
from hf_reinforce.augmentations import (
    AUGMENTATIONS,
    CenterCrop,
    Crop,
    CutMix,
    EvaluationView,
    HorizontalFlip,
    MixAugmentation,
    MixUp,
    RandAugment,
    RandomCrop,
    RandomErasing,
    RandomResizedCrop,
    Resize,
    ViewAugmentation,
)
from hf_reinforce.augmentations.documents import read_document, shortened
from hf_reinforce.images import ImageError
from hf_reinforce.randomness import params_generator


@dataclass(frozen=True)
class AugmentationPolicy:
    """Ordered operations: an optional resize, one crop, operations on the view, operations that mix two views.

    Args:
        name: name of the policy, and of the Hub configuration that it makes.
        operations: the operations in the order of their application.

    Raises:
        ValueError: if the order is another one, there isn't exactly one crop, or two operations share a field.

    Example:
        import torch
        from hf_reinforce import AugmentationPolicy

        policy = AugmentationPolicy.from_dict(
            {"name": "gentle", "operations": [{"random_crop": {"size": 32, "padding": 4}}, "horizontal_flip"]}
        )
        image = torch.randint(256, (3, 32, 32), dtype=torch.uint8)
        view = policy.apply(image, policy.sample(seed=0, row=0, slot=0, height=32, width=32))
    """

    name: str
    operations: tuple[ViewAugmentation | MixAugmentation, ...]

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]{0,99}", self.name):
            raise ValueError(
                "A policy's name makes a folder: at most 100 letters, digits, '_', '-' and '.', not "
                f"{shortened(self.name)}."
            )
        names = [operation.name for operation in self.operations]
        if not re.fullmatch("(resize )?(crop )(image )*(mix )*", "".join(f"{op.stage} " for op in self.operations)):
            raise ValueError(
                f"Policy {self.name!r} must be at most one resize, exactly one crop, operations on the view and then "
                f"mixing operations, in this order; found {names}."
            )
        stored = [operation.field for operation in self.operations if operation.field is not None]
        if len(set(names)) != len(names) or len(set(stored)) != len(stored):
            raise ValueError(f"Policy {self.name!r} has two operations that store the same field: {names}.")

    @cached_property
    def view_operations(self) -> tuple[ViewAugmentation, ...]:
        return tuple(op for op in self.operations if isinstance(op, ViewAugmentation))

    @cached_property
    def mix_operations(self) -> tuple[MixAugmentation, ...]:
        return tuple(op for op in self.operations if isinstance(op, MixAugmentation))

    @cached_property
    def image_size(self) -> int:
        """Side of a view in pixels."""
        return next(op.size for op in self.view_operations if isinstance(op, (Crop, EvaluationView)))

    @property
    def feature(self) -> dict[str, Any]:
        """The `augmentation_params` struct of this policy."""
        return schema.params_feature(
            {op.field: op.feature for op in self.view_operations if op.field is not None},
            {op.field: op.feature for op in self.mix_operations},
        )

    def sample(self, seed: int, row: int, slot: int, height: int, width: int) -> dict[str, Any]:
        """Draws the parameters of one reinforcement; a function of its arguments alone.

        Args:
            seed: seed of the reinforced dataset.
            row: row of the image in the source split.
            slot: index of the reinforcement.
            height: height of the decoded image in pixels.
            width: its width.

        Returns:
            field -> parameters, None where an operation is not applied. Partners are not chosen here.

        Raises:
            ImageError: if a box in the resized image would not fit the schema.
        """
        self.check_size(height, width)
        rng = params_generator(seed, row, slot)
        params: dict[str, Any] = {}
        for operation in self.operations:
            drawn = operation.sample(rng, height, width)
            if operation.field is not None:
                params[operation.field] = drawn
            if isinstance(operation, Resize):
                height, width = operation.output_size(height, width)
            elif operation.stage == "crop":
                height = width = self.image_size
        return params

    def apply(self, image: Tensor, params: Mapping[str, Any], image_size: int | None = None) -> Tensor:
        """Makes the view that the parameters describe.

        Args:
            image: decoded image, uint8 [3, H, W]; not changed.
            params: what `sample` returned.
            image_size: side of the view, default the policy's own. Boxes and translations scale with it.

        Returns:
            uint8 tensor [3, image_size, image_size], values 0 to 255, before any mixing.
        """
        scale = 1.0 if image_size is None else image_size / self.image_size
        for operation in self.view_operations:
            if operation.field is None:
                image = operation.apply(image, None, scale)
            elif params[operation.field] is not None:
                image = operation.apply(image, params[operation.field], scale)
        return image

    def render(self, encoded: images.Encoded, params: Mapping[str, Any], image_size: int | None = None) -> Tensor:
        """`apply` to an encoded image, of which only the box is decoded if it is cropped first."""
        first = self.view_operations[0]
        if first.stage != "crop" or first.field is None:
            return self.apply(images.decode(encoded), params, image_size)
        inside = {**params, first.field: {**params[first.field], "top": 0, "left": 0}}
        return self.apply(images.decode(encoded, params[first.field]), inside, image_size)

    def check_size(self, height: int, width: int) -> None:
        """Raises an ImageError if boxes in an image of this size, once resized, would not fit the schema's int16."""
        for operation in self.view_operations:
            if isinstance(operation, Resize) and max(operation.output_size(height, width)) > schema.MAX_IMAGE_SIDE:
                raise ImageError(
                    f"the image of {width}x{height} pixels is too narrow: resized to a shorter side of "
                    f"{operation.size} its longer side exceeds {schema.MAX_IMAGE_SIDE} pixels."
                )

    def mixes(self, params: Mapping[str, Any]) -> bool:
        """Whether this reinforcement needs a partner."""
        return any(params[operation.field] is not None for operation in self.mix_operations)

    def collate_mix(self, params: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Mixing parameters of B samples: field -> tensor [B, ...]."""
        return {op.field: op.collate([item[op.field] for item in params]) for op in self.mix_operations}

    def mix(self, images: Tensor, partners: Tensor, params: Mapping[str, Tensor]) -> Tensor:
        """Mixes views, float [B, 3, S, S], with their partners' unmixed views, on the device; see `collate_mix`."""
        scale = images.shape[-1] / self.image_size
        for operation in self.mix_operations:
            images = operation.apply(images, partners, params[operation.field], scale)
        return images

    def own_share(self, params: Mapping[str, Tensor]) -> Tensor:
        """Share of each mixed image that is its own, float [B]; the rest is its partner's. For policies that mix."""
        shares = [op.own_share(params[op.field], self.image_size) for op in self.mix_operations]
        return torch.stack(shares).prod(0)

    def to_dict(self) -> dict[str, Any]:
        """The policy as a JSON- and YAML-ready dict; `from_dict` reads it back."""
        operations = [
            {op.name: {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(op).items()}}
            for op in self.operations
        ]
        return {"name": self.name, "operations": operations}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "AugmentationPolicy":
        """Reads `{"name": ..., "operations": [{operation: {option: value}}, ...]}`.

        Raises:
            ValueError: for an unknown key, operation or option, or a value that an operation refuses.
        """
        keys = set(data) if isinstance(data, Mapping) else set()
        if keys != {"name", "operations"} or not isinstance(data["name"], str) or type(data["operations"]) is not list:
            raise ValueError(f"A policy is {{name: TEXT, operations: [OPERATION, ...]}}; found {shortened(data)}.")
        return cls(data["name"], tuple(read_operation(item) for item in data["operations"]))


def read_operation(item: Any) -> ViewAugmentation | MixAugmentation:
    """The operation that `{name: {option: value}}` or a name alone stands for; a ValueError for anything else."""
    item = {item: None} if isinstance(item, str) else item
    if not isinstance(item, Mapping) or len(item) != 1:
        raise ValueError(f"An operation is written as {{name: {{option: value}}}}; found {shortened(item)}.")
    ((name, options),) = item.items()
    if name not in AUGMENTATIONS:
        raise ValueError(f"Unknown operation {shortened(name)}. Known operations: {', '.join(AUGMENTATIONS)}.")
    options = {} if options is None else options
    known = sorted(option.name for option in fields(AUGMENTATIONS[name]))
    if not isinstance(options, Mapping) or not set(options) <= set(known):
        found = sorted(map(str, set(options) - set(known))) if isinstance(options, Mapping) else options
        raise ValueError(f"Operation {name!r} takes the options {known}; found {shortened(found)}.")
    return AUGMENTATIONS[name](**{k: tuple(v) if isinstance(v, list) else v for k, v in options.items()})


POLICY_NAMES = (
    "rrc",
    "mixing",
    "randaug",
    "mixing_randaug",
    "small_crop",
    "small_mixing",
    "small_randaug",
    "small_mixing_randaug",
)
"""Named policies. `small_*` crops with padding instead of by area: CIFAR at its own 32 pixels, or enlarged to 224."""


def named_policy(name: str, image_size: int) -> AugmentationPolicy:
    """A policy of the paper, one of `POLICY_NAMES`, at a side of its views in pixels."""
    if name not in POLICY_NAMES:
        raise ValueError(f"Unknown policy {name!r}. Named policies: {', '.join(POLICY_NAMES)}; or give a YAML file.")
    operations: list[ViewAugmentation | MixAugmentation] = [RandomResizedCrop(image_size)]
    if name.startswith("small_"):
        # The paper enlarges CIFAR to 224 and pads by 16 there; at 32 pixels the usual 4 play the same part.
        padding = image_size // (8 if image_size <= 64 else 14)
        operations = [Resize(image_size), RandomCrop(image_size, padding)]
    operations.append(HorizontalFlip())
    if "randaug" in name:
        operations += [RandAugment(), RandomErasing()]
    if "mixing" in name:
        operations += [MixUp(), CutMix()]
    return AugmentationPolicy(name, tuple(operations))


def load_policy(name_or_path: str, image_size: int = 224) -> AugmentationPolicy:
    """A named policy, or a policy of your own from a YAML file.

    Args:
        name_or_path: one of `POLICY_NAMES`, such as `"randaug"`, or a YAML file, which states its sizes itself.
        image_size: side of the views of a named policy in pixels.

    Raises:
        ValueError: for an unknown name, or a file that is not a policy.

    Example:
        from hf_reinforce import load_policy

        policy = load_policy("small_randaug", image_size=32)
        params = policy.sample(seed=0, row=7, slot=0, height=32, width=32)  # a function of these numbers alone
    """
    if not str(name_or_path).endswith((".yaml", ".yml")):
        return named_policy(name_or_path, image_size)
    if not Path(name_or_path).exists():
        raise ValueError(f"There is no policy file {name_or_path}.")
    try:
        return AugmentationPolicy.from_dict(read_document(Path(name_or_path)))
    except ValueError as error:
        raise ValueError(f"{name_or_path} is not a policy: {error}") from error


def evaluation_policy(
    image_size: int, crop_pct: float = 1.0, interpolation: str = "bilinear", **framing: Any
) -> AugmentationPolicy:
    """The policy that shows images as evaluation does: resized and cropped in the centre, without randomness.

    Args:
        image_size: side of the view in pixels.
        crop_pct: share of the shorter side that is kept, in (0, 1].
        interpolation: `"bilinear"`, `"bicubic"` or another of `images.INTERPOLATIONS`.
        framing: `crop_mode`, `crop_rounding` and `fill`, see `EvaluationView`.

    Example:
        from hf_reinforce import AugmentedDataset, ImageSource, evaluation_policy, load_source

        images = load_source("uoft-cs/cifar100", split="test")
        dataset = AugmentedDataset(ImageSource.of(images, label_column="fine_label"), evaluation_policy(32))
    """
    if framing or interpolation not in ("bilinear", "bicubic"):
        return AugmentationPolicy("evaluation", (EvaluationView(image_size, crop_pct, interpolation, **framing),))
    operations = Resize(int(image_size / crop_pct), interpolation), CenterCrop(image_size)
    return AugmentationPolicy("evaluation", operations)
