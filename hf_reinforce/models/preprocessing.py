"""How a network wants its input: size, normalisation and evaluation crop, as timm and transformers record them.

timm records them. The attributes of an image processor of transformers say only a part, since classes of processors
rescale, swap channels, resize and crop in ways of their own: so it is shown colours and pictures of noise, and what
`Preprocessing` cannot say is refused by name.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields, replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from hf_reinforce.augmentations.evaluation_view import CROP_MODES, CROP_ROUNDINGS
from hf_reinforce.augmentations.policies import evaluation_policy
from hf_reinforce.images import INTERPOLATIONS, to_pil
from hf_reinforce.models.weights import repository_file

UNKNOWN = "unknown"
"""The `crop_mode` of a network whose image processor frames photos in a way of its own."""

_ALWAYS_RECORDED = ("image_size", "mean", "std", "interpolation", "crop_pct")
_PHOTOS = ((300, 400), (411, 257), (281, 351), (90, 131))  # height and width, which tell ways of rounding apart
_FRAMINGS = (("center", "down"), ("squash", "down"), ("crop_first", "down"), ("crop", "down"), ("center", "nearest"))


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
        if images.shape[-2:] != (self.image_size, self.image_size):
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
        """Arguments of `evaluation_policy` for the view that the network is evaluated on, of its own size by default.

        Raises:
            ValueError: if `crop_mode` is `UNKNOWN`, and no `crop_pct` says what to do instead.
        """
        size, share = image_size or self.image_size, crop_pct or self.crop_pct
        found = {"image_size": size, "crop_pct": share, "interpolation": self.interpolation}
        if self.crop_mode != UNKNOWN:
            found |= {key: value for key, value in self.record().items() if key in ("crop_mode", "crop_rounding")}
        elif crop_pct is None:
            raise ValueError(
                "The network's image processor frames photos in a way of its own, so its own evaluation cannot be "
                "repeated; give crop_pct (--crop_pct 1.0) to evaluate it on central squares."
            )
        if self.crop_mode == "border":  # timm's margin has the mean colour
            found["fill"] = tuple(round(255 * value) for value in self.mean)
        return found

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


def timm_preprocessing(cfg: Mapping[str, Any] | None, at_test_size: bool = False) -> Preprocessing | None:
    """What timm's `pretrained_cfg` says; None where it says no input size, a ValueError where it wants no square.

    With `at_test_size` it is of `test_input_size` and `test_crop_pct`, as timm's `validate.py` evaluates; else of the
    size of its training, as timm's and transformers' pipelines have it.
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


# -- image processors of transformers -----------------------------------------------------------------------------


def processor_preprocessing(path: str, revision: str | None) -> Preprocessing | None:
    """What the image processor beside a network of transformers does, see `read_processor`; None without one."""
    from transformers import AutoImageProcessor

    file = "preprocessor_config.json"
    try:
        processor = AutoImageProcessor.from_pretrained(path, revision=revision, trust_remote_code=False)
    except Exception as error:  # its class raises what it runs into
        try:
            repository_file(path, revision, file)
        except OSError:
            return None
        reason = f"its image processor ({file}) cannot be read ({type(error).__name__}: {str(error)[:200]!r})"
        raise ValueError(f"{path}: {reason}; mend it, or pass preprocessing= (load_teacher).") from error
    return read_processor(processor, path)


def read_processor(processor: Any, name: str) -> Preprocessing:
    """What the image processor of the network `name` does, up to one level of a pixel; where photos are framed in a
    way that is not known, with the `crop_mode` `UNKNOWN`.

    Raises:
        ValueError: if networks get no square of a fixed size from it, or no affine function of the colours.
    """
    try:
        return _tried(processor)
    except Exception as error:  # each class of processors has errors of its own
        reason = str(error) if isinstance(error, ValueError) else f"gives no pixels ({type(error).__name__}: {error})"
        raise ValueError(
            f"{name}: its image processor, {type(processor).__name__}, {' '.join(reason.split())[:300]}; take another "
            "network, or pass preprocessing= (load_teacher)."
        ) from error


