"""Files that are written whole or not at all: to a temporary name, flushed to the disk, and renamed."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_LOCKED = (errno.EROFS, errno.EACCES, errno.EPERM)
_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ESTALE, errno.ENOTCONN)
_TROUBLES = {
    **dict.fromkeys(_FULL, "the disk is full. Make room there"),
    **dict.fromkeys(_LOCKED, "it may not be written to. Make it writable, or choose another output folder,"),
    **dict.fromkeys(_GONE, "it is gone. Bring it back, mounted as before,"),
}


@contextmanager
def explained_writes(folder: Path) -> Iterator[None]:
    """Turns an error of the operating system into one that names the folder and says what to do; `errno` stays."""
    try:
        yield
    except OSError as error:
        if error.errno is None:  # of the network, while images are read
            raise
        trouble = _TROUBLES.get(error.errno, f"{error}. Mend that")
        explained = OSError(
            f"{folder} cannot be written: {trouble} and run the same command again to continue; what is finished is "
            "kept."
        )
        explained.errno = error.errno
        raise explained from error


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A name beside `path` to write to, which becomes `path` at the end: all of the file appears, or nothing."""
    temporary = path.with_name(f".{path.stem}.tmp-{os.getpid()}{path.suffix}")
    with explained_writes(path.parent):
        try:
            yield temporary
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def write_whole(path: Path, text: str) -> None:
    """Writes a text file in UTF-8: all of it or nothing."""
    with whole_file(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        flush(file)


def flush(file: IO[Any]) -> None:
    """Makes sure that what was written to a file is on the disk."""
    file.flush()
    os.fsync(file.fileno())
