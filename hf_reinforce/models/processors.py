"""What an image processor of transformers does to a picture, found by showing it pictures.

Its attributes say only a part: classes of processors rescale, normalise twice, swap channels, resize and crop in ways
of their own. Colours show how values change, pictures of noise how photos are framed; what `Preprocessing` cannot
say is refused by name, never passed over.
"""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from hf_reinforce.augmentations.policies import evaluation_policy
from hf_reinforce.images import INTERPOLATIONS, to_pil
from hf_reinforce.models.preprocessing import UNKNOWN, Preprocessing

_FILE = "preprocessor_config.json"
_OTHERWISE = "take another network, or pass preprocessing= (load_teacher)"
_PHOTOS = ((300, 400), (411, 257), (281, 351), (90, 131))  # height and width, which tell ways of rounding apart
_FRAMINGS = (("center", "down"), ("squash", "down"), ("crop_first", "down"), ("crop", "down"), ("center", "nearest"))


def processor_preprocessing(path: str, revision: str | None) -> Preprocessing | None:
    """What the image processor beside a transformers-native network does; None without one.

    Raises:
        ValueError: if it cannot be read, or its values cannot be had from `Preprocessing`.
    """
    from transformers import AutoImageProcessor

    try:
        processor = AutoImageProcessor.from_pretrained(path, revision=revision, trust_remote_code=False)
    except Exception as error:  # its class raises what it runs into
        if isinstance(error, (OSError, ValueError)) and not _has_file(path, revision):
            return None
        reason = f"its image processor ({_FILE}) cannot be read ({_brief(error)})"
        raise ValueError(f"{path}: {reason}; {_OTHERWISE}.") from error
    return read_processor(processor, path)