def _tried(processor: Any) -> Preprocessing:
    def show(picture: Tensor) -> Tensor:
        """Input float64 [3, H, W] of a picture uint8 [3, H, W]."""
        found = processor(images=[to_pil(picture)], return_tensors="pt")["pixel_values"]
        if not isinstance(found, Tensor) or found.ndim != 4 or found.shape[:2] != (1, 3):
            raise ValueError(f"gives {list(getattr(found, 'shape', []))} for a picture, not [1, 3, side, side]")
        return found[0].double()

    shapes = {tuple(show(_noise((side, side))).shape[-2:]) for side in (64, 96)}
    if len(shapes) > 1:
        raise ValueError("leaves pictures of different sizes different, so the size of the input is unknown")
    side, width = shapes.pop()
    if side != width:
        raise ValueError(f"makes inputs of {width}x{side} pixels, and views are squares")
    channels, mean, std = _colours(show, processor, side)
    own = Preprocessing(side, mean, std, _interpolation(getattr(processor, "resample", None)), channels=channels)
    photos = [_noise(size) for size in _PHOTOS]
    expected = [show(photo) for photo in photos]
    if all(each.shape[-2:] == (side, side) for each in expected):
        for candidate in _candidates(own, processor):
            if all(_same(candidate, photo, each) for photo, each in zip(photos, expected, strict=True)):
                return candidate
    return replace(own, crop_mode=UNKNOWN)


def _colours(
    show: Callable[[Tensor], Tensor], processor: Any, side: int
) -> tuple[str, tuple[float, ...], tuple[float, ...]]:
    """Order of the channels, and the mean and deviation that one normalisation from [0, 1] needs."""
    generator = torch.Generator().manual_seed(0)
    colours = torch.cat([torch.zeros(1, 3), torch.eye(3) * 255, torch.randint(256, (4, 3), generator=generator)])
    shown = [show(colour.to(torch.uint8).view(3, 1, 1).expand(3, side, side)) for colour in colours]
    found = torch.stack([each[:, side // 2, side // 2] for each in shown])
    effects = (found[1:4] - found[0]).T  # of red, green and blue on each channel
    order = effects.abs().argmax(1).tolist()
    gain, base = effects[[0, 1, 2], order], found[0]
    if order not in ([0, 1, 2], [2, 1, 0]) or not bool((gain.abs() > 0).all() and gain.isfinite().all()):
        raise ValueError("mixes or drops colours")
    affine = base + gain * colours[:, order].double() / 255
    if float(((found - affine) / gain).abs().max()) > 0.1 / 255:
        raise ValueError("changes colours by more than a scale and an offset")
    channels, mean, std = "RGB" if order[0] == 0 else "BGR", 0.0 - base / gain, 1 / gain
    stated = (getattr(processor, "image_mean", None), getattr(processor, "image_std", None))
    for figures in (stated, ([0.0] * 3, [1.0] * 3)):  # rather as they are stated than as measured
        pair = [torch.tensor(each, dtype=torch.float64).expand(3) for each in figures if each is not None]
        if len(pair) == 2 and torch.allclose(pair[0], mean, 1e-4, 1e-5) and torch.allclose(pair[1], std, 1e-4):
            return channels, tuple(pair[0].tolist()), tuple(pair[1].tolist())
    rounded = [tuple(float(f"{value:.6g}") for value in each.tolist()) for each in (mean, std)]
    return channels, rounded[0], rounded[1]


def _interpolation(resample: Any) -> str:
    """The word for what Pillow numbers and torchvision names."""
    named = Image.Resampling(resample).name if type(resample) is int else getattr(resample, "name", str(resample))
    word = str(named).lower().removesuffix("_exact")
    return word if word in INTERPOLATIONS else "bilinear"


def _candidates(own: Preprocessing, processor: Any) -> Iterator[Preprocessing]:
    """The ways to frame a photo that are known, the likely ones first."""
    stated = [own.image_size]
    for name in ("size", "crop_size", "resize_short"):
        value = getattr(processor, name, None) or {}
        stated += [int(each) for each in ([value] if isinstance(value, int) else dict(value).values()) if each]
    share = getattr(processor, "crop_pct", None)
    scaled = [int(each / share) for each in stated] if share else []
    sides = list(dict.fromkeys([*scaled, *stated, *(int(256 / 224 * each) for each in stated)]))  # the last: LeViT
    for word in dict.fromkeys([own.interpolation, "bilinear", "bicubic", "nearest"]):
        for mode, rounding in _FRAMINGS:
            for side in sides if mode != "crop" else sides[:1]:
                share = 1.0 if mode == "crop" else own.image_size / side
                while mode != "crop" and int(own.image_size / share) < side:
                    share = math.nextafter(share, 0)
                yield replace(own, interpolation=word, crop_mode=mode, crop_rounding=rounding, crop_pct=share)


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
