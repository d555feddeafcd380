"""What it means when a dataset cannot be loaded, and what to do, whatever the libraries raise."""

import errno
import gzip
import lzma
import os
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from json import JSONDecodeError
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from datasets.exceptions import (
    DatasetGenerationCastError,
    DatasetGenerationError,
    DatasetNotFoundError,
    FileNotFoundDatasetsError,
    SplitsVerificationError,
)
from datasets.table import CastError
from huggingface_hub import HfApi, is_offline_mode
from huggingface_hub.constants import HF_HUB_CACHE
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    RevisionResolutionError,
)

from hf_reinforce.local_copies import resolve


@contextmanager
def explained(name: str, revision: str | None = None) -> Iterator[None]:
    """Turns errors of the Hub's clients about a data set into a ValueError that says what to do."""
    if revision == "":  # the clients ask the Hub for another address, and report that there is no data set
        raise ValueError("The revision is empty; name a branch, tag or commit, or leave it out for 'main'.")
    try:
        yield
    except GatedRepoError as error:
        raise ValueError(_gated(name)) from error
    except RevisionNotFoundError as error:
        raise ValueError(_no_revision(name, revision)) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise ValueError(_unknown(name)) from error
    except (RevisionResolutionError, HTTPError, LocalEntryNotFoundError, ConnectionError) as error:
        raise ValueError(_no_answer(name, revision, error)) from error
    except DatasetNotFoundError as error:  # of datasets, whatever the reason is
        unknown = _no_revision(name, revision) if "Revision" in str(error) else _unknown(name)
        raise ValueError(_gated(name) if "gated dataset" in str(error) else unknown) from error
    except MemoryError:
        raise
    except Exception as error:  # datasets raises whatever its readers and their libraries run into
        raise ValueError(_cause(name, error)) from error


def _cause(name: str, error: Exception) -> str:
    """What is wrong with the files of a dataset, or with the cache, and what to do."""
    cause: BaseException = error
    while isinstance(cause, DatasetGenerationError) and cause.__cause__ is not None:
        cause = cause.__cause__
    first_lines = " ".join(str(cause).splitlines()[:2]).strip()
    reason = first_lines if isinstance(cause, ValueError) else f"{type(cause).__name__}: {first_lines}"
    cache = _cache_of(cause) if isinstance(cause, OSError) else None
    if cache is not None:
        return (
            f"The cache folder {cache} cannot be written ({getattr(cause, 'strerror', None) or cause}); make it "
            "writable, make room there, or set HF_HOME to another folder."
        )
    if isinstance(cause, (FileNotFoundError, FileNotFoundDatasetsError)):
        return _without_files(name, cause)
    if not isinstance(error, DatasetGenerationError):
        file = "dataset_infos.json" if isinstance(cause, JSONDecodeError) else "the YAML at the top of README.md"
        if isinstance(cause, _CARD_TYPES) or any(sign in first_lines for sign in _CARD):
            lines = " ".join(f"{type(cause).__name__}: {cause}".split())[:500]
            return f"{name!r} cannot be loaded, because {file} does not fit ({lines}); mend it, or delete that file."
    if "scripts are no longer supported" in first_lines:
        return (
            f"{name!r} is a script ({first_lines.rsplit(' ', 1)[-1]}), which nobody runs any more. On the Hub, its "
            "branch refs/convert/parquet may hold the same rows as Parquet files; of a folder, write such files with "
            "the version of datasets that the script is for: load_dataset(...)[split].to_parquet(FILE)."
        )
    if "corresponds to no data" in first_lines:
        return f"{name!r} has no rows in that split ({first_lines.rstrip('!')}); name another split."
    if "Invalid string class label" in first_lines:
        return (
            f"The classes of {name!r} cannot be told from its folders ({first_lines}): datasets looks for them beside "
            "an archive, not inside. Extract the archives, so that there is SPLIT/CLASS/FILE, and delete them."
        )
    if isinstance(cause, (CastError, DatasetGenerationCastError)):
        return (
            f"The files of {name!r} do not have the same columns ({_columns(cause)}); give all files of a split the "
            "columns of the first, or of dataset_info in README.md where that is given."
        )
    if isinstance(cause, _CUT_SHORT_TYPES) or any(sign in first_lines for sign in _CUT_SHORT):
        remedy = "Delete it from the cache to download it again, or ask whoever published it to publish it again."
        if Path(resolve(name)).is_dir():
            remedy = f"Replace {_damaged(resolve(name)) or 'it'} by a whole one."
        return f"A file of {name!r} cannot be read, probably because it was cut short: {reason.rstrip('.')}. {remedy}"
    if isinstance(error, DatasetGenerationError):
        return f"A file of {name!r} cannot be read ({reason.rstrip('.')}); mend or delete that file."
    return f"{name!r} cannot be loaded: {reason}"  # no such configuration or split, or what the card says is wrong