def _brief(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _has_file(path: str, revision: str | None) -> bool:
    from transformers.utils import cached_file

    try:
        return cached_file(path, _FILE, revision=revision) is not None
    except OSError:
        return False


def read_processor(processor: Any, name: str) -> Preprocessing:
    """What an image processor does, up to one level of a pixel.

    Args:
        processor: an image processor of transformers.
        name: of its network, for errors.

    Returns:
        The preprocessing; where photos are framed in a way that is not known, with the `crop_mode` `UNKNOWN`.

    Raises:
        ValueError: if networks get no square of a fixed size from it, or no affine function of the colours.
    """
    feeder = _Feeder(processor, name)
    side = feeder.side()
    channels, mean, std = feeder.values(side)
    stated = _interpolation(getattr(processor, "resample", None))
    own = Preprocessing(side, mean, std, stated or "bilinear", channels=channels)
    photos = [_noise(size) for size in _PHOTOS]
    expected = [feeder(photo) for photo in photos]
    if all(tuple(each.shape[-2:]) == (side, side) for each in expected):
        for candidate in _candidates(own, processor):
            if all(_same(candidate, photo, each) for photo, each in zip(photos, expected, strict=True)):
                return candidate
    return replace(own, crop_mode=UNKNOWN)


class _Feeder:
    """Shows pictures to a processor."""

    def __init__(self, processor: Any, name: str) -> None:
        self._processor, self._name = processor, name

    def refused(self, reason: str) -> ValueError:
        return ValueError(
            f"{self._name}: its image processor, {type(self._processor).__name__}, {reason}; {_OTHERWISE}."
        )

    def __call__(self, picture: Tensor) -> Tensor:
        """Input [3, H, W] of a picture, uint8 [3, H, W]."""
        try:
            found = self._processor(images=[to_pil(picture)], return_tensors="pt")["pixel_values"]
        except Exception as error:  # each class has errors of its own
            raise self.refused(f"gives no pixels for a picture ({_brief(error)})") from error
        if not isinstance(found, Tensor) or found.ndim != 4 or found.shape[:2] != (1, 3):
            raise self.refused(f"gives {list(getattr(found, 'shape', []))} for a picture, not [1, 3, side, side]")
        return found[0].double()

    def side(self) -> int:
        shapes = {tuple(self(_noise((side, side))).shape[-2:]) for side in (64, 96)}
        if len(shapes) > 1:
            raise self.refused("leaves pictures of different sizes different, so the size of the input is unknown")
        height, width = shapes.pop()
        if height != width:
            raise self.refused(f"makes inputs of {width}x{height} pixels, and views are squares")
        return int(height)

    def values(self, side: int) -> tuple[str, tuple[float, ...], tuple[float, ...]]:
        """Order of the channels, and the mean and deviation that one normalisation from [0, 1] needs."""
        generator = torch.Generator().manual_seed(0)
        colours = torch.cat([torch.zeros(1, 3), torch.eye(3) * 255, torch.randint(256, (4, 3), generator=generator)])
        shown = [self(colour.to(torch.uint8).view(3, 1, 1).expand(3, side, side)) for colour in colours]
        found = torch.stack([each[:, side // 2, side // 2] for each in shown])
        effects = (found[1:4] - found[0]).T  # of red, green and blue on each channel
        order = effects.abs().argmax(1).tolist()
        gain, base = effects[[0, 1, 2], order], found[0]
        if order not in ([0, 1, 2], [2, 1, 0]) or not bool((gain.abs() > 0).all() and gain.isfinite().all()):
            raise self.refused("mixes or drops colours")
        expected = base + gain * colours[:, order].double() / 255
        if float(((found - expected) / gain).abs().max()) > 0.1 / 255:
            raise self.refused("changes colours by more than a scale and an offset")
        return "RGB" if order[0] == 0 else "BGR", *self._stated(0.0 - base / gain, 1 / gain)

    def _stated(self, mean: Tensor, std: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """The figures as the processor states them, where that is what it does; else as they were measured."""
        stated = (getattr(self._processor, "image_mean", None), getattr(self._processor, "image_std", None))
        for figures in (stated, ([0.0] * 3, [1.0] * 3)):
            pair = [torch.tensor(each, dtype=torch.float64).expand(3) for each in figures if each is not None]
            if len(pair) == 2 and torch.allclose(pair[0], mean, 1e-4, 1e-5) and torch.allclose(pair[1], std, 1e-4):
                return tuple(pair[0].tolist()), tuple(pair[1].tolist())
        rounded = [[float(f"{value:.6g}") for value in each.tolist()] for each in (mean, std)]
        return tuple(rounded[0]), tuple(rounded[1])


def _interpolation(resample: Any) -> str | None:
    """The word for what Pillow numbers, and torchvision names."""
    named = Image.Resampling(resample).name if type(resample) is int else getattr(resample, "name", str(resample))
    word = str(named).lower().removesuffix("_exact")
    return word if word in INTERPOLATIONS else None


def _candidates(own: Preprocessing, processor: Any) -> Iterator[Preprocessing]:
    """The ways to frame a photo that are known, the likely ones first."""
    stated = [own.image_size]
    for name in ("size", "crop_size", "resize_short"):
        value = getattr(processor, name, None) or {}
        stated += [int(each) for each in ([value] if isinstance(value, int) else dict(value).values()) if each]
    share = getattr(processor, "crop_pct", None)
    scaled = [int(each / share) for each in stated] if share else []
    sides = list(dict.fromkeys([*scaled, *stated, *(int(256 / 224 * each) for each in stated)]))  # the last: LeViT
    words = dict.fromkeys([own.interpolation, "bilinear", "bicubic", "nearest"])
    for word in words:
        for mode, rounding in _FRAMINGS:
            for side in sides if mode != "crop" else sides[:1]:
                share = _share(own.image_size, side) if mode != "crop" else 1.0
                yield replace(own, interpolation=word, crop_mode=mode, crop_rounding=rounding, crop_pct=share)


def _share(image_size: int, resized: int) -> float:
    """The `crop_pct` that resizes to exactly so many pixels."""
    share = image_size / resized
    while int(image_size / share) < resized:
        share = math.nextafter(share, 0)
    return share


def _noise(size: tuple[int, int]) -> Tensor:
    """A picture, uint8 [3, H, W], coarse and fine, so that it differs at every size; no interpolation overshoots."""
    generator = torch.Generator().manual_seed(size[0])
    coarse = F.interpolate(torch.rand(1, 3, 9, 9, generator=generator), size, mode="bilinear")[0]
    return (64 + 64 * coarse + 64 * torch.rand(3, *size, generator=generator)).to(torch.uint8)


def _same(candidate: Preprocessing, photo: Tensor, expected: Tensor) -> bool:
    policy = evaluation_policy(**candidate.framing())
    found = candidate(policy.apply(photo, policy.sample(0, 0, 0, *photo.shape[1:]))[None])[0]
    levels = (found - expected).abs() * torch.tensor(candidate.std).abs().view(3, 1, 1) * 255
    return bool(levels.max() < 2.1 and (levels > 1.1).double().mean() < 1e-3)  # both round, twice for two directions
