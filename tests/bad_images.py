"""A corpus of bad and odd image files, the same for a seed, and a process that tries all of them.

python tests/bad_images.py 10000 /tmp/scratch
"""

import contextlib
import gzip
import io
import json
import os
import pickle
import resource
import signal
import struct
import sys
import warnings
import zipfile
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms

SECONDS, MEGABYTES = 30, 2000  # of the processor and of memory, that one file may take


def photo(height=40, width=56, mode="RGB", seed=0):
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 7, 3), dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC).convert(mode)


def save(image, format, **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def exif(orientation):
    found = Image.Exif()
    found[0x0112] = orientation
    return found


MODES = {
    "JPEG": "L RGB CMYK",
    "PNG": "1 L LA P RGB RGBA",
    "GIF": "1 L P RGB",
    "WEBP": "RGB RGBA",
    "BMP": "1 L P RGB",
    "TIFF": "1 L LA P RGB RGBA CMYK YCbCr LAB",
    "PPM": "1 L RGB",
    "JPEG2000": "L RGB RGBA",
    "AVIF": "RGB RGBA",
}


def odd_files():
    """Complete files of many kinds, all of which Pillow can read."""
    files = {}
    for format, mode in ((format, mode) for format, modes in MODES.items() for mode in modes.split()):
        if format in Image.SAVE:
            image = photo() if mode == "LAB" else photo(mode=mode)
            if mode == "LAB":  # its profile would hold the time
                image = ImageCms.profileToProfile(image, *map(ImageCms.createProfile, ("sRGB", mode)), outputMode=mode)
                image.info.pop("icc_profile", None)
            files[f"{format} {mode}"] = save(image, format)
            files[f"{format} {mode} 1x1"] = save(image.crop((0, 0, 1, 1)), format)
    for format in ("JPEG", "PNG", "WEBP", "TIFF"):
        files |= {f"{format} orientation {turn}": save(photo(), format, exif=exif(turn)) for turn in range(1, 9)}
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for name, options in {
        "progressive": {"progressive": True},
        "4:4:4": {"subsampling": 0},
        "restarts": {"restart_marker_blocks": 2},
        "icc": {"icc_profile": profile[:24] + bytes(12) + profile[36:]},  # without its time
        "comment": {"comment": b"c" * 60_000},
    }.items():
        files[f"JPEG {name}"] = save(photo(), "JPEG", **options)
    for format in ("GIF", "WEBP", "PNG", "TIFF", "MPO"):
        files[f"{format} animated"] = save(
            photo(), format, save_all=True, append_images=[photo(seed=1), photo(seed=2)]
        )
    for compression in ("tiff_lzw", "tiff_deflate", "jpeg", "packbits", "group4"):
        mode = "1" if compression == "group4" else "RGB"
        files[f"TIFF {compression}"] = save(photo(mode=mode), "TIFF", compression=compression)
    gray16 = Image.fromarray((np.arange(40 * 56, dtype=np.uint16) * 29).reshape(40, 56))
    files |= {f"{format} 16 bit": save(gray16, format) for format in ("PNG", "TIFF", "JPEG2000")}
    files["TIFF float"] = save(photo(mode="F"), "TIFF")
    files["PNG interlaced size"] = save(photo(32_767, 1), "PNG")
    files["JPEG wide"] = save(photo(1, 20_000), "JPEG")
    return files


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height, *chunks, depth=8, colour=2):
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + chunk(b"IEND", b"")


