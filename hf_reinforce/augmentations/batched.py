"""The operations on whole batches, on their device: the pixels of the operations on one image.

Images are uint8 [B, 3, H, W] and are not changed in place; a factor, magnitude or offset is a tensor [B] on the same
device. Integers are computed as Pillow computes them, so on a CPU the pixels are the same; a device that fuses a
multiplication with an addition may be off by one level.
"""

from collections.abc import Callable

import torch
from torch import Tensor

_FIXED = 2**16  # Pillow transforms in 16.16 fixed-point numbers
_LUMA = (19595, 38470, 7471)  # ITU-R 601-2, as Pillow rounds it


def window(images: Tensor, top: Tensor, left: Tensor, size: tuple[int, int]) -> Tensor:
    """A box of each image, black where it lies outside."""
    rows, columns = (torch.arange(length, device=images.device) for length in size)
    return _gather(images, top[:, None, None] + rows[:, None], left[:, None, None] + columns)


def flip(images: Tensor, chosen: Tensor) -> Tensor:
    """Mirrors the chosen images, bool [B], left to right."""
    return torch.where(chosen[:, None, None, None], images.flip(-1), images)


def erase(images: Tensor, box: Tensor) -> Tensor:
    """Paints a box (top, left, height, width) of each image black; `box` is [B, 4]."""
    top, left, height, width = box.T[..., None, None]
    rows, columns = (torch.arange(length, device=images.device) for length in images.shape[2:])
    inside = (rows[:, None] >= top) & (rows[:, None] < top + height) & (columns >= left) & (columns < left + width)
    return images.masked_fill(inside[:, None], 0)


def shear_x(images: Tensor, magnitude: Tensor) -> Tensor:
    """Shears about the top-left corner; `magnitude` is the tangent of the angle."""
    zero, one = torch.zeros_like(magnitude), torch.ones_like(magnitude)
    return _affine(images, (one, magnitude, zero), (zero, one, zero))


def shear_y(images: Tensor, magnitude: Tensor) -> Tensor:
    """Shears about the top-left corner; `magnitude` is the tangent of the angle."""
    zero, one = torch.zeros_like(magnitude), torch.ones_like(magnitude)
    return _affine(images, (one, zero, zero), (magnitude, one, zero))


def rotate(images: Tensor, degrees: Tensor) -> Tensor:
    """Turns about the centre, counter-clockwise."""
    angle = -torch.deg2rad(degrees % 360)
    cos, sin = (torch.round(value, decimals=15) for value in (angle.cos(), angle.sin()))
    y, x = (length / 2 for length in images.shape[2:])
    return _affine(images, (cos, sin, x - cos * x - sin * y), (-sin, cos, y + sin * x - cos * y))


def _affine(images: Tensor, x: tuple[Tensor, ...], y: tuple[Tensor, ...]) -> Tensor:
    """Each pixel from `(a * column + b * row + c)` in both directions, the nearest; black outside."""
    rows, columns = (torch.arange(length, device=images.device) for length in images.shape[2:])
    sources = []
    for a, b, c in (y, x):
        per_column, per_row, start = (
            torch.floor(value * _FIXED + 0.5).long()[:, None, None] for value in (a, b, c + 0.5 * a + 0.5 * b)
        )
        sources.append((start + per_column * columns + per_row * rows[:, None]) >> 16)
    return _gather(images, *sources)


