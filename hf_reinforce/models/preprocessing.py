"""How a network wants its input: size, normalisation and evaluation crop, as timm or transformers record them."""

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from hf_reinforce.augmentations.evaluation_view import CROP_MODES, CROP_ROUNDINGS
from hf_reinforce.images import INTERPOLATIONS

UNKNOWN = "unknown"
"""The `crop_mode` of a network whose image processor frames photos in a way of its own."""

_ALWAYS_RECORDED = ("image_size", "mean", "std", "interpolation", "crop_pct")


@dataclass(frozen=True)
class Preprocessing:
    """How a network wants its input.

    Attributes:
        image_size: side of the square input in pixels.
        mean: per-channel mean, for values scaled to [0, 1].
        std: per-channel standard deviation, likewise.
        interpolation: one of `images.INTERPOLATIONS`.
        crop_pct: share of the shorter side that evaluation keeps. Views are already crops, so a teacher ignores it, as
            it does `crop_mode` and `crop_rounding`.
        channels: their order, `"RGB"` or `"BGR"`; `mean` and `std` are in this order.
        crop_mode: how evaluation frames a photo, see `augmentations.EvaluationView`; or `UNKNOWN`.
        crop_rounding: likewise.

    Raises:
        ValueError: for another interpolation, order or crop.
    """

    image_size: int
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    interpolation: str = "bicubic"
    crop_pct: float = 1.0
    channels: str = "RGB"
    crop_mode: str = "center"
    crop_rounding: str = "even"

    def __post_init__(self) -> None:
        for name, known in (
            ("interpolation", INTERPOLATIONS),
            ("channels", ("RGB", "BGR")),
            ("crop_mode", (*CROP_MODES, UNKNOWN)),
            ("crop_rounding", CROP_ROUNDINGS),
        ):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, not {getattr(self, name)!r}.")

    def __call__(self, images: Tensor) -> Tensor:
        """Resizes and normalises views [B, 3, S, S], uint8 or float, values 0 to 255; float32 on the same device."""
        images = images.float() / 255
        if images.shape[-1] != self.image_size or images.shape[-2] != self.image_size:
            images = self._resized(images)
        return normalize(images if self.channels == "RGB" else images.flip(-3), self.mean, self.std)

    def _resized(self, images: Tensor) -> Tensor:
        size = (self.image_size, self.image_size)
        if self.interpolation == "nearest":
            return F.interpolate(images, size, mode="nearest-exact")
        if self.interpolation not in ("bilinear", "bicubic"):
            raise ValueError(
                f"The network resizes by {self.interpolation!r}, which views of another size than its own cannot be; "
                f"make views of {self.image_size} pixels (--image_size {self.image_size}), or pass preprocessing=."
            )
        return F.interpolate(images, size, mode=self.interpolation, antialias=True).clamp(0, 1)

    def framing(self, image_size: int | None = None, crop_pct: float | None = None) -> dict[str, Any]:
        """Arguments of `evaluation_policy` for the view that the network is evaluated on.

        Args:
            image_size: side of the view, default the network's.
            crop_pct: share of the shorter side, default the network's.

        Raises:
            ValueError: if it isn't known, and no `crop_pct` says what to do instead.
        """
        found = {
            "image_size": image_size or self.image_size,
            "crop_pct": crop_pct or self.crop_pct,
            "interpolation": self.interpolation,
        }
        if self.crop_mode == UNKNOWN:
            if crop_pct is None:
                raise ValueError(
                    "The network's image processor frames photos in a way of its own, so its own evaluation cannot be "
                    "repeated; give crop_pct (--crop_pct 1.0) to evaluate it on central squares."
                )
            return found
        if self.crop_mode == "border":  # timm's margin has the mean colour
            found["fill"] = tuple(round(255 * value) for value in self.mean)
        return found | {key: value for key, value in self.record().items() if key in ("crop_mode", "crop_rounding")}

    def record(self) -> dict[str, Any]:
        """What `reinforcement.json` records; the later fields only where they are not the default."""
        defaults = {field.name: field.default for field in fields(self) if field.default is not MISSING}
        return {key: value for key, value in asdict(self).items() if key in _ALWAYS_RECORDED or value != defaults[key]}


def preprocessing_from(record: Mapping[str, Any]) -> Preprocessing:
    """The preprocessing that `reinforcement.json` records of a teacher."""
    return Preprocessing(**{**record, "mean": tuple(record["mean"]), "std": tuple(record["std"])})


def normalize(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """`(images - mean) / std` per channel, for float images [B, 3, H, W] in [0, 1]."""
    shift = torch.tensor(mean, device=images.device).view(-1, 1, 1)
    return (images - shift) / torch.tensor(std, device=images.device).view(-1, 1, 1)


def luma(images: Tensor) -> Tensor:
    """Grey images [B, 1, H, W] of colour images [B, 3, H, W], as Pillow weighs the channels (ITU-R 601)."""
    weights = torch.tensor([0.299, 0.587, 0.114], device=images.device).view(1, 3, 1, 1)
    return (images.float() * weights).sum(1, keepdim=True)


def for_channels(preprocessing: Preprocessing | None, channels: int, name: str) -> Preprocessing | None:
    """The preprocessing of the network `name`, whose images have so many channels; for grey ones with one mean.

    Raises:
        ValueError: if images in colour cannot be made into such.
    """
    if preprocessing is None or channels == 3:
        return preprocessing
    mean, std = set(preprocessing.mean), set(preprocessing.std)
    if channels != 1 or len(mean) > 1 or len(std) > 1:
        raise ValueError(
            f"{name} takes images of {channels} channels with the means {preprocessing.mean}; there must be three "
            "channels, or one for grey images with a single mean and standard deviation."
        )
    return replace(preprocessing, mean=tuple(mean), std=tuple(std))


def timm_preprocessing(cfg: Mapping[str, Any] | None, at_test_size: bool = False) -> Preprocessing | None:
    """What timm's `pretrained_cfg` says; None where it says no input size.

    Args:
        cfg: the configuration.
        at_test_size: with `test_input_size` and `test_crop_pct`, as timm's `validate.py` evaluates; else with the size
            of its training, as timm's and transformers' pipelines do.

    Raises:
        ValueError: if its input isn't a square, or it is resized in a way that isn't known.
    """
    from timm.data import resolve_data_config

    if not cfg or not cfg.get("input_size"):
        return None
    found = resolve_data_config(pretrained_cfg=dict(cfg), use_test_size=at_test_size)
    height, width = found["input_size"][-2:]
    if height != width:
        raise ValueError(
            f"The network {cfg.get('architecture') or ''} takes inputs of {width}x{height} pixels, and views are "
            "squares; take another network, or pass preprocessing=."
        )
    mode = found["crop_mode"] if found["crop_mode"] in ("squash", "border") else "center"
    mean, std = tuple(found["mean"]), tuple(found["std"])
    return Preprocessing(int(height), mean, std, found["interpolation"], float(found["crop_pct"]), crop_mode=mode)
