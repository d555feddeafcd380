"""Files of every format and mode become the right pixels, or an error that says why; crops and resizes are right."""

import io

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageCms
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from hf_reinforce import images
from hf_reinforce.images import ImageError
from hf_reinforce.schema import MAX_IMAGE_SIDE

ORIENTATION = 0x0112
FROM_ORIENTATION = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: lambda a: np.rot90(a, 1),
}
"""EXIF orientation -> what turns the stored array [H, W, 3] upright."""


def pixels(data):
    """Decoded pixels as an array [H, W, 3], after checking what holds for every decoded image."""
    image = images.decode(data)
    assert image.dtype == torch.uint8 and image.ndim == 3 and image.shape[0] == 3
    assert image.permute(1, 2, 0).is_contiguous()
    assert images.image_size(data) == tuple(image.shape[1:])
    return image.permute(1, 2, 0).numpy()


# Modes


RAMP = np.linspace(0, 255, 48 * 64).reshape(48, 64).round().astype(np.uint8)
LOSSY = 40  # levels, mean of JPEG and the like on a picture of few colours


def colours():
    return Image.merge("RGB", [Image.fromarray(np.roll(RAMP, 20 * i, 1)) for i in range(3)])


def in_mode(mode):
    """A picture in a mode, and what it should look like in RGB."""
    gray = Image.fromarray(RAMP).convert("RGB")
    if mode == "LAB":
        profiles = [ImageCms.createProfile(name) for name in ("sRGB", "LAB")]
        return ImageCms.profileToProfile(colours(), *profiles, outputMode="LAB"), colours()
    if mode.startswith("I;16"):
        order = ">u2" if mode.endswith("B") else "<u2"
        return Image.frombytes(mode, (64, 48), (RAMP.astype(np.uint16) * 257).astype(order).tobytes()), gray
    if mode in ("I", "F"):
        return Image.fromarray(RAMP.astype(np.int32) * 257 if mode == "I" else (RAMP / 255).astype(np.float32)), gray
    if mode in ("La", "RGBa"):
        whole = colours().convert(mode.upper())
        return whole.convert(mode), whole.convert("RGB")
    image = colours().convert(mode) if mode != "PA" else colours().convert("P").convert("PA")
    return image, image.convert("RGB")


@pytest.mark.parametrize("mode", sorted(Image.MODES))
def test_every_mode_is_the_same_picture_or_an_error(mode):
    image, expected = in_mode(mode)
    tried = {"memory": image}
    for format in images.FORMATS:
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
            found = images.from_pil(images._to_rgb(item)) if format == "memory" else images.decode(item)
        except ImageError as error:
            assert len(str(error)) > 30 and format != "memory", (format, error)
            continue
        difference = np.abs(np.asarray(images.to_pil(found), dtype=int) - np.asarray(expected, dtype=int)).mean()
        lossy = format in ("JPEG", "WEBP", "GIF", "AVIF") or mode in ("LAB", "PA")
        assert difference <= (LOSSY if lossy else 1) and found.float().std() > 30, format
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
            images.decode(buffer.getvalue())
    else:
        np.testing.assert_array_equal(pixels(buffer.getvalue())[..., 0], expected)


@pytest.mark.parametrize("transparency", [None, 3, bytes(range(0, 256, 4))])
def test_transparency_is_dropped(photo, encoded, transparency):
    image = photo.quantize(64)
    expected = np.array(image.getpalette("RGB"), dtype=np.uint8).reshape(-1, 3)[np.asarray(image)]
    options = {} if transparency is None else {"transparency": transparency}
    np.testing.assert_array_equal(pixels(encoded("PNG", "P", image, **options)), expected)
    faded = photo.copy()
    faded.putalpha(Image.linear_gradient("L").resize(photo.size))
    np.testing.assert_array_equal(pixels(encoded("PNG", "RGBA", faded)), np.asarray(photo))


# Formats


@pytest.mark.parametrize(
    ("format", "options"), [("PNG", {}), ("WEBP", {"lossless": True}), ("BMP", {}), ("TIFF", {}), ("PPM", {})]
)
def test_lossless_formats_are_decoded_exactly(photo, encoded, format, options):
    data = encoded(format, **options)
    np.testing.assert_array_equal(pixels(data), np.asarray(photo))
    np.testing.assert_array_equal(pixels(memoryview(data)), np.asarray(photo))
    images.decode(data).zero_()
    assert images.decode(data).any(), "decoded images share no memory"


@pytest.mark.parametrize("orientation", [*range(10), 60000])  # beyond 8 it is none
@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_exif_orientation_is_applied_before_the_box(encoded, format, orientation):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    plain, turned = encoded(format), encoded(format, exif=exif)
    expected = FROM_ORIENTATION.get(orientation, FROM_ORIENTATION[1])(pixels(plain))
    np.testing.assert_array_equal(pixels(turned), expected)
    cut = images.decode(turned, {"top": 4, "left": 2, "height": 21, "width": 17}).permute(1, 2, 0)
    np.testing.assert_array_equal(cut.numpy(), expected[4:25, 2:19])


@pytest.mark.parametrize("format", ["GIF", "WEBP"])
def test_of_an_animation_the_first_frame_is_taken(photo, encoded, format):
    mode, options = ("P", {}) if format == "GIF" else ("RGB", {"lossless": True})
    first, second = photo.quantize(32).convert(mode), photo.rotate(180).quantize(32).convert(mode)
    data = encoded(format, mode, first, save_all=True, append_images=[second], **options)
    with Image.open(io.BytesIO(data)) as animation:
        assert animation.n_frames == 2
    np.testing.assert_array_equal(pixels(data), np.asarray(first.convert("RGB")))


