"""Reads archives of the original implementation (apple/ml-dr) without running anything that is inside them.

An archive is a tar, a tar.gz or an extracted folder with one `{index}.pth.tar` for each image and a `config.pth.tar`.
Each of these is a pickle, usually inside a zip that `torch.save` made. A pickle can name any importable function and
have it called; here the names are looked up in a list of two, which build NumPy numbers, and every other name is
refused. No member is ever written to the disk.
"""

import gzip
import io
import os
import pickle
import re
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from hf_reinforce.models.classes import printable

MAX_RECORD_BYTES = 2**24
"""Most that one file may hold, compressed or not, of which Python makes at most 1 GB. The largest published ones,
N = 8000, hold about 2 MB."""

_MEMBER = re.compile(r"(\d{1,18}|config)\.pth\.tar")
_TORCH_MAGIC = 0x1950A86A20F9469CFC6C
_END_OF_TAR = bytes(1024)
_FORMATS = {
    **{"b1": "?", "i1": "b", "i2": "h", "i4": "i", "i8": "q", "u1": "B", "u2": "H", "u4": "I", "u8": "Q"},
    **{"f2": "e", "f4": "f", "f8": "d"},
}  # NumPy's codes of numbers, and those of struct


_MAX_HEADER_BYTES = 2**20
_LONG_HEADERS = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE, b"X")

# Opcodes of pickles by the length of what follows them; most make runs that a regular expression skips at once.
_RUN = re.compile(
    rb"(?:[(012Nabdelost\]})uRQ\x81\x85-\x89\x8f-\x94]|[Khq\x80\x82].|[M\x83]..|[Jj\x84].{4}|[G\x95].{8}|C\x08.{8})*+",
    re.DOTALL,
)
_COUNTED = {**dict.fromkeys(b"UC\x8c\x8a", 1), **dict.fromkeys(b"XBT\x8b", 4), **dict.fromkeys(b"\x8d\x8e\x96", 8)}
_LINES = {**dict.fromkeys(b"ILFSVgpP", 1), **dict.fromkeys(b"ci", 2)}
_PUT, _LONG_BINPUT = ord("p"), ord("r")


class UnsafePickleError(ValueError):
    """A file that asks for a class or function that data doesn't need."""


@dataclass(frozen=True)
class Member:
    """One file of an archive."""

    name: str  # of the archive and inside it, for messages
    folder: str
    index: int | None  # of the image; None for the configuration
    data: bytes


class _Dtype:
    """Stands for the dtype of a NumPy number."""

    __slots__ = ("code", "order")

    def __init__(self, code: Any) -> None:
        if not isinstance(code, str) or code not in _FORMATS:
            raise UnsafePickleError(f"it asks for the NumPy dtype {code!r}; only numbers are read.")
        self.code, self.order = _FORMATS[code], "<"

    def __setstate__(self, state: Any) -> None:
        if state[1] not in ("<", "|", ">"):
            raise ValueError(f"unknown byte order {state[1]!r}")
        self.order = ">" if state[1] == ">" else "<"


class _MakeDtype:
    """Stands for `numpy.dtype`. An instance, not a class or function, so a pickle cannot set attributes on it."""

    __slots__ = ()

    def __call__(self, code: Any, *flags: Any) -> _Dtype:
        return _Dtype(code)


class _MakeScalar:
    """Stands for NumPy's `scalar`, and answers with a Python number."""

    __slots__ = ()

    def __call__(self, dtype: Any, data: Any) -> int | float | bool:
        if type(dtype) is not _Dtype or type(data) is not bytes:
            raise UnsafePickleError("it asks for a NumPy scalar that is not a number.")
        number: int | float | bool = struct.unpack(dtype.order + dtype.code, data)[0]
        return number


_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "dtype"): _MakeDtype(),
    ("numpy.core.multiarray", "scalar"): _MakeScalar(),
    ("numpy._core.multiarray", "scalar"): _MakeScalar(),
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise UnsafePickleError(
                f"it asks for {module}.{name}, which was not called; do not open it with torch.load or pickle."
            )
        return _ALLOWED[module, name]

    def persistent_load(self, pid: Any) -> Any:
        raise UnsafePickleError(f"it asks for a tensor's storage {str(pid)[:80]!r}; records hold plain numbers.")


def _load(file: io.BytesIO) -> Any:
    """The next object in a file; the unpickler would make room for any number of objects it is told to remember."""
    data, at = file.getvalue(), file.tell()
    while (at := _RUN.match(data, at).end()) < len(data):  # type: ignore[union-attr]
        code, after = data[at], at + 1
        if code in _COUNTED:
            width = _COUNTED[code]
            at = after + width + int.from_bytes(data[after : after + width], "little")
            continue
        argument = data[after : after + 4]
        if code in _LINES:
            ends = [data.find(b"\n", after)]
            ends += [data.find(b"\n", ends[0] + 1)] * (_LINES[code] - 1)
            argument, at = data[after : ends[0]], ends[-1] + 1
        elif code == _LONG_BINPUT:
            at = after + 4
        else:
            break  # the end, or what the unpickler refuses
        place = int.from_bytes(argument, "little") if code == _LONG_BINPUT else code == _PUT and int(argument)
        if place > len(data) or at < after:
            raise ValueError("it remembers more objects than it has")
    return _Unpickler(file).load()


