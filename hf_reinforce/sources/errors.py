"""What it means when a dataset cannot be loaded or published, and what to do, whatever the libraries raise."""

import errno
import gzip
import lzma
import os
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from json import JSONDecodeError
from pathlib import Path

import datasets
import pyarrow as pa
import yaml
from datasets import exceptions
from datasets.table import CastError
from huggingface_hub import HfApi, is_offline_mode
from huggingface_hub import errors as hub
from huggingface_hub.constants import HF_HUB_CACHE
from huggingface_hub.errors import HTTPError, LocalEntryNotFoundError

from hf_reinforce.local_copies import resolve
from hf_reinforce.sources.rows import read_footer, repair

_CACHES = (Path(datasets.config.HF_DATASETS_CACHE), Path(HF_HUB_CACHE))
_CUT_SHORT_TYPES = (zipfile.BadZipFile, tarfile.ReadError, EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError)
_CUT_SHORT = ("magic bytes", "size is 0 bytes", "footer", "File is too small", "end of stream", "runcated")
_CARD_TYPES = (yaml.YAMLError, UnicodeError, TypeError, AttributeError, KeyError, exceptions.SplitsVerificationError)
_CARD = ("repo card", "Expected configs", "in YAML", "Each config", "Feature type")
_SIGNS = {
    "scripts are no longer supported": "{name!r} is a script ({last}), which nobody runs any more. On the Hub, its "
    "branch refs/convert/parquet may hold the same rows as Parquet files; of a folder, write such files with the "
    "version of datasets that the script is for: load_dataset(...)[split].to_parquet(FILE).",
    "corresponds to no data": "{name!r} has no rows in that split ({said}); name another split.",
    "Invalid string class label": "The classes of {name!r} cannot be told from its folders ({said}): datasets looks "
    "for them beside an archive, not inside. Extract the archives, so that there is SPLIT/CLASS/FILE, and delete "
    "them.",
}
"""What datasets says, and what it means."""
_PASSING = (408, 409, 412, 429, 500, 502, 503, 504)
"""Status of an answer that may be another at the next try: a conflict, or trouble of the server."""


@contextmanager
def explained(name: str, revision: str | None = None, files: Sequence[str] = ()) -> Iterator[None]:
    """Explains what goes wrong inside while a dataset is loaded.

    Args:
        name: Hub id or folder of the dataset, as the user named it.
        revision: Hub revision that was asked for.
        files: Parquet files that are read, as paths or addresses; a damaged one is named.

    Raises:
        ValueError: in place of any error of the libraries; the message says what to do.
    """
    if revision == "":  # the clients ask the Hub for another address, and report that there is no dataset
        raise ValueError("The revision is empty; name a branch, tag or commit, or leave it out for 'main'.")
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:  # datasets raises whatever its readers and their libraries run into
        raise ValueError(_explanation(name, revision, files, error)) from error


@contextmanager
def explained_publishing(repo_id: str) -> Iterator[None]:
    """Explains what goes wrong inside while a repository is published.

    Args:
        repo_id: the repository.

    Raises:
        OSError: in place of an error of the Hub's client; the message says what to do.
    """
    try:
        yield
    except hub.OfflineModeIsEnabled as error:
        raise OSError(f"HF_HUB_OFFLINE forbids to ask the Hub; unset it to publish {repo_id}.") from error
    except (HTTPError, LocalEntryNotFoundError, ConnectionError, RuntimeError) as error:
        cause = next((cause for cause in _causes(error) if isinstance(cause, HTTPError)), error)
        status, said = _status(error), " ".join(str(cause).split())
        if status in (401, 403):
            text = (
                f"The Hub does not let you write to {repo_id} (HTTP {status}). Log in with `hf auth login`, or pass a "
                "token that may write there."
            )
        elif status is None or status in _PASSING:
            text = (
                f"{repo_id} could not be published completely ({f'HTTP {status}' if status else said}). What was sent "
                "is kept; run the same command again to continue."
            )
        else:
            text = f"The Hub refused to publish {repo_id}: {said}"
        raise OSError(text) from error


def _causes(error: BaseException) -> list[BaseException]:
    """An error and what it was raised from, as far as that goes back."""
    causes = [error]
    while causes[-1].__cause__ is not None:
        causes.append(causes[-1].__cause__)
    return causes


def _status(error: BaseException) -> int | None:
    """The status of the Hub's answer, None where there was none."""
    return next((int(e.response.status_code) for e in _causes(error) if isinstance(e, hub.HfHubHTTPError)), None)


def _explanation(name: str, revision: str | None, files: Sequence[str], error: Exception) -> str:
    not_found = (
        str(error) if isinstance(error, exceptions.DatasetNotFoundError) else ""
    )  # of datasets, whatever the reason is
    if isinstance(error, hub.GatedRepoError) or "gated dataset" in not_found:
        return (
            f"{name!r} may only be read by those who accepted its conditions: accept them on its page on the Hub, "
            "then log in with `hf auth login`, or set HF_TOKEN."
        )
    if isinstance(error, hub.RevisionNotFoundError) or "Revision" in not_found:
        return _no_revision(name, revision)
    if not_found or isinstance(error, (hub.RepositoryNotFoundError, hub.HFValidationError)):
        return _unknown(name)
    if isinstance(error, (hub.RevisionResolutionError, HTTPError, LocalEntryNotFoundError, ConnectionError)):
        return _no_answer(name, revision, error)
    return _damaged_files(name, files, error)


def _unknown(name: str) -> str:
    return (
        f"There is no dataset {name!r}, neither as a folder nor on the Hub. Check its name; if it is private, log in "
        "with `hf auth login`, or set HF_TOKEN."
    )