@pytest.mark.parametrize("format", ["PNG", "WEBP", "GIF", "TIFF", "BMP"])
@pytest.mark.parametrize("share", [0.05, 0.9])
def test_truncated_files_are_refused(encoded, format, share):
    data = encoded(format, "P" if format == "GIF" else "RGB")
    with pytest.raises(ImageError, match="cannot be decoded"):
        images.decode(data[: int(len(data) * share)])


def test_formats_that_start_programs_are_not_read(encoded):
    with pytest.raises(ImageError, match="its bytes are none of JPEG, PNG"):
        images.decode(encoded("EPS"))


@pytest.mark.parametrize("size", [(40_000, 1), (1, MAX_IMAGE_SIDE + 1), (MAX_IMAGE_SIDE, 1)])
def test_the_largest_side_is_what_a_box_can_hold(encoded, size):
    data = encoded("PNG", "RGB", Image.new("RGB", size))
    if max(size) <= MAX_IMAGE_SIDE:
        assert images.decode(data).shape == (3, size[1], size[0])
        return
    with pytest.raises(ImageError, match=rf"{size[0]}x{size[1]}.*{MAX_IMAGE_SIDE}"):
        images.decode(data)


def test_an_image_beyond_pillows_limit_raises_with_the_remedy(photo, encoded, monkeypatch):
    for format in ("JPEG", "PNG", "TIFF"):
        data = encoded(format)
        for limit in (200 * 140, None):
            monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
            assert images.decode(data).shape == (3, 140, 200)
        for limit in (200 * 140 - 1, 200 * 70 - 1):  # Pillow itself would warn, or raise an error of its own
            monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
            for read in (images.decode, images.image_size):
                with pytest.raises(ImageError, match=r"too large .*pixels.*set PIL\.Image\.MAX_IMAGE_PIXELS"):
                    read(data)


def test_encoded_bytes_come_before_a_path_and_have_a_hash(tmp_path, encoded):
    data, path = encoded("JPEG"), tmp_path / "photo.jpg"
    path.write_bytes(data)
    assert images.read_encoded({"bytes": b"abc", "path": "photo.jpg"}) == b"abc"
    assert images.read_encoded({"bytes": None, "path": f"file://{path}"}) == data
    assert images.image_hash(b"") == "2d06800538d394c2"  # the reference value of the xxHash specification
    assert images.image_hash(memoryview(data)) == images.image_hash(data)


# Crops and sizes


def test_pil_round_trip_of_any_memory_layout(photo):
    image = images.from_pil(photo)
    assert images.to_pil(image.contiguous()).tobytes() == photo.tobytes()
    assert images.to_pil(image[:, 10:50, 20:90]).tobytes() == photo.crop((20, 10, 90, 50)).tobytes()


SIDES = st.integers(1, 12)
OFFSETS = st.integers(-30, 30)


@given(SIDES, SIDES, OFFSETS, OFFSETS, st.integers(1, 20), st.integers(1, 20))
def test_crop_equals_numpy_padding(full_height, full_width, top, left, height, width):
    array = np.arange(1, full_height * full_width * 3 + 1, dtype=np.uint16).reshape(full_height, full_width, 3)
    array = (array % 255 + 1).astype(np.uint8)  # no pixel of the image is black
    image = torch.from_numpy(array.copy()).permute(2, 0, 1)
    margin = 60
    padded = np.pad(array, ((margin, margin), (margin, margin), (0, 0)))
    expected = padded[margin + top : margin + top + height, margin + left : margin + left + width]
    cut = images.crop(image, {"top": top, "left": left, "height": height, "width": width})
    np.testing.assert_array_equal(cut.permute(1, 2, 0).numpy(), expected)
    np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), array)
    inside = top >= 0 and left >= 0 and top + height <= full_height and left + width <= full_width
    assert (cut.untyped_storage().data_ptr() == image.untyped_storage().data_ptr()) == inside


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("height", "width"), [(32, 32), (224, 224), (140, 50), (7, 311)])
def test_resize_equals_torchvision_and_sees_the_crop_alone(photo, interpolation, height, width):
    image = images.from_pil(photo)
    cut = images.crop(image, {"top": 20, "left": 30, "height": 60, "width": 50})
    for each in (image, cut):
        expected = F.resize(each.clone().contiguous(), [height, width], InterpolationMode(interpolation))
        assert torch.equal(images.resize(each, height, width, interpolation), expected)
    assert images.resize(image, 140, 200) is image
    with pytest.raises(ValueError, match="bilinear, bicubic"):
        images.resize(image, 20, 20, "bilinearr")


COORDINATES = st.integers(0, 300)


@given(COORDINATES, COORDINATES, COORDINATES, COORDINATES, st.floats(0.05, 8.0) | st.just(1.0))
def test_scale_box_rounds_its_edges(top, left, height, width, scale):
    scaled = images.scale_box({"top": top, "left": left, "height": height, "width": width}, scale)
    edges = np.array([top, left, top + height, left + width]) * scale
    found = [scaled["top"], scaled["left"], scaled["top"] + scaled["height"], scaled["left"] + scaled["width"]]
    assert np.abs(found - edges).max() <= 0.5 + 1e-9 and all(isinstance(value, int) for value in scaled.values())
