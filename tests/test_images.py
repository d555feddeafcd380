import io

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
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
    return image.permute(1, 2, 0).numpy()


def palette_colours(image):
    return np.array(image.getpalette("RGB"), dtype=np.uint8).reshape(-1, 3)[np.asarray(image)]


@pytest.mark.parametrize(
    ("format", "options"), [("PNG", {}), ("WEBP", {"lossless": True}), ("BMP", {}), ("TIFF", {}), ("PPM", {})]
)
def test_decode_lossless_formats_exactly(photo, encoded, format, options):
    np.testing.assert_array_equal(pixels(encoded(format, **options)), np.asarray(photo))


@pytest.mark.parametrize(
    ("format", "options"), [("JPEG", {"quality": 95, "subsampling": 0}), ("WEBP", {"quality": 95})]
)
def test_decode_lossy_formats_closely(photo, encoded, format, options):
    difference = np.abs(pixels(encoded(format, **options)).astype(int) - np.asarray(photo))
    assert 0 < difference.mean() < 4


@pytest.mark.parametrize("mode", ["L", "LA", "1"])
def test_decode_grayscale(photo, encoded, mode):
    gray = np.asarray(photo.convert(mode).convert("L"))
    np.testing.assert_array_equal(pixels(encoded("PNG", mode)), np.stack([gray] * 3, -1))


@pytest.mark.parametrize("transparency", [None, 3, bytes(range(0, 256, 4))])
def test_decode_palette_drops_transparency(photo, encoded, transparency):
    image = photo.quantize(64)
    options = {} if transparency is None else {"transparency": transparency}
    np.testing.assert_array_equal(pixels(encoded("PNG", "P", image, **options)), palette_colours(image))


def test_decode_rgba_drops_alpha(photo, encoded):
    image = photo.copy()
    image.putalpha(Image.linear_gradient("L").resize(photo.size))
    np.testing.assert_array_equal(pixels(encoded("PNG", "RGBA", image)), np.asarray(photo))


def test_decode_cmyk(photo, encoded):
    generator = np.random.default_rng(0)
    inks = generator.integers(0, 256, (14, 20, 4), dtype=np.uint8)
    expected = (255 - inks[..., :3].astype(float)) * (255 - inks[..., 3:]) / 255
    decoded = pixels(encoded("TIFF", "CMYK", Image.fromarray(inks, mode="CMYK")))
    assert np.abs(decoded - expected).max() <= 1
    difference = np.abs(pixels(encoded("JPEG", "CMYK", quality=95)).astype(int) - np.asarray(photo))
    assert difference.mean() < 6