_CACHES = (Path(datasets.config.HF_DATASETS_CACHE), Path(HF_HUB_CACHE))
_CUT_SHORT_TYPES = (zipfile.BadZipFile, tarfile.ReadError, EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError)
_CUT_SHORT = ("magic bytes", "size is 0 bytes", "footer", "File is too small", "end of stream", "runcated")
_CARD_TYPES = (
    yaml.YAMLError,
    JSONDecodeError,
    UnicodeError,
    TypeError,
    AttributeError,
    KeyError,
    SplitsVerificationError,
)
_CARD = ("repo card", "Expected configs", "in YAML", "Each config", "Feature type")


def _cache_of(error: OSError) -> Path | None:
    """The cache folder that could not be written, None for another error."""
    file = Path(os.path.abspath(str(error.filename or os.sep)))
    for cache in _CACHES:
        if (cache in file.parents and error.errno != errno.ENOENT) or (
            error.filename and file in (cache, *cache.parents)
        ):
            return cache
    return _CACHES[0] if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS) else None


def _without_files(name: str, cause: BaseException) -> str:
    path = Path(resolve(name))
    if path.is_file():
        return f"{name!r} is a file; name the folder that holds it."
    if path.is_dir():
        card = ", and what its README.md says of data_files" if (path / "README.md").exists() else ""
        return f"The folder {str(path)!r} holds no images or Parquet files; check its path{card}."
    return _unknown(name)


def _damaged(folder: str) -> str | None:
    """The first Parquet file of a folder that has no footer."""
    for path in sorted(Path(folder).rglob("*.parquet")):
        try:
            pq.read_metadata(path)
        except (pa.ArrowException, OSError):
            return str(path)
    return None


def _columns(error: BaseException) -> str:
    """How the columns of a file differ from those that are expected."""
    if not isinstance(error, CastError):
        return " ".join(str(error).splitlines()[2:3]) or str(error).splitlines()[0]
    found, expected = set(error.table_column_names), set(error.requested_column_names)
    sides = [("not expected", sorted(found - expected)), ("missing", sorted(expected - found))]
    texts = [f"{what}: {', '.join(map(repr, names))}" for what, names in sides if names]
    return "; ".join(texts) or "of other types"


def _unknown(name: str) -> str:
    return (
        f"There is no data set {name!r}, neither as a folder nor on the Hub. Check its name; if it is private, log in "
        "with `hf auth login`, or set HF_TOKEN."
    )


def _gated(name: str) -> str:
    return (
        f"{name!r} may only be read by those who accepted its conditions: accept them on its page on the Hub, then "
        "log in with `hf auth login`, or set HF_TOKEN."
    )


def _no_revision(name: str, revision: str | None) -> str:
    try:
        refs = HfApi().list_repo_refs(resolve(name), repo_type="dataset")
    except (HTTPError, ConnectionError):
        return f"{name} has no revision {revision!r}; its page on the Hub lists its branches and tags."
    known = [ref.name for ref in (*refs.branches, *refs.tags)]
    return f"{name} has no revision {revision!r}; its branches and tags are {known}."


def _no_answer(name: str, revision: str | None, error: BaseException) -> str:
    chain = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    status = next((cause.response.status_code for cause in chain if isinstance(cause, HfHubHTTPError)), None)
    if status is not None:
        if status == 404:
            return _unknown(name)
        if status in (401, 403):
            return (
                f"The Hub does not let you read {name!r} (HTTP {status}): log in with `hf auth login`, or set "
                "HF_TOKEN to a token that may read it."
            )
        trouble, remedy = f"the Hub answers HTTP {status}", "try again later"
    elif is_offline_mode():
        trouble, remedy = "HF_HUB_OFFLINE forbids to ask the Hub", "unset it to download the data set"
    else:
        trouble = f"the Hub cannot be reached ({type(chain[-1]).__name__}: {chain[-1]})"
        remedy = "check the connection, and HF_ENDPOINT where it is set, and try again"
    if isinstance(error, LocalEntryNotFoundError):
        return f"Not all files of {name!r} are in the cache, and {trouble}; {remedy}."
    of_revision = f" of revision {revision!r}" if revision else ""
    return (
        f"There is no data set {name!r}{of_revision}, neither as a folder nor in the cache, and {trouble}; {remedy}."
    )
