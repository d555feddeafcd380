"""The operations of RandAugment that need no geometry, on arrays: Pillow's pixels in a fraction of its time.

Pillow is the reference, bit by bit: integers where it computes in integers, float32 and float64 where it uses those.
Images are uint8 [H, W, 3], contiguous, and are not changed in place.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]

_LEVELS: Pixels = np.arange(256, dtype=np.uint8)
_LUMA = np.array([19595, 38470, 7471], dtype=np.float32) / np.float32(2**16)  # ITU-R 601-2, as Pillow rounds it


def brightness(image: Pixels, factor: float) -> Pixels:
    """Blends with black; `factor` 1 changes nothing."""
    return _look_up(image, _blend(np.zeros_like(_LEVELS), _LEVELS, factor))


def contrast(image: Pixels, factor: float) -> Pixels:
    """Blends with the mean gray of the image."""
    # Multiples of 2**-16 below 256 are exact in float32, and so are their sums; so is the sum of a row.
    gray = image.astype(np.float32) @ _LUMA
    gray += np.float32(0.5)
    mean = int(float(np.floor(gray).sum(axis=1).sum(dtype=np.float64)) / gray.size + 0.5)
    return _look_up(image, _blend(np.full_like(_LEVELS, mean), _LEVELS, factor))


def sharpness(image: Pixels, factor: float) -> Pixels:
    """Blends with a smoothed image: each pixel's 3 x 3 neighbours, itself 5 times, over 13; the border stays."""
    height, width = image.shape[:2]
    if min(height, width) < 3:
        return image
    result = image.copy()
    flat, row = result.reshape(-1), 3 * width  # as one line, which wraps at the border: that is put back below
    values = flat.astype(np.uint16)
    columns = values[: -2 * row] + values[row:-row]
    columns += values[2 * row :]
    total = columns[:-6] + columns[3:-3]
    total += columns[6:]
    values <<= 2
    total += values[row + 3 : -row - 3]
    total += 6
    total //= 13  # rounded
    flat[row + 3 : -row - 3] = _blend(total, flat[row + 3 : -row - 3], factor)
    result[:, 0], result[:, -1] = image[:, 0], image[:, -1]
    return result


def posterize(image: Pixels, bits: int) -> Pixels:
    """Keeps the highest bits of each value."""
    return image & np.uint8(256 - 2 ** (8 - bits))


def solarize(image: Pixels, threshold: float) -> Pixels:
    """Inverts values that are not below the threshold."""
    return image ^ np.negative((image >= math.ceil(threshold)).view(np.uint8))  # 255 where inverted


def auto_contrast(image: Pixels) -> Pixels:
    """Stretches each channel to 0..255."""
    rows = image.reshape(len(image), -1)
    low = rows.min(axis=0).reshape(-1, 3).min(axis=0).astype(np.float64)
    high = rows.max(axis=0).reshape(-1, 3).max(axis=0).astype(np.float64)
    scale = np.where(high > low, 255.0 / np.maximum(high - low, 1.0), 1.0)
    offset = np.where(high > low, -low * scale, 0.0)
    if (scale == 1.0).all() and not offset.any():
        return image
    tables = (_LEVELS[:, None] * scale + offset).clip(0, 255).astype(np.uint8)
    # Of three tables at once, this is the fastest.
    return np.array(Image.fromarray(image).point(tables.T.reshape(-1).tolist()))


def translate(image: Pixels, down: int, right: int) -> Pixels:
    """Moves the image; what moves in is black."""
    height, width = image.shape[:2]
    moved = np.zeros_like(image)
    if abs(down) < height and abs(right) < width:
        there = np.s_[max(down, 0) : height + min(down, 0), max(right, 0) : width + min(right, 0)]
        here = np.s_[max(-down, 0) : height + min(-down, 0), max(-right, 0) : width + min(-right, 0)]
        moved[there] = image[here]
    return moved


def _blend(first: NDArray[Any], second: NDArray[Any], share: float) -> Pixels:
    """`first + share * (second - first)` in float32, cut off to integers within 0..255, as `Image.blend`."""
    base = first.astype(np.float32)
    mixed = second.astype(np.float32)
    mixed -= base
    mixed *= np.float32(share)
    mixed += base
    if not 0 <= share <= 1:
        np.clip(mixed, 0, 255, out=mixed)
    return mixed.astype(np.uint8)


def _look_up(image: Pixels, table: Pixels) -> Pixels:
    # NumPy would turn the image into 64-bit indices first, which takes seven times as long.
    moved = bytearray(image.data).translate(table.tobytes())
    return np.frombuffer(moved, dtype=np.uint8).reshape(image.shape)
