"""JPEG files to the pixels that Pillow makes of them, faster: by simplejpeg, or by libturbojpeg inside a box only.

All of them run libjpeg-turbo with the same settings, so the pixels agree bit by bit. The environment variable
`HF_REINFORCE_DECODER` chooses: `turbojpeg`, `simplejpeg`, `pil`, or the path of a libturbojpeg of version 3 or newer.
Without it the first of them that is there is used.
"""

import ctypes
import os
import sys
from collections.abc import Callable
from ctypes.util import find_library
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

DECODER_VARIABLE = "HF_REINFORCE_DECODER"
DECODERS = ("turbojpeg", "simplejpeg", "pil")

Edges = tuple[int, int, int, int]
"""Top, left, bottom and right of a box."""
Decoder = Callable[[bytes | memoryview, int, int, Edges | None], Tensor | None]
"""`decoder(encoded, height, width, edges or None)`: uint8 [3, H, W] in channels-last memory, None where Pillow must
decode (and say what is wrong)."""

MAX_SCANS = 100
"""Most scans of a progressive file that is decoded; encoders make about ten. Each takes as long as a whole image, but
only ten bytes of a file."""

_SOFS = (0xC0, 0xC1, 0xC2)  # baseline, extended and progressive, all with Huffman coding
_SKIPPED = {0xC4, 0xDB, 0xDD, 0xFE, 0xE0, *range(0xE2, 0xF0)}  # tables, restart interval, comment, APP0 and APP2-15
_START_OF_SCAN, _FILL, _PROGRESSIVE = 0xDA, 0xFF, 0xC2

_RGB, _DECOMPRESS = 0, 1  # names of turbojpeg.h: TJPF_RGB, TJINIT_DECOMPRESS
_SUBSAMPLING, _WIDTH, _HEIGHT, _PRECISION, _COLORSPACE, _LOSSLESS = 4, 5, 6, 7, 8, 15  # TJPARAM_*
_MCU_WIDTH = {0: 8, 1: 16, 2: 16, 3: 8, 4: 8, 5: 32, 6: 8, 7: 16}  # TJSAMP_444, 422, 420, GRAY, 440, 411, 441, 424
_PLAIN_COLORSPACES = (0, 1, 2)  # TJCS_RGB, YCbCr, GRAY
_MARGIN = 2  # pixels around a box that smooth upsampling of the colours looks at


def count_scans(encoded: bytes | memoryview) -> int:
    """Scans of a JPEG file; a little more where other data look like one."""
    data = np.frombuffer(encoded, dtype=np.uint8)
    return int(np.count_nonzero((data[:-1] == 0xFF) & (data[1:] == _START_OF_SCAN)))


def plain_size(encoded: bytes | memoryview) -> tuple[int, int] | None:
    """Height and width of a JPEG file that needs nothing but decoding, read from its header in microseconds.

    None for anything else: another format, CMYK, 12 bits, more pixels than Pillow allows or scans than `MAX_SCANS`,
    and files with an APP1 segment, which may hold an orientation.
    """
    data = memoryview(encoded).cast("B")
    size, at, components, progressive = None, 2, 0, False
    if bytes(data[:3]) != b"\xff\xd8\xff":
        return None
    while at + 10 <= len(data) and data[at] == 0xFF:
        marker, length = data[at + 1], data[at + 2] << 8 | data[at + 3]
        if marker == _START_OF_SCAN:
            alone = not progressive and data[at + 4] == components
            return size if alone or count_scans(encoded) <= MAX_SCANS else None
        if marker == _FILL:
            at += 1
            continue
        if marker in _SOFS:
            height, width = data[at + 5] << 8 | data[at + 6], data[at + 7] << 8 | data[at + 8]
            plain = data[at + 4] == 8 and data[at + 9] in (1, 3) and size is None
            if not plain or not 0 < height * width <= (Image.MAX_IMAGE_PIXELS or 0):
                return None
            size, components, progressive = (height, width), data[at + 9], marker == _PROGRESSIVE
        elif marker not in _SKIPPED:
            return None
        at += 2 + length
    return None


class _Region(ctypes.Structure):
    _fields_ = [("x", ctypes.c_int), ("y", ctypes.c_int), ("w", ctypes.c_int), ("h", ctypes.c_int)]


