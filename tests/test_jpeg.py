"""Every decoder gives Pillow's pixels, of whole images and boxes; for odd and damaged files see `test_bad_data`."""

import importlib.util
import io
from concurrent.futures import ThreadPoolExecutor
from itertools import product

import numpy as np
import pytest
import torch
from bad_images import find_decoders
from PIL import Image

from hf_reinforce import images
from hf_reinforce.images import ImageError, jpeg

FOUND = find_decoders()
FAST = [name for name in FOUND if name != "pil"]


@pytest.fixture(params=FOUND)
def decode(request, monkeypatch):
    """`images.decode` with each of the decoders."""
    monkeypatch.setattr(jpeg, "decode_box", FOUND[request.param])
    return images.decode


@pytest.fixture(params=FAST)
def fast(request, monkeypatch):
    """`images.decode` with a decoder that must not fall back on Pillow."""
    own = FOUND[request.param]

    def strict(*args):
        decoded = own(*args)
        assert decoded is not None, "the file was left to Pillow"
        return decoded

    monkeypatch.setattr(jpeg, "decode_box", strict)
    return images.decode


def picture(height, width, seed=0, mode="RGB"):
    """Noise with edges: every mistake in upsampling shows."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    pixels[height // 3 : height // 2] = rng.integers(0, 256, 3)
    return Image.fromarray(pixels).convert(mode)


def save(image, **options):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **{name: value for name, value in options.items() if name != "mode"})
    return buffer.getvalue()


def pillow(data):
    """Pillow's pixels, uint8 [3, H, W]."""
    return images.from_pil(Image.open(io.BytesIO(data)).convert("RGB"))


def boxes(height, width, seed=0, count=12):
    """Boxes inside, along the edges, of one pixel, and partly or wholly outside."""
    rng = np.random.default_rng(seed)
    fixed = [
        (0, 0, height, width),
        (0, 0, 1, 1),
        (height - 1, width - 1, 1, 1),
        (-3, -2, height + 7, width + 5),
        (height + 2, 0, 4, 4),
        (-9, width // 2, 10, 30),
    ]
    drawn = []
    for _ in range(count):
        h, w = int(rng.integers(1, height + 1)), int(rng.integers(1, width + 1))
        drawn.append((int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1)), h, w))
    return [dict(zip(("top", "left", "height", "width"), box, strict=True)) for box in fixed + drawn]


SIZES = [(1, 1), (7, 9), (17, 33), (64, 5), (131, 67), (240, 321)]
FORMS = {
    "4:4:4": {"subsampling": 0},
    "4:2:2": {"subsampling": 1},
    "4:2:0": {"subsampling": 2},
    "progressive": {"subsampling": 2, "progressive": True},
    "progressive 4:2:2": {"subsampling": 1, "progressive": True},
    "restarts": {"subsampling": 2, "restart_marker_blocks": 3},
    "rgb": {"keep_rgb": True},
    "low quality": {"quality": 10},
    "gray": {"mode": "L"},
    "progressive gray": {"mode": "L", "progressive": True},
}


@pytest.mark.parametrize(("size", "form"), list(product(SIZES, FORMS)))
def test_boxes_have_the_pixels_of_the_whole_image(fast, size, form):
    options = FORMS[form]
    data = save(picture(*size, mode=options.get("mode", "RGB")), **options)
    expected = pillow(data)
    assert torch.equal(fast(data), expected)
    for box in boxes(*expected.shape[1:]):
        assert torch.equal(fast(data, box), images.crop(expected, box)), box


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
@pytest.mark.parametrize("progressive", [False, True])
def test_truncated_files_are_refused(decode, share, progressive):
    data = save(picture(120, 90), progressive=progressive)
    for box in (None, {"top": 118, "left": 3, "height": 2, "width": 80}):  # the box is the lowest
        with pytest.raises(ImageError, match="cannot be decoded"):
            decode(data[: int(share * len(data))], box)


@pytest.mark.parametrize("name", FAST)
def test_a_file_does_not_disturb_the_next(name):
    decode_box, data = FOUND[name], save(picture(40, 50))
    for size in range(3, len(data) - 2, 80):
        assert decode_box(data[:size], 40, 50, None) is None
        assert torch.equal(decode_box(data, 40, 50, None), pillow(data))
    without = data  # its tables, which a decoder could remember
    while (at := without.find(b"\xff\xdb")) > 0:  # the quantisation tables
        without = without[:at] + without[at + 2 + int.from_bytes(without[at + 2 : at + 4]) :]
    assert decode_box(without, 40, 50, None) is None


def test_scans_without_end_are_refused(decode):
    data = save(picture(64, 64, mode="L"), progressive=True)
    scan = data[data.rindex(b"\xff\xda") : -2]
    decode(data[:-2] + scan * (jpeg.MAX_SCANS - jpeg.count_scans(data)) + data[-2:])
    for read in (decode, images.image_size):
        with pytest.raises(ImageError, match="more than 100 scans"):
            read(data[:-2] + scan * jpeg.MAX_SCANS + data[-2:])


def test_threads_do_not_disturb_each_other(fast):
    files = [save(picture(60 + i, 90 - i, seed=i), subsampling=i % 3) for i in range(24)]
    box = {"top": 11, "left": 21, "height": 31, "width": 33}
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda data: fast(data, box), files * 4))
    for data, view in zip(files * 4, found, strict=True):
        assert torch.equal(view, images.crop(pillow(data), box))


def test_memory_of_any_kind_is_read(fast):
    data = save(picture(20, 30))
    for view in (bytearray(data), memoryview(data), memoryview(data).cast("b")):
        assert torch.equal(fast(view), pillow(data))


@pytest.mark.parametrize("name", ["pil", "simplejpeg"])
def test_the_environment_chooses(monkeypatch, name):
    monkeypatch.setenv(jpeg.DECODER_VARIABLE, name)
    spec = importlib.util.spec_from_file_location("fresh_jpeg", jpeg.__file__)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert name == module.DECODER


def test_without_other_decoders_pillow_is_used(monkeypatch, tmp_path):
    monkeypatch.setattr(jpeg, "find_spec", lambda name: None)
    monkeypatch.setattr(jpeg, "_turbojpeg_path", lambda: None)
    assert jpeg.load_decoder()[0] == "pil"
    for choice, message in {
        "simplejpeg": "pip install simplejpeg",
        "turbojpeg": "no libturbojpeg is installed",
        str(tmp_path / "libnone.so"): "is not a libturbojpeg of version 3 or newer.*choose another of turbojpeg",
    }.items():
        with pytest.raises(ValueError, match=message):
            jpeg.load_decoder(choice)