def _gather(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Pixels at `rows` and `columns` [B, h, w] of each image, black outside."""
    height, width = images.shape[2:]
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    index = torch.where(inside, rows * width + columns, 0).flatten(1)
    found = images.flatten(2).gather(2, index[:, None].expand(-1, images.shape[1], -1))
    return found.view(*images.shape[:2], *inside.shape[1:]) * inside[:, None]


def translate_x(images: Tensor, magnitude: Tensor) -> Tensor:
    """Moves to the right by whole pixels; what moves in is black."""
    right = magnitude.trunc().long()
    return window(images, torch.zeros_like(right), -right, (images.shape[2], images.shape[3]))


def translate_y(images: Tensor, magnitude: Tensor) -> Tensor:
    """Moves down by whole pixels; what moves in is black."""
    down = magnitude.trunc().long()
    return window(images, -down, torch.zeros_like(down), (images.shape[2], images.shape[3]))


def brightness(images: Tensor, factor: Tensor) -> Tensor:
    """Blends with black."""
    return _blend(torch.zeros_like(images), images, factor)


def color(images: Tensor, factor: Tensor) -> Tensor:
    """Blends with the gray image."""
    return _blend(_gray(images).expand_as(images), images, factor)


def contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Blends with the mean gray of the image."""
    gray = _gray(images)
    total = gray.sum((1, 2, 3), keepdim=True)
    count = gray[0].numel()
    return _blend(((2 * total + count) // (2 * count)).expand_as(images), images, factor)


def sharpness(images: Tensor, factor: Tensor) -> Tensor:
    """Blends with a smoothed image: each pixel's 3 x 3 neighbours, itself 5 times, over 13; the border stays."""
    if min(images.shape[2:]) < 3:
        return images
    values = images.int()
    height, width = images.shape[2:]
    total = 4 * values[:, :, 1:-1, 1:-1] + 6
    for row in range(3):
        for column in range(3):
            total += values[:, :, row : row + height - 2, column : column + width - 2]
    result = images.clone()
    result[:, :, 1:-1, 1:-1] = _blend(total // 13, images[:, :, 1:-1, 1:-1], factor)
    return result


def posterize(images: Tensor, magnitude: Tensor) -> Tensor:
    """Keeps the highest bits of each value; `magnitude` says how many."""
    mask = 256 - 2 ** (8 - magnitude.long())
    return images & mask.to(torch.uint8)[:, None, None, None]


def solarize(images: Tensor, magnitude: Tensor) -> Tensor:
    """Inverts values that are not below the threshold."""
    return torch.where(images >= magnitude.ceil()[:, None, None, None], 255 - images, images)


def auto_contrast(images: Tensor, magnitude: Tensor) -> Tensor:
    """Stretches each channel to 0..255."""
    low, high = (values.to(precise(images.device)) for values in (images.amin((2, 3)), images.amax((2, 3))))
    # A number divided by a tensor would be its reciprocal times the number.
    scale = torch.where(high > low, torch.full_like(high, 255) / (high - low).clamp_min(1), 1.0)
    offset = torch.where(high > low, -low * scale, 0.0)
    levels = torch.arange(256, dtype=scale.dtype, device=images.device)
    return _look_up(images, (levels * scale[..., None] + offset[..., None]).clamp(0, 255).to(torch.uint8))


def equalize(images: Tensor, magnitude: Tensor) -> Tensor:
    """Spreads the values of each channel evenly, as Pillow's `ImageOps.equalize`."""
    values = images.flatten(2).long()
    counts = torch.zeros(*images.shape[:2], 256, dtype=torch.long, device=images.device)
    counts.scatter_add_(2, values, torch.ones_like(values))
    last = counts.gather(2, values.amax(2, keepdim=True))
    step = (values.shape[2] - last) // 255
    before = counts.cumsum(2) - counts
    table = ((step // 2 + before) // step.clamp_min(1)).clamp_max(255)
    levels = torch.arange(256, device=images.device)
    return _look_up(images, torch.where(step > 0, table, levels).to(torch.uint8))


RAND_AUGMENT: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Identity": lambda images, magnitude: images,
    "ShearX": shear_x,
    "ShearY": shear_y,
    "TranslateX": translate_x,
    "TranslateY": translate_y,
    "Rotate": rotate,
    "Brightness": lambda images, magnitude: brightness(images, 1.0 + magnitude),
    "Color": lambda images, magnitude: color(images, 1.0 + magnitude),
    "Contrast": lambda images, magnitude: contrast(images, 1.0 + magnitude),
    "Sharpness": lambda images, magnitude: sharpness(images, 1.0 + magnitude),
    "Posterize": posterize,
    "Solarize": solarize,
    "AutoContrast": auto_contrast,
    "Equalize": equalize,
}
"""The operations of RandAugment: images and their magnitudes [B], of the type that `precise` names."""


def precise(device: torch.device) -> torch.dtype:
    """float64; Apple's devices have float32 only."""
    return torch.float32 if device.type == "mps" else torch.float64


def _gray(images: Tensor) -> Tensor:
    """int64 [B, 1, H, W]."""
    weights = torch.tensor(_LUMA, device=images.device)[:, None, None]
    return ((images.long() * weights).sum(1, keepdim=True) + 2**15) >> 16


def _blend(first: Tensor, second: Tensor, share: Tensor) -> Tensor:
    """`first + share * (second - first)`, cut off to integers within 0..255, as `Image.blend`."""
    base = first.float()
    mixed = (second.float() - base) * share.float()[:, None, None, None] + base
    return mixed.clamp(0, 255).to(torch.uint8)


def _look_up(images: Tensor, tables: Tensor) -> Tensor:
    """Each value by the table [B, 3, 256] of its image and channel."""
    return tables.gather(2, images.flatten(2).long()).view_as(images)
