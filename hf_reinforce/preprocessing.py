"""How a network wants its input: size, normalisation and evaluation crop, as timm or transformers record them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Preprocessing:
    """How a network wants its input.

    Attributes:
        image_size: side of the square input in pixels.
        mean: per-channel mean, for values scaled to [0, 1].
        std: per-channel standard deviation, likewise.
        interpolation: `"bilinear"` or `"bicubic"`, antialiased.
        crop_pct: share of the shorter side that evaluation keeps. Views are already crops, so a teacher ignores it.
    """

    image_size: int
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    interpolation: str = "bicubic"
    crop_pct: float = 1.0

    def __call__(self, images: Tensor) -> Tensor:
        """Resizes and normalises views [B, 3, S, S], uint8 or float, values 0 to 255; float32 on the same device."""
        images = images.float() / 255
        if images.shape[-1] != self.image_size or images.shape[-2] != self.image_size:
            size = (self.image_size, self.image_size)
            images = F.interpolate(images, size, mode=self.interpolation, antialias=True).clamp(0, 1)
        return normalize(images, self.mean, self.std)


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


def timm_preprocessing(cfg: Mapping[str, Any] | None) -> Preprocessing | None:
    """What timm's `pretrained_cfg` says; None where it says no input size."""
    if not cfg or "input_size" not in cfg:
        return None
    interpolation = "bilinear" if cfg.get("interpolation") == "bilinear" else "bicubic"
    crop_pct = float(cfg.get("crop_pct") or 1.0)
    return Preprocessing(int(cfg["input_size"][-1]), tuple(cfg["mean"]), tuple(cfg["std"]), interpolation, crop_pct)


def processor_preprocessing(path: str, revision: str | None) -> Preprocessing | None:
    """What the image processor beside a transformers-native network says; None without one.

    Raises:
        ValueError: if it rescales in a way of its own.
    """
    from transformers import AutoImageProcessor

    try:
        processor = AutoImageProcessor.from_pretrained(path, revision=revision, trust_remote_code=False)
    except (OSError, ValueError):
        return None
    if abs(getattr(processor, "rescale_factor", 1 / 255) - 1 / 255) > 1e-6:
        raise ValueError(f"{path} rescales by {processor.rescale_factor}, not by 1/255; pass preprocessing=.")
    size = dict(processor.size)
    shorter = size.get("shortest_edge") or size["height"]
    crop = dict(processor.crop_size)["height"] if getattr(processor, "do_center_crop", False) else shorter
    normalised = getattr(processor, "do_normalize", True)
    mean = tuple(processor.image_mean) if normalised else (0.0, 0.0, 0.0)
    std = tuple(processor.image_std) if normalised else (1.0, 1.0, 1.0)
    interpolation = "bilinear" if int(processor.resample or 2) == 2 else "bicubic"
    return Preprocessing(int(crop), mean, std, interpolation, crop / shorter)
