"""What it means when a dataset cannot be loaded or published, and what to do, whatever the libraries raise."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import yaml
from datasets import exceptions
from datasets.table import CastError
from huggingface_hub import errors as hub
from huggingface_hub import is_offline_mode
from huggingface_hub.errors import HTTPError, LocalEntryNotFoundError

from hf_reinforce.local_copies import resolve
from hf_reinforce.store.rows import ParquetRows

_CARD_TYPES = (yaml.YAMLError, UnicodeError, TypeError, AttributeError, KeyError, exceptions.SplitsVerificationError)
"""What datasets raises where a card says something else than it expects."""
_PASSING = (408, 409, 412, 429, 500, 502, 503, 504)
"""Status of an answer that may be another at the next try: a conflict, or trouble of the server."""


@contextmanager
def explained(name: str, revision: str | None = None) -> Iterator[None]:
    """Turns any error while the dataset of this name is loaded into a ValueError that says what to do."""
    if revision == "":  # the clients ask the Hub for another address, and report that there is no dataset
        raise ValueError("The revision is empty; name a branch, tag or commit, or leave it out for 'main'.")
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:  # datasets raises whatever its readers and their libraries run into
        raise ValueError(_explanation(name, revision, error)) from error


@contextmanager
def explained_publishing(repo_id: str) -> Iterator[None]:
    """Turns an error of the Hub's client while a repository is published into an OSError that says what to do."""
    try:
        yield
    except hub.OfflineModeIsEnabled as error:
        raise OSError(f"HF_HUB_OFFLINE forbids to ask the Hub; unset it to publish {repo_id}.") from error
    except (HTTPError, LocalEntryNotFoundError, ConnectionError, RuntimeError) as error:
        status = _status(error)
        said = _said(next((cause for cause in _causes(error) if isinstance(cause, HTTPError)), error))
        if status in (401, 403):
            text = f"The Hub does not let you write to {repo_id} (HTTP {status}): log in with `hf auth login`."
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


def _said(error: BaseException) -> str:
    """The error in one line."""
    kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
    return kind + " ".join(str(error).split())[:600]


def _explanation(name: str, revision: str | None, error: Exception) -> str:
    not_found = str(error) if isinstance(error, exceptions.DatasetNotFoundError) else ""  # whatever the reason is
    if isinstance(error, hub.GatedRepoError) or "gated dataset" in not_found:
        return (
            f"{name!r} may only be read by those who accepted its conditions: accept them on its page on the Hub, "
            "then log in with `hf auth login`, or set HF_TOKEN."
        )
    if isinstance(error, hub.RevisionNotFoundError) or "Revision" in not_found:
        return f"{name} has no revision {revision!r}; its page on the Hub lists its branches and tags."
    if not_found or isinstance(error, (hub.RepositoryNotFoundError, hub.HFValidationError)):
        return _unknown(name)
    if isinstance(error, (hub.RevisionResolutionError, HTTPError, LocalEntryNotFoundError, ConnectionError)):
        return _no_answer(name, revision, error)
    return _unreadable(name, error)


def _unknown(name: str) -> str:
    return (
        f"There is no dataset {name!r}, neither as a folder nor on the Hub. Check its name; if it is private, log in "
        "with `hf auth login`, or set HF_TOKEN."
    )


def _no_answer(name: str, revision: str | None, error: BaseException) -> str:
    status = _status(error)
    if status == 404:
        return _unknown(name)
    if status in (401, 403):
        return f"The Hub does not let you read {name!r} (HTTP {status}): log in with `hf auth login`, or set HF_TOKEN."
    if status is not None:
        trouble = f"the Hub answers HTTP {status}; try again later."
    elif is_offline_mode():
        trouble = "HF_HUB_OFFLINE forbids to ask the Hub; unset it to download the dataset."
    else:
        last = _causes(error)[-1]
        trouble = f"the Hub cannot be reached ({type(last).__name__}: {last}); check the connection, and try again."
    if isinstance(error, LocalEntryNotFoundError):
        return f"Not all files of {name!r} are in the cache, and {trouble}"
    of_revision = f" of revision {revision!r}" if revision else ""
    return f"There is no dataset {name!r}{of_revision}, neither as a folder nor in the cache, and {trouble}"


def _unreadable(name: str, error: Exception) -> str:
    """What is wrong with the files of a dataset."""
    generation, causes = exceptions.DatasetGenerationError, _causes(error)
    cause = next(each for each in causes if type(each) is not generation or each is causes[-1])
    said, path = _said(cause).rstrip(".!"), Path(resolve(name))
    if isinstance(cause, (FileNotFoundError, exceptions.FileNotFoundDatasetsError)):
        if path.is_file():
            return f"{name!r} is a file; name the folder that holds it."
        card = ", and what its README.md says of data_files" if (path / "README.md").exists() else ""
        missing = f"The folder {str(path)!r} holds no images or Parquet files; check its path{card}."
        return missing if path.is_dir() else _unknown(name)
    if "corresponds to no data" in said:
        return f"{name!r} has no rows in that split ({said}); name another split."
    if isinstance(cause, CastError):
        found, expected = set(cause.table_column_names), set(cause.requested_column_names)
        return (
            f"The files of {name!r} do not have the same columns (not expected: {sorted(found - expected)}, missing: "
            f"{sorted(expected - found)}); give all files the columns of the first, or of dataset_info in README.md."
        )
    if "Invalid string class label" in said:
        return (
            f"The classes of {name!r} cannot be told from its folders ({said}): datasets looks for them beside an "
            "archive, not inside. Extract the archives, so that there is SPLIT/CLASS/FILE, and delete them."
        )
    if isinstance(cause, (pa.ArrowException, OSError)) and path.is_dir():
        try:
            ParquetRows([str(file) for file in sorted(path.rglob("*.parquet"))], [])
        except ValueError as damage:
            return str(damage)
    if isinstance(error, generation):
        return f"A file of {name!r} cannot be read ({said}); mend or delete that file."
    if isinstance(cause, _CARD_TYPES):
        return f"{name!r} cannot be loaded, because the YAML at the top of README.md does not fit ({said}); mend it."
    return f"{name!r} cannot be loaded: {said}."  # no such configuration or split, or what the card says is wrong