def safe_load(data: bytes, name: str) -> Any:
    """The object in a file of `torch.save` (zip or legacy) or `joblib.dump`, made of plain containers and numbers.

    Raises:
        UnsafePickleError: if it asks for any class or function but NumPy's numbers; the message names it.
        ValueError: if it is no such file.
    """
    try:
        if data[:4] == b"PK\x03\x04":
            with zipfile.ZipFile(io.BytesIO(data)) as file:
                (entry,) = [item for item in file.infolist() if PurePosixPath(item.filename).name == "data.pkl"]
                if entry.file_size > MAX_RECORD_BYTES or entry.compress_type:
                    raise ValueError(f"its data.pkl is compressed or above {MAX_RECORD_BYTES} bytes")
                return _load(io.BytesIO(file.read(entry)))
        if data[:1] == b"\x78":  # joblib.dump(compress=True)
            inflate = zlib.decompressobj()
            data = inflate.decompress(data, MAX_RECORD_BYTES)
            if not inflate.eof:
                raise ValueError("the compressed data are incomplete or too large")
        stream = io.BytesIO(data)
        value = _load(stream)
        if type(value) is int and value == _TORCH_MAGIC:  # the legacy format: magic, protocol, system, then the object
            _load(stream), _load(stream)
            value = _load(stream)
        return value
    except UnsafePickleError as error:
        raise UnsafePickleError(f"{name} is refused: {printable(error)}") from error
    except Exception as error:  # a damaged pickle raises whatever its opcodes run into
        raise ValueError(
            f"{name} cannot be read: it is damaged, or was not written by torch.save or joblib.dump "
            f"({type(error).__name__}: {printable(error)})."
        ) from error


class _TarInfo(tarfile.TarInfo):
    """The header of a member, of a size that can be read."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "_TarInfo":
        info = super().frombuf(buf, encoding, errors)
        unusual = info.type == tarfile.GNUTYPE_SPARSE or info.size < 0
        if unusual or (info.type in _LONG_HEADERS and info.size > _MAX_HEADER_BYTES):
            raise tarfile.ReadError(f"{info.name[:80]!r} has a header of {info.size} bytes, or is sparse")
        return info


def read_members(path: Path) -> Iterator[Member]:
    """The records and configurations of an archive, in its order, one at a time.

    Args:
        path: tar, tar.gz or an extracted folder.

    Raises:
        ValueError: if it is no archive, is truncated, or has a record that is a link, unusually large, or whose name
            leads out of the archive.
    """
    try:
        for name, size, read in _folder_files(path) if path.is_dir() else _tar_files(path):
            if size > MAX_RECORD_BYTES:
                raise ValueError(f"{path}: {name} has {size} bytes, more than the {MAX_RECORD_BYTES} that are read.")
            inside = PurePosixPath(name)
            number = inside.name.split(".")[0]
            yield Member(
                f"{path.name}: {name}", str(inside.parent), None if number == "config" else int(number), read()
            )
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path} is truncated, damaged or no tar archive; download it again ({error}).") from error


def _folder_files(path: Path) -> Iterator[tuple[str, int, Callable[[], bytes]]]:
    for file in sorted(path.rglob("*.pth.tar")):
        if _MEMBER.fullmatch(file.name) is not None:
            if file.is_symlink() or not file.is_file():
                raise ValueError(f"{file} is a link or device; records must be files.")
            yield file.relative_to(path).as_posix(), file.stat().st_size, file.read_bytes


def _tar_files(path: Path) -> Iterator[tuple[str, int, Callable[[], bytes]]]:
    with open(path, "rb") as raw:
        compressed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        # gzip must be read from front to back, without ever going back
        stream = gzip.GzipFile(fileobj=raw) if compressed else raw
        with tarfile.open(fileobj=stream, mode="r|" if compressed else "r:", tarinfo=_TarInfo) as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # it remembers all its members, which are millions
                name = PurePosixPath(member.name)
                if _MEMBER.fullmatch(name.name) is None:
                    continue
                if not member.isreg() or name.is_absolute() or ".." in name.parts:
                    found = f"{path}: {member.name!r}"
                    raise ValueError(f"{found} is a link or device, or its name leads out of the archive.")
                yield member.name, member.size, tar.extractfile(member).read  # type: ignore[union-attr]
        if compressed:
            while stream.read(2**20):  # up to the checksum
                pass
        else:
            raw.seek(-min(len(_END_OF_TAR), raw.seek(0, os.SEEK_END)), os.SEEK_END)
            if raw.read() != _END_OF_TAR:
                raise EOFError("the end-of-archive mark is missing")