def black_png(side):
    return png(side, side, chunk(b"IDAT", zlib.compress(bytes(side * (1 + -(-side // 8))), 1)), depth=1, colour=0)


def tiff(*tags, data=b""):
    """A little-endian TIFF of one page; a tag is (number, 3 for 16 or 4 for 32 bits, value)."""
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in sorted(tags))
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + entries + bytes(4) + data


def bombs(largest):
    """Files of a few kilobytes that ask for gigabytes or hours, and one whose side is the largest that is decoded."""
    zeros = zlib.compress(bytes(2**26), 1)
    jpeg = save(Image.new("L", (2000, 2000)), "JPEG", progressive=True)
    at = jpeg.index(b"\xff\xc0") if b"\xff\xc0" in jpeg else jpeg.index(b"\xff\xc2")
    gif, bmp = bytearray(save(photo(mode="P"), "GIF")), bytearray(save(photo(), "BMP"))
    gif[6:10], bmp[18:26] = b"\xff" * 4, struct.pack("<ii", 30_000, 30_000)
    tiled = [(256, 4, 64), (257, 4, 64), (258, 3, 8), (259, 3, 8), (262, 3, 1), (277, 3, 1)]
    deflated = zlib.compress(bytes(4096))
    files = {
        "PNG 20000x20000": black_png(20_000),
        "PNG 10000x10000": black_png(10_000),
        "PNG of the largest size": black_png(largest),
        "PNG declared": png(2**31 - 1, 2**31 - 1, chunk(b"IDAT", zlib.compress(b""))),
        "PNG declared wide": png(2**31 - 1, 1, chunk(b"IDAT", zlib.compress(b""))),
        "PNG empty": png(0, 0, chunk(b"IDAT", zlib.compress(b""))),
        "PNG data": png(8, 8, chunk(b"IDAT", zeros)),
        "PNG texts": png(8, 8, *[chunk(b"zTXt", b"a\0\0" + zeros)] * 20, chunk(b"IDAT", zlib.compress(bytes(200)))),
        "PNG profile": png(8, 8, chunk(b"iCCP", b"a\0\0" + zeros), chunk(b"IDAT", zlib.compress(bytes(200)))),
        "GIF declared": bytes(gif),
        "BMP declared": bytes(bmp),
        "PPM declared": b"P6 32000 32000 255\n" + bytes(64),
        "PPM digits": b"P6 " + b"9" * 100_000,
        "WEBP declared": b"RIFF\x16\0\0\0WEBPVP8X\x0a\0\0\0" + bytes(4) + b"\xff" * 6,
        "TIFF declared": tiff((256, 4, 2**31), (257, 4, 2**31), (258, 3, 8), (262, 3, 1), (273, 4, 8), (279, 4, 9)),
        "TIFF tile": tiff(*tiled, (322, 4, 60_000), (323, 4, 60_000), (324, 4, 200), (325, 4, 50), data=deflated),
        "TIFF strip": tiff(*tiled, (278, 4, 2**32 - 1), (273, 4, 110), (279, 4, 4000), data=deflated),
        "TIFF itself": b"II*\0\x08\0\0\0" + struct.pack("<H", 1) + struct.pack("<HHII", 256, 4, 1, 9) + b"\x08\0\0\0",
        "JPEG scans": jpeg[:-2] + jpeg[jpeg.rindex(b"\xff\xda") : -2] * 10_000 + b"\xff\xd9",
        "JPEG declared": jpeg[: at + 5] + b"\xff\xff\xff\xff" + jpeg[at + 9 :],
        "JPEG no lines": jpeg[: at + 5] + b"\0\0" + jpeg[at + 7 :],
        "JPEG no components": jpeg[: at + 9] + b"\0" + jpeg[at + 10 :],
        "JPEG 255 components": jpeg[: at + 9] + b"\xff" + jpeg[at + 10 :],
    }
    codestream = save(photo(), "JPEG2000", no_jp2=True)
    files["JPEG2000 declared"] = codestream[:8] + struct.pack(">II", 2**31, 2**31) + codestream[16:]
    files["JPEG2000 tiles"] = codestream[:8] + struct.pack(">IIIIII", 9000, 9000, 0, 0, 1, 1) + codestream[32:]
    return files


def other_files():
    """What is no image at all, or one that is not read on purpose."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr(zipfile.ZipInfo("a.jpg"), save(photo(), "JPEG"))
        file.writestr(zipfile.ZipInfo("zeros"), bytes(2**20))
    eps = save(photo(), "EPS")
    return {
        "empty": b"",
        "text": b"This image is no longer available.\n",
        "html": b"<!DOCTYPE html><html><body>404</body></html>",
        "svg": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
        "json": b'{"error": "not found"}',
        "pdf": b"%PDF-1.4\n1 0 obj\n<< /Type /Catalog >>\nendobj\ntrailer << /Root 1 0 R >>\n%%EOF\n",
        "zip": archive.getvalue(),
        "gzip": gzip.compress(save(photo(), "JPEG"), mtime=0),
        "pickle": pickle.dumps({"a": 1}),
        "elf": b"\x7fELF\x02\x01\x01" + bytes(200),
        "script": b"#!/bin/sh\ntouch harmed\n",
        "eps": eps,
        "eps program": eps.replace(b"%%EndComments", b"%%EndComments\n(harmed) (w) file closefile"),
        "escape sequences": b"\x1b]0;harmed\x07\x1b[31m",
        "mp4": b"\0\0\0\x18ftypmp42" + bytes(60),
        "riff": b"RIFF\x10\0\0\0WAVEfmt " + bytes(40),
        "magic numbers": b"\xff\xd8\xff\xff\xd8\xff\x89PNG\r\n\x1a\nGIF89aII*\0",
    }


def paths(folder):
    """Values of an image column that lead nowhere, or where nobody should go."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    fifo, link, loop, large = (folder / name for name in ("fifo.jpg", "zero.jpg", "loop.jpg", "large.jpg"))
    if not fifo.exists():
        os.mkfifo(fifo)
        link.symlink_to("/dev/zero")
        loop.symlink_to(loop)
        (folder / "empty.jpg").touch()
        (folder / "reference.json").write_text('{"a.jpg": "abc"}')
        with open(large, "wb") as file:
            file.truncate(2**33)
    found = ["", str(folder), str(folder / "absent.jpg"), str(folder / "empty.jpg"), "/dev/zero", "/dev/random"]
    found += [*map(str, (fifo, link, loop, large)), f"file://{fifo}", f"local://{fifo}", f"zip://a.jpg::{fifo}"]
    found += [f"zip://a.jpg::file://{large}", "/proc/self/mem", "/proc/kmsg", "a" * 5000, "a\0b", "absent\x1b[31m.jpg"]
    found += [f"reference://a.jpg::{folder}/reference.json", f"a.jpg::{folder}", "ssh://nowhere.invalid/a.jpg"]
    found += ["reference::file:///a.json", "python://os", "data:image/png;base64,AAAA", "no-protocol://a", "://", "::"]
    return [None, {"bytes": None, "path": None}, *({"bytes": None, "path": path} for path in found)]


def damaged(files, rng):
    """One of the files, damaged in one of ten ways."""
    name = sorted(files)[rng.integers(len(files))]
    data = bytearray(files[name])
    way = int(rng.integers(10))
    first, last = sorted(rng.integers(0, len(data) + 1, 2).tolist())
    if way == 0:
        del data[first:]
    elif way == 1:
        del data[first:last]
    elif way == 2:
        data[first:last] = bytes(last - first)
    elif way in (3, 4, 5):  # the header decides most
        most = len(data) if way == 3 else min(len(data), 700 if way == 4 else 60)
        for place in rng.integers(0, most, 1 + int(rng.integers(12))):
            data[place] ^= 1 << int(rng.integers(8))
    elif way == 6:
        data[first:last] = rng.bytes(last - first)
    elif way == 7:
        other = files[sorted(files)[rng.integers(len(files))]]
        data[first:] = other[min(first, len(other)) :]
    elif way == 8:
        data[last:last] = data[first:last]
    else:  # a number of the header becomes extreme
        place = int(rng.integers(2, min(len(data), 120)))
        data[place : place + 4] = (b"\xff\xff\xff\xff", bytes(4), b"\x7f\xff\xff\xff", b"\0\0\0\1")[rng.integers(4)]
    return f"{name}, damage {way}", bytes(data)


def corpus(count, folder, seed=0):
    """So many items, `(name, value of an image column, whether it must be a picture)`; None: it may be either.

    The first few hundred hold each kind once; the rest are damaged files, each with a generator of its own.
    """
    odd = odd_files()
    items = [(name, {"bytes": data, "path": None}, True) for name, data in odd.items()]
    items += [
        (f"bomb: {name}", {"bytes": data, "path": None}, None)
        for name, data in bombs(9_400 if count > 1000 else 2_000).items()
    ]
    items += [(f"other: {name}", {"bytes": data, "path": None}, False) for name, data in other_files().items()]
    items += [(f"path {index}: {str(item)[:80]!r}", item, False) for index, item in enumerate(paths(folder))]
    small = {name: data for name, data in odd.items() if len(data) < 20_000}
    for index in range(len(items), count):
        name, data = damaged(small, np.random.default_rng([seed, index]))
        items.append((f"{index}: {name}", {"bytes": data, "path": f"{index}.jpg"}, None))
    return items[:count]


def attempt(item, decoders):
    """What becomes of an item: `(height and width, or None; message)`; an AssertionError if the paths disagree."""
    import torch

    from hf_reinforce import images
    from hf_reinforce.augmentations.policies import named_policy
    from hf_reinforce.images import ImageError, jpeg

    def tried(function, *args):
        try:
            return function(*args)
        except ImageError as error:
            return error

    def same(found, expected):
        return not isinstance(found, ImageError) and torch.equal(found, expected)

    encoded = tried(images.read_encoded, item)
    if isinstance(encoded, ImageError):
        return None, str(encoded)
    assert len(images.image_hash(encoded)) == 16
    jpeg.decode_box = decoders["pil"]
    whole, size = tried(images.decode, encoded), tried(images.image_size, encoded)
    is_picture = not isinstance(whole, ImageError)
    assert not is_picture or size == tuple(whole.shape[1:]), f"header {size}, pixels {whole.shape}"
    height, width = whole.shape[1:] if is_picture else (40, 56)
    policy = named_policy("randaug", 16)
    params = policy.sample(0, 0, 0, height, width)
    box = {"top": height // 3, "left": width // 4, "height": -(-height // 2), "width": -(-width // 3)}
    for name, decoder in decoders.items():
        if name != "pil" and encoded[:2] != b"\xff\xd8":
            continue  # these are left to Pillow
        jpeg.decode_box = decoder
        again, cut = tried(images.decode, encoded), tried(images.decode, encoded, box)
        view = tried(policy.render, encoded, params)
        if not is_picture:  # a box of it, above the damage, may still be decoded
            assert isinstance(again, ImageError), f"{name} decodes what Pillow refuses"
            continue
        assert same(again, whole), f"{name} decodes differently"
        assert same(cut, images.crop(whole, box)), f"{name} decodes {box} differently"
        assert same(view, policy.apply(whole, params)), f"{name} renders another view"
    return ((height, width), "") if is_picture else (None, str(whole))


def find_decoders():
    """The decoders that are installed, by name."""
    from hf_reinforce.images import jpeg

    found, named = {}, os.environ.get(jpeg.DECODER_VARIABLE)
    for name in reversed(jpeg.DECODERS):
        with contextlib.suppress(ValueError):
            own = named if name == "turbojpeg" and named and os.path.exists(named) else name
            found[name] = jpeg.load_decoder(own)[1]
    return found


def memory(field):
    """Megabytes of this process: resident (`VmRSS`), or the most that were (`VmHWM`)."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) // 1024


def main(count, folder, first=0):
    """Writes a line before each item and one after it, as JSON: a process that dies leaves the item's name."""
    warnings.simplefilter("ignore")
    decoders = find_decoders()
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + 2**33, mapped + 2**33))
    for index, (name, item, expected) in enumerate(corpus(count, folder)):
        if index < first:
            continue
        print(json.dumps({"start": index, "name": name}), flush=True)
        signal.setitimer(signal.ITIMER_PROF, SECONDS)  # their default action ends the process, in C code as well
        signal.alarm(20 * SECONDS)
        found = {"end": index, "expected": expected}
        Path("/proc/self/clear_refs").write_text("5")  # forgets the peak
        before = memory("VmRSS")
        try:
            found["size"], found["message"] = attempt(item, decoders)
        except Exception as error:
            found["failure"] = f"{type(error).__name__}: {error}"
        found["megabytes"] = memory("VmHWM") - before
        print(json.dumps(found), flush=True)
    signal.setitimer(signal.ITIMER_PROF, 0)
    signal.alarm(0)
    print(json.dumps({"decoders": list(decoders)}))


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:3], *map(int, sys.argv[3:]))
