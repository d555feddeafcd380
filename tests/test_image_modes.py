"""Every mode of Pillow, through every format that holds it: the same picture, or an error that says why."""

import io

import numpy as np
import pytest
from PIL import Image, ImageCms

from hf_reinforce.images import FORMATS, ImageError, decode, from_pil, to_pil
from hf_reinforce.images.encoded import _to_rgb

RAMP = np.linspace(0, 255, 48 * 64).reshape(48, 64).round().astype(np.uint8)
LOSSY = 40  # levels, mean of JPEG and the like on a picture of few colours


def colours():
    return Image.merge("RGB", [Image.fromarray(np.roll(RAMP, 20 * i, 1)) for i in range(3)])


def in_mode(mode):
    """A picture in a mode, and what it should look like in RGB."""
    if mode == "LAB":
        profiles = [ImageCms.createProfile(name) for name in ("sRGB", "LAB")]
        return ImageCms.profileToProfile(colours(), *profiles, outputMode="LAB"), colours()
    if mode.startswith("I;16"):
        wide = RAMP.astype(np.uint16) * 257
        order = ">u2" if mode.endswith("B") else "<u2"
        return Image.frombytes(mode, (64, 48), wide.astype(order).tobytes()), Image.fromarray(RAMP).convert("RGB")
    if mode == "I":
        return Image.fromarray(RAMP.astype(np.int32) * 257), Image.fromarray(RAMP).convert("RGB")
    if mode == "F":
        return Image.fromarray((RAMP / 255).astype(np.float32)), Image.fromarray(RAMP).convert("RGB")
    if mode in ("La", "RGBa"):
        whole = colours().convert(mode.upper())
        return whole.convert(mode), whole.convert("RGB")
    image = colours().convert(mode) if mode != "PA" else colours().convert("P").convert("PA")
    return image, image.convert("RGB")


@pytest.mark.parametrize("mode", sorted(Image.MODES))
def test_every_mode_is_the_same_picture_or_an_error(mode):
    image, expected = in_mode(mode)
    tried = {"memory": image}
    for format in FORMATS:
        buffer = io.BytesIO()
        try:
            image.save(buffer, format)
        except (OSError, KeyError, ValueError):
            continue  # Pillow does not write this mode in this format
        if mode[0] not in "IF" or Image.open(buffer).mode[0] in "IF":  # else the file holds another picture
            tried[format] = buffer.getvalue()
    shown = 0
    for format, item in tried.items():
        try:
            found = from_pil(_to_rgb(item)) if format == "memory" else decode(item)
        except ImageError as error:
            assert len(str(error)) > 30 and format != "memory", (format, error)
            continue
        difference = np.abs(np.asarray(to_pil(found), dtype=int) - np.asarray(expected, dtype=int)).mean()
        assert difference <= (LOSSY if format in ("JPEG", "WEBP", "GIF", "AVIF") or mode in ("LAB", "PA") else 1), (
            format
        )
        assert found.float().std() > 30, f"{format}: no picture is left"
        shown += 1
    assert shown


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (RAMP.astype(np.int32) * 257, RAMP),
        (RAMP.astype(np.float32) / 255, RAMP),
        (RAMP.astype(np.float32), RAMP),
        (np.zeros((4, 4), dtype=np.float32), np.zeros((4, 4))),
        (RAMP.astype(np.int32), "from 0 to 255, of which nobody knows what is white"),
        (RAMP.astype(np.int32) * 2**20, "32-bit numbers"),
        (RAMP.astype(np.int32) - 9, "32-bit numbers from -9"),
        (RAMP.astype(np.float32) * 4, "decimal numbers from 0 to 1020"),
        (RAMP.astype(np.float32) - 1, "decimal numbers from -1"),
        (np.where(RAMP > 99, np.nan, RAMP / 255).astype(np.float32), "decimal numbers from nan"),
        (np.where(RAMP > 99, np.inf, RAMP / 255).astype(np.float32), "decimal numbers from 0 to inf"),
    ],
)
def test_levels_of_more_bits_are_scaled_by_their_range_or_refused(values, expected):
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "TIFF")
    if isinstance(expected, str):
        with pytest.raises(ImageError, match=expected):
            decode(buffer.getvalue())
    else:
        np.testing.assert_array_equal(np.asarray(to_pil(decode(buffer.getvalue())))[..., 0], expected)