@pytest.mark.parametrize("format", ["PNG", "TIFF", "PPM"])
def test_decode_16_bit_gray_keeps_the_high_byte(encoded, format):
    gray = np.linspace(0, 2**16 - 1, 60 * 50).astype(np.uint16).reshape(60, 50)
    image = Image.fromarray(gray)
    assert image.mode == "I;16"
    expected = np.stack([(gray // 256).astype(np.uint8)] * 3, -1)
    np.testing.assert_array_equal(pixels(encoded(format, "I;16", image)), expected)


@pytest.mark.parametrize("orientation", FROM_ORIENTATION)
def test_decode_applies_exif_orientation(encoded, orientation):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    plain, tagged = encoded("JPEG"), encoded("JPEG", exif=exif)
    assert plain != tagged
    np.testing.assert_array_equal(pixels(tagged), FROM_ORIENTATION[orientation](pixels(plain)))


@pytest.mark.parametrize("format", ["GIF", "WEBP"])
def test_decode_takes_the_first_frame_of_an_animation(photo, encoded, format):
    first, second = photo.quantize(32), photo.rotate(180).quantize(32)
    options = {"lossless": True} if format == "WEBP" else {}
    mode = "P" if format == "GIF" else "RGB"
    further = [second if format == "GIF" else second.convert("RGB")]
    data = encoded(format, mode, first, save_all=True, append_images=further, **options)
    with Image.open(io.BytesIO(data)) as animation:
        assert animation.n_frames == 2
    np.testing.assert_array_equal(pixels(data), palette_colours(first))


def test_decode_reads_a_memoryview(encoded):
    data = encoded("JPEG")
    np.testing.assert_array_equal(pixels(memoryview(data)), pixels(data))
    assert images.image_hash(memoryview(data)) == images.image_hash(data)


def test_decoded_images_do_not_share_memory(encoded):
    data = encoded("PNG")
    first = images.decode(data)
    first.zero_()
    assert images.decode(data).any()


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"])
@pytest.mark.parametrize("share", [0.05, 0.5, 0.9])
def test_truncated_file_raises(encoded, format, share):
    data = encoded(format, "P" if format == "GIF" else "RGB")
    images.decode(data)
    with pytest.raises(ImageError, match="cannot be decoded"):
        images.decode(data[: int(len(data) * share)])


@pytest.mark.parametrize(
    "data", [b"", b"\x00", np.random.default_rng(0).bytes(5000), b"\xff\xd8\xff\xe0" + bytes(100), b"<html></html>"]
)
def test_bytes_that_are_no_image_raise(data):
    with pytest.raises(ImageError, match="cannot be decoded"):
        images.decode(data)


@pytest.mark.parametrize("size", [(40_000, 1), (1, 40_000), (MAX_IMAGE_SIDE + 1, 2)])
def test_too_large_an_image_raises_with_its_size_and_the_limit(encoded, size):
    data = encoded("PNG", "RGB", Image.new("RGB", size))
    with pytest.raises(ImageError, match=rf"{size[0]}x{size[1]}.*{MAX_IMAGE_SIDE}"):
        images.decode(data)


def test_largest_allowed_side_is_decoded(encoded):
    assert images.decode(encoded("PNG", "RGB", Image.new("RGB", (MAX_IMAGE_SIDE, 1)))).shape == (3, 1, MAX_IMAGE_SIDE)


def test_an_image_beyond_pillows_limit_raises_with_the_remedy(photo, encoded, monkeypatch):
    for format in ("JPEG", "PNG", "TIFF"):
        data = encoded(format)
        for limit in (200 * 140, None):
            monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
            assert images.decode(data).shape == (3, 140, 200)
        for limit in (200 * 140 - 1, 200 * 70 - 1):  # Pillow itself would warn, or raise an error of its own
            monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
            for read in (images.decode, images.image_size):
                with pytest.raises(ImageError, match=r"large|200x140 pixels.*set PIL\.Image\.MAX_IMAGE_PIXELS"):
                    read(data)


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_image_size_is_that_of_the_decoded_image(encoded, format, orientation):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    data = encoded(format, exif=exif)
    assert images.image_size(data) == tuple(images.decode(data).shape[1:])


def test_formats_that_start_programs_are_not_read(encoded):
    with pytest.raises(ImageError, match="its bytes are none of JPEG, PNG"):
        images.decode(encoded("EPS"))


def test_image_hash_is_xxh3_64():
    assert images.image_hash(b"") == "2d06800538d394c2"  # the reference value of the xxHash specification
    assert images.image_hash(b"a") != images.image_hash(b"b")
    assert len(images.image_hash(b"a")) == 16


def test_read_encoded_takes_bytes_before_a_path(tmp_path, encoded):
    data, path = encoded("JPEG"), tmp_path / "photo.jpg"
    path.write_bytes(data)
    assert images.read_encoded({"bytes": b"abc", "path": "photo.jpg"}) == b"abc"
    assert images.read_encoded({"bytes": None, "path": str(path)}) == data
    assert images.read_encoded({"bytes": None, "path": f"file://{path}"}) == data


def test_read_encoded_without_bytes_or_file_raises(tmp_path):
    for path in (str(tmp_path / "absent.jpg"), str(tmp_path), "", None, "unknown-protocol://a"):
        with pytest.raises(ImageError, match="cannot be read"):
            images.read_encoded({"bytes": None, "path": path})


def test_pil_round_trip_of_any_memory_layout(photo):
    image = images.from_pil(photo)
    assert images.to_pil(image).tobytes() == photo.tobytes()
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


def test_crop_inside_is_a_view(photo):
    image = images.from_pil(photo)
    cut = images.crop(image, {"top": 3, "left": 5, "height": 20, "width": 30})
    assert cut.untyped_storage().data_ptr() == image.untyped_storage().data_ptr()


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("height", "width"), [(32, 32), (224, 224), (140, 50), (7, 311)])
def test_resize_equals_torchvision(photo, interpolation, height, width):
    image = images.from_pil(photo)
    before = image.clone()
    resized = images.resize(image, height, width, interpolation)
    mode = InterpolationMode(interpolation)
    expected = F.resize(image.contiguous(), [height, width], interpolation=mode, antialias=True)
    assert resized.dtype == torch.uint8
    assert torch.equal(resized, expected)
    assert torch.equal(image, before)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (224, 224), (140, 50)])
def test_resize_is_within_one_level_of_pillow(photo, height, width):
    resized = images.resize(images.from_pil(photo), height, width).permute(1, 2, 0).numpy().astype(int)
    expected = np.asarray(photo.resize((width, height), Image.Resampling.BILINEAR))
    assert np.abs(resized - expected).max() <= 1


def test_resize_of_a_crop_does_not_look_outside_of_the_crop(photo):
    image = images.from_pil(photo)
    box = {"top": 20, "left": 30, "height": 60, "width": 50}
    alone = images.crop(image, box).clone()
    assert torch.equal(images.resize(images.crop(image, box), 32, 32), images.resize(alone, 32, 32))


def test_resize_to_its_own_size_changes_nothing(photo):
    image = images.from_pil(photo)
    assert images.resize(image, 140, 200) is image


def test_resize_refuses_an_unknown_interpolation(photo):
    with pytest.raises(ValueError, match="bilinear, bicubic"):
        images.resize(images.from_pil(photo), 20, 20, "bilinearr")


COORDINATES = st.integers(0, 300)


@given(COORDINATES, COORDINATES, COORDINATES, COORDINATES, st.floats(0.05, 8.0))
def test_scale_box_rounds_its_edges(top, left, height, width, scale):
    box = {"top": top, "left": left, "height": height, "width": width}
    scaled = images.scale_box(box, scale)
    edges = np.array([top, left, top + height, left + width]) * scale
    found = [scaled["top"], scaled["left"], scaled["top"] + scaled["height"], scaled["left"] + scaled["width"]]
    assert np.abs(found - edges).max() <= 0.5 + 1e-9
    assert box == {"top": top, "left": left, "height": height, "width": width}
    assert all(isinstance(value, int) for value in scaled.values())


def test_scale_box_by_one_changes_nothing():
    box = {"top": 1, "left": 2, "height": 3, "width": 4}
    assert images.scale_box(box, 1.0) == box