def _no_revision(name: str, revision: str | None) -> str:
    try:
        refs = HfApi().list_repo_refs(resolve(name), repo_type="dataset")
    except (HTTPError, ConnectionError):
        return f"{name} has no revision {revision!r}; its page on the Hub lists its branches and tags."
    known = [ref.name for ref in (*refs.branches, *refs.tags)]
    return f"{name} has no revision {revision!r}; its branches and tags are {known}."


def _no_answer(name: str, revision: str | None, error: BaseException) -> str:
    status, last = _status(error), _causes(error)[-1]
    if status == 404:
        return _unknown(name)
    if status in (401, 403):
        return (
            f"The Hub does not let you read {name!r} (HTTP {status}): log in with `hf auth login`, or set HF_TOKEN to "
            "a token that may read it."
        )
    trouble = f"the Hub cannot be reached ({type(last).__name__}: {last})"
    remedy = "check the connection, and HF_ENDPOINT where it is set, and try again"
    if status is not None:
        trouble, remedy = f"the Hub answers HTTP {status}", "try again later"
    elif is_offline_mode():
        trouble, remedy = "HF_HUB_OFFLINE forbids to ask the Hub", "unset it to download the dataset"
    if isinstance(error, LocalEntryNotFoundError):
        return f"Not all files of {name!r} are in the cache, and {trouble}; {remedy}."
    of_revision = f" of revision {revision!r}" if revision else ""
    return f"There is no dataset {name!r}{of_revision}, neither as a folder nor in the cache, and {trouble}; {remedy}."


def _damaged_files(name: str, files: Sequence[str], error: Exception) -> str:
    """What is wrong with the files of a dataset, or with the cache."""
    damaged = _first_damaged(files)
    if damaged is not None:
        return f"A file of {name!r} cannot be read, probably because it was cut short. {repair(damaged)}"
    reading = isinstance(error, exceptions.DatasetGenerationError)
    cause = next(
        e for e in _causes(error) if not isinstance(e, exceptions.DatasetGenerationError) or e.__cause__ is None
    )
    first_lines = " ".join(str(cause).splitlines()[:2]).strip()
    reason = first_lines if isinstance(cause, ValueError) else f"{type(cause).__name__}: {first_lines}"
    cache = _cache_of(cause) if isinstance(cause, OSError) else None
    if cache is not None:
        return (
            f"The cache folder {cache} cannot be written ({getattr(cause, 'strerror', None) or cause}); make it "
            "writable, make room there, or set HF_HOME to another folder."
        )
    if isinstance(cause, (FileNotFoundError, exceptions.FileNotFoundDatasetsError)):
        return _without_files(name)
    is_json = isinstance(cause, JSONDecodeError)
    if not reading and (is_json or isinstance(cause, _CARD_TYPES) or any(sign in first_lines for sign in _CARD)):
        file = "dataset_infos.json" if is_json else "the YAML at the top of README.md"
        lines = " ".join(f"{type(cause).__name__}: {cause}".split())[:500]
        return f"{name!r} cannot be loaded, because {file} does not fit ({lines}); mend it, or delete that file."
    for sign, meaning in _SIGNS.items():
        if sign in first_lines:
            return meaning.format(name=name, said=first_lines.rstrip("!"), last=first_lines.rsplit(" ", 1)[-1])
    if isinstance(cause, (CastError, exceptions.DatasetGenerationCastError)):
        return (
            f"The files of {name!r} do not have the same columns ({_columns(cause)}); give all files of a split the "
            "columns of the first, or of dataset_info in README.md where that is given."
        )
    reason = reason.rstrip(".")
    if isinstance(cause, _CUT_SHORT_TYPES) or any(sign in first_lines for sign in _CUT_SHORT):
        remedy = "Delete it from the cache to download it again, or ask whoever published it to publish it again."
        folder = Path(resolve(name))
        if folder.is_dir():
            remedy = f"Replace {_first_damaged(sorted(folder.rglob('*.parquet'))) or 'it'} by a whole one."
        return f"A file of {name!r} cannot be read, probably because it was cut short: {reason}. {remedy}"
    if reading:
        return f"A file of {name!r} cannot be read ({reason}); mend or delete that file."
    return f"{name!r} cannot be loaded: {reason}"  # no such configuration or split, or what the card says is wrong


def _without_files(name: str) -> str:
    path = Path(resolve(name))
    if path.is_file():
        return f"{name!r} is a file; name the folder that holds it."
    if path.is_dir():
        card = ", and what its README.md says of data_files" if (path / "README.md").exists() else ""
        return f"The folder {str(path)!r} holds no images or Parquet files; check its path{card}."
    return _unknown(name)


def _cache_of(error: OSError) -> Path | None:
    """The cache folder that could not be written, None for another error."""
    file = Path(os.path.abspath(str(error.filename or os.sep)))
    for cache in _CACHES:
        if (cache in file.parents and error.errno != errno.ENOENT) or (
            error.filename and file in (cache, *cache.parents)
        ):
            return cache
    return _CACHES[0] if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS) else None


def _first_damaged(files: Sequence[str | Path]) -> str | None:
    """The first of some Parquet files that has no footer."""
    for file in files:
        try:
            read_footer(str(file))
        except (pa.ArrowException, OSError):
            return str(file)
    return None


def _columns(error: BaseException) -> str:
    """How the columns of a file differ from those that are expected."""
    if not isinstance(error, CastError):
        return " ".join(str(error).splitlines()[2:3]) or str(error).splitlines()[0]
    found, expected = set(error.table_column_names), set(error.requested_column_names)
    sides = [("not expected", sorted(found - expected)), ("missing", sorted(expected - found))]
    texts = [f"{what}: {', '.join(map(repr, names))}" for what, names in sides if names]
    return "; ".join(texts) or "of other types"
