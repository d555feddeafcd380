"""Encoded bytes to uint8 pixels: the only place that decodes, crops and resizes, with every guard against bad files.

Generation and replay both come through here, so a stored target belongs to the very pixels that a student sees.
An image is a uint8 RGB tensor [3, H, W] in channels-last memory, which is what PIL and the antialiased uint8 resize of
torch both want.
"""

import io
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import islice
from typing import Any

import fsspec
import numpy as np
import torch
import xxhash
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import default_collate

from hf_reinforce.images import jpeg
from hf_reinforce.schema import MAX_IMAGE_SIDE

Box = dict[str, int]
Encoded = bytes | memoryview

PIXEL_BACKEND = {"decoder": "pil", "resize": "torch uint8 antialias", "rand_augment": "pil"}
"""What makes the pixels; recorded in `reinforcement.json`."""

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
"""What is decoded (and MPO, a kind of JPEG). Pillow reads more, such as EPS, for which it starts Ghostscript."""

PROTOCOLS = ("file", "local", "hf", "http", "https", "s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "zip", "tar")
"""Where the path of an image may lead to; some of fsspec's others run what they read, or log in somewhere."""

MAX_FILE_BYTES = 2**28
"""Most that an image file may hold: as many as the uncompressed pixels of the largest image."""
_PIECE = 2**20  # bytes
_TOO_LARGE = f"it has more than {MAX_FILE_BYTES:,} bytes"

INTERPOLATIONS = ("bilinear", "bicubic", "nearest", "lanczos", "box", "hamming")
"""What evaluation resizes with; policies know the first two."""

Image.init()
_FORMATS = [name for name in FORMATS if name in Image.OPEN]  # AVIF needs Pillow 11.3
_RAISE_LIMIT = "Make it smaller; or, if its memory is affordable, set PIL.Image.MAX_IMAGE_PIXELS to more."


class ImageError(ValueError):
    """An image that cannot be used: unreadable, truncated or too large."""


class UnreachableError(ImageError):
    """A file is not there, or cannot be had now; which of the two cannot be told from one file."""


def image_hash(encoded: Encoded) -> str:
    """xxh3-64 of the encoded bytes as 16 hex digits, the key for joining and for checking."""
    return xxhash.xxh3_64_hexdigest(encoded)


def read_encoded(item: dict[str, Any] | None) -> Encoded:
    """The encoded bytes of one value of an image column, `{"bytes": ..., "path": ...}`.

    Raises:
        ImageError: if there are neither bytes nor a path that is read: a file of at most `MAX_FILE_BYTES`, of
            `PROTOCOLS`, and where it is local neither a folder, device nor pipe.
        UnreachableError: if the file is missing, or its disk or server does not give it.
    """
    if item is None:
        raise ImageError("there is no image.")
    if item["bytes"] is not None:
        return item["bytes"]  # type: ignore[no-any-return]
    try:
        check_path(item["path"])
        with fsspec.open(item["path"], "rb") as file:
            encoded = b"".join(islice(iter(partial(file.read, _PIECE), b""), MAX_FILE_BYTES // _PIECE + 1))
        if len(encoded) > MAX_FILE_BYTES:
            raise ValueError(_TOO_LARGE)
        return encoded
    except Exception as error:  # each of fsspec's file systems has errors of its own
        kind = ImageError if isinstance(error, ValueError) else UnreachableError
        raise kind(f"the file cannot be read ({type(error).__name__}: {error}).") from error


def check_path(path: str | None) -> None:
    """Refuses a path whose mere opening could harm, or never end; `a::b` is the file a in the archive b."""
    if not path:
        raise ValueError("there are neither bytes nor a path")
    for link in path.split("::"):
        protocol, remote, place = link.partition("://")
        if remote and protocol not in PROTOCOLS:
            raise ValueError(f"the protocol {protocol!r} is not one of {', '.join(PROTOCOLS)}")
        if not remote and "::" in path and not os.path.isabs(link):  # fsspec takes a word for a protocol
            raise ValueError(f"{link!r} is neither an address nor an absolute path")
        if not remote or protocol in ("file", "local"):
            found = os.stat(place if remote else link)
            if not stat.S_ISREG(found.st_mode) or not found.st_size:  # what the system makes up, as in /proc, has none
                raise ValueError("it is empty, or a folder, device or pipe")
            if found.st_size > MAX_FILE_BYTES and "::" not in path:
                raise ValueError(_TOO_LARGE)


def decode(encoded: Encoded, box: Box | None = None) -> Tensor:
    """Decodes an image file to RGB.

    EXIF orientation is applied; alpha is dropped; grayscale, palette, CMYK and 16-bit images and decimal numbers from
    0 to 1 become 8-bit RGB; of an animation the first frame is taken.

    Args:
        encoded: the bytes of a file in one of `FORMATS`.
        box: decode only this box, see `crop`. The pixels are those of `crop(decode(encoded), box)`; where libturbojpeg
            decodes (see `hf_reinforce.images.jpeg`), it takes about half the time. Damage below the box may go
            unnoticed.

    Returns:
        uint8 tensor [3, H, W], values 0 to 255, channels-last memory.

    Raises:
        ImageError: if the bytes are not a complete image, a side exceeds 32,767 pixels, the image has more than
            `PIL.Image.MAX_IMAGE_PIXELS` (89,478,485 unless it is set), or a JPEG more than `jpeg.MAX_SCANS` scans.
    """
    size = jpeg.plain_size(encoded)
    if size is not None and max(size) <= MAX_IMAGE_SIDE:
        decoded = _decode_jpeg(encoded, *size, box)
        if decoded is not None:
            return decoded
    with opened(encoded) as image:
        if size is None and image.format == "JPEG" and image.mode in ("RGB", "L") and _orientation(image) == 1:
            decoded = _decode_jpeg(encoded, image.height, image.width, box)
            if decoded is not None:
                return decoded
        ImageOps.exif_transpose(image, in_place=True)  # else it would make a copy of every image
        whole = from_pil(_to_rgb(image))
        return whole if box is None else crop(whole, box)


def image_size(encoded: Encoded) -> tuple[int, int]:
    """Height and width that `decode` will give an image, read from its header; errors as `decode`."""
    size = jpeg.plain_size(encoded)
    if size is not None and max(size) <= MAX_IMAGE_SIDE:
        return size
    with opened(encoded) as image:
        turned = _orientation(image) >= 5 and image.format != "TIFF"  # whose size Pillow has turned already
        return (image.width, image.height) if turned else (image.height, image.width)


@contextmanager
def opened(encoded: Encoded) -> Iterator[Image.Image]:
    """An image file, whose pixels may be loaded; errors as `decode`, also for what shows only while it is used."""
    try:
        with Image.open(io.BytesIO(encoded), formats=_FORMATS) as image:
            if max(image.size) > MAX_IMAGE_SIDE:
                raise ImageError(
                    f"the image has {image.width}x{image.height} pixels; no side may exceed {MAX_IMAGE_SIDE}."
                )
            if Image.MAX_IMAGE_PIXELS is not None and image.width * image.height > Image.MAX_IMAGE_PIXELS:
                raise ImageError(f"the image is too large ({image.width}x{image.height} pixels). {_RAISE_LIMIT}")
            if image.format in ("JPEG", "MPO") and jpeg.count_scans(encoded) > jpeg.MAX_SCANS:
                raise ImageError(f"it is a JPEG of more than {jpeg.MAX_SCANS} scans, each as slow as a whole image.")
            yield image
    except ImageError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(f"the image is too large ({error}) {_RAISE_LIMIT}") from error
    except UnidentifiedImageError as error:  # its own message holds an address in memory
        formats = ", ".join(_FORMATS)
        raise ImageError(f"the image cannot be decoded: its bytes are none of {formats}.") from error
    except Exception as error:  # Pillow's plugins raise whatever their parser runs into
        raise ImageError(f"the image cannot be decoded ({type(error).__name__}: {error}).") from error


def _orientation(image: Image.Image) -> int:
    if not image.info.keys() & {"exif", "xmp"} and image.format == "JPEG":
        return 1
    found = image.getexif().get(ExifTags.Base.Orientation, 1)
    return found if found in range(1, 9) else 1


def _decode_jpeg(encoded: Encoded, height: int, width: int, box: Box | None) -> Tensor | None:
    """The image or a box of it, None where Pillow must decode."""
    if box is None:
        return jpeg.decode_box(encoded, height, width, None)
    top, left = max(box["top"], 0), max(box["left"], 0)
    bottom, right = min(box["top"] + box["height"], height), min(box["left"] + box["width"], width)
    if bottom <= top or right <= left:
        return None
    inside = jpeg.decode_box(encoded, height, width, (top, left, bottom, right))
    return None if inside is None else crop(inside, {**box, "top": box["top"] - top, "left": box["left"] - left})


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode.startswith(("I", "F")):
        image = Image.fromarray(_gray(image))
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    if image.mode in ("La", "RGBa"):  # alpha is multiplied in
        image = image.convert(image.mode.upper())
    return image.convert("RGB")


def _gray(image: Image.Image) -> NDArray[np.uint8]:
    """Gray levels of more than 8 bits as 8 bits, where it is known which of them is white."""
    values = np.asarray(image)
    low, high = values.min(), values.max()
    if image.mode == "F" and low >= 0 and high <= 255:  # false for NaN
        return (values * (255 if high <= 1 else 1)).round().astype(np.uint8)
    of_16_bits = image.mode != "I" or image.format == "PPM" or high > 255  # Pillow scales what PPM holds
    if image.mode != "F" and of_16_bits and low >= 0 and high < 2**16:
        return (values.astype(np.int64) >> 8).astype(np.uint8)
    kind = "decimal" if image.mode == "F" else "32-bit"
    raise ImageError(
        f"its gray levels are {kind} numbers from {low:g} to {high:g}, of which nobody knows what is white; save it "
        "with 8 or 16 bits, or as decimal numbers from 0 to 1."
    )


def from_pil(image: Image.Image) -> Tensor:
    """PIL RGB image to a uint8 tensor [3, H, W] in channels-last memory."""
    return torch.from_numpy(np.array(image, dtype=np.uint8)).permute(2, 0, 1)


def to_pil(image: Tensor) -> Image.Image:
    """uint8 tensor [3, H, W] to a PIL RGB image."""
    return Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())


def crop(image: Tensor, box: Box) -> Tensor:
    """Cuts a box out of an image uint8 [3, H, W]: a view of it if the box lies inside; what lies outside is black."""
    top, left, height, width = box["top"], box["left"], box["height"], box["width"]
    full_height, full_width = image.shape[-2:]
    y0, y1 = max(top, 0), min(top + height, full_height)
    x0, x1 = max(left, 0), min(left + width, full_width)
    if (y1 - y0, x1 - x0) == (height, width):
        return image[:, y0:y1, x0:x1]
    padded = image.new_zeros((height, width, 3)).permute(2, 0, 1)
    if y1 > y0 and x1 > x0:
        padded[:, y0 - top : y1 - top, x0 - left : x1 - left] = image[:, y0:y1, x0:x1]
    return padded


def resize(image: Tensor, height: int, width: int, interpolation: str = "bilinear") -> Tensor:
    """Antialiased resize of a uint8 image [3, H, W] to [3, height, width], in channels-last memory.

    `interpolation` is one of `INTERPOLATIONS`; those that torch lacks are Pillow's.
    """
    if interpolation not in INTERPOLATIONS:
        raise ValueError(f"interpolation must be one of {', '.join(INTERPOLATIONS)}, not {interpolation!r}.")
    if tuple(image.shape[-2:]) == (height, width):
        return image
    if interpolation not in ("bilinear", "bicubic"):
        return from_pil(to_pil(image).resize((width, height), Image.Resampling[interpolation.upper()]))
    # Of a crop that is still a view, torch would make a planar image, in twice the time.
    batch = image[None].contiguous(memory_format=torch.channels_last)
    return F.interpolate(batch, (height, width), mode=interpolation, antialias=True)[0]


def stack(views: Sequence[Tensor]) -> Tensor:
    """Views uint8 [3, S, S] as one batch [B, 3, S, S], both in channels-last memory.

    Inside a worker of a `DataLoader` the batch is made in the memory in which the main process will read it.
    """
    batch: Tensor = default_collate([view.permute(1, 2, 0) for view in views])
    return batch.permute(0, 3, 1, 2)


def scale_box(box: Box, scale: float) -> Box:
    """A box in pixels of a view, moved to a view `scale` times its size; edges are rounded."""
    if scale == 1.0:
        return box
    top, left = round(box["top"] * scale), round(box["left"] * scale)
    bottom, right = round((box["top"] + box["height"]) * scale), round((box["left"] + box["width"]) * scale)
    return {"top": top, "left": left, "height": bottom - top, "width": right - left}