class TurboJPEG:
    """Box-only decoding with libturbojpeg 3 or newer: outside of the box just the entropy coding is read."""

    def __init__(self, path: str) -> None:
        library = ctypes.CDLL(path)
        pointer, integer = ctypes.c_void_p, ctypes.c_int
        signatures: dict[str, tuple[Any, list[Any]]] = {
            "tj3Init": (pointer, [integer]),
            "tj3Destroy": (None, [pointer]),
            "tj3DecompressHeader": (integer, [pointer, pointer, ctypes.c_size_t]),
            "tj3Get": (integer, [pointer, integer]),
            "tj3SetCroppingRegion": (integer, [pointer, _Region]),
            "tj3Decompress8": (integer, [pointer, pointer, ctypes.c_size_t, pointer, integer, integer]),
        }
        for name, (result, arguments) in signatures.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
        self._library: Any = library

    def __call__(self, encoded: bytes | memoryview, height: int, width: int, box: Edges | None) -> Tensor | None:
        library, data = self._library, np.frombuffer(encoded, dtype=np.uint8)
        handle = library.tj3Init(_DECOMPRESS)  # in 3 us; an old one remembers damage, and tables of other files
        try:
            if library.tj3DecompressHeader(handle, data.ctypes.data, data.size):
                return None
            get = partial(library.tj3Get, handle)
            mcu = _MCU_WIDTH.get(get(_SUBSAMPLING))
            plain = get(_PRECISION) == 8 and get(_COLORSPACE) in _PLAIN_COLORSPACES and not get(_LOSSLESS)
            if mcu is None or not plain or (get(_HEIGHT), get(_WIDTH)) != (height, width):
                return None
            top, left, bottom, right = box or (0, 0, height, width)
            x, y = max(left - _MARGIN, 0) // mcu * mcu, max(top - _MARGIN, 0)
            w, h = min(right + _MARGIN, width) - x, min(bottom + _MARGIN, height) - y
            if library.tj3SetCroppingRegion(handle, _Region(x, y, w, h)):
                return None
            pixels = torch.empty((h, w, 3), dtype=torch.uint8)
            if library.tj3Decompress8(handle, data.ctypes.data, data.size, pixels.data_ptr(), 3 * w, _RGB):
                return None  # damaged: Pillow decides what is still an image
            return pixels[top - y : bottom - y, left - x : right - x].permute(2, 0, 1)
        finally:
            library.tj3Destroy(handle)


def _simplejpeg(encoded: bytes | memoryview, height: int, width: int, box: Edges | None) -> Tensor | None:
    from simplejpeg import decode_jpeg

    try:
        pixels = torch.from_numpy(decode_jpeg(np.frombuffer(encoded, dtype=np.uint8), "RGB"))
    except ValueError:
        return None
    if tuple(pixels.shape) != (height, width, 3):
        return None
    top, left, bottom, right = box or (0, 0, height, width)
    return pixels[top:bottom, left:right].permute(2, 0, 1)


def _turbojpeg_path() -> str | None:
    """The libturbojpeg of this Python's own environment (conda), or the system's."""
    suffix = {"darwin": "libturbojpeg.dylib", "win32": "turbojpeg.dll"}.get(sys.platform, "libturbojpeg.so.0")
    own = Path(sys.prefix) / ("Library/bin" if sys.platform == "win32" else "lib") / suffix
    return str(own) if own.exists() else find_library("turbojpeg")


def load_decoder(choice: str | None = None) -> tuple[str, Decoder]:
    """Name and function of a decoder: one of `DECODERS`, a libturbojpeg by its path, or the first that is there."""
    problem = "it is not installed; pip install simplejpeg"
    if choice not in ("simplejpeg", "pil"):
        path = choice if choice not in (None, "turbojpeg") else _turbojpeg_path()
        try:
            if path is not None:
                return "turbojpeg", TurboJPEG(path)
            problem = "no libturbojpeg is installed"
        except (OSError, AttributeError) as error:
            problem = f"{path} is not a libturbojpeg of version 3 or newer ({error})"
    if choice in (None, "simplejpeg") and find_spec("simplejpeg"):
        return "simplejpeg", _simplejpeg
    if choice in (None, "pil"):
        return "pil", lambda *arguments: None
    raise ValueError(f"{DECODER_VARIABLE}={choice}: {problem}, or choose another of {', '.join(DECODERS)}.")


DECODER, decode_box = load_decoder(os.environ.get(DECODER_VARIABLE) or None)
"""Name of the decoder of this process, and the decoder."""
