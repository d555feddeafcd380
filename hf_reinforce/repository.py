"""A reinforced data set where it is: a folder, or one commit of a Hub repository, from the cache where that has it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from glob import escape
from pathlib import Path

from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError, FileNotFoundDatasetsError
from huggingface_hub import HfApi, is_offline_mode, snapshot_download
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

from hf_reinforce.config import CONFIG_FILE, ReinforcementConfig
from hf_reinforce.local import resolve

_FIRST_FILES = (f"*/{CONFIG_FILE}", "README.md")


@dataclass(frozen=True)
class Repository:
    """A reinforced data set.

    Attributes:
        name: Hub id or folder, as the user named it.
        folder: the folder; of a Hub repository the cached files of the commit.
        commit: id of the commit, None for a folder.
    """

    name: str
    folder: Path
    commit: str | None

    @classmethod
    def find(cls, name: str, revision: str | None = None) -> "Repository":
        """The data set of this name, with every `reinforcement.json` that it has.

        A branch or tag is resolved once, so that all files that are read later are of one commit. Without the Hub it
        is the commit that the branch or tag named when the cache was filled.

        Args:
            name: Hub id or folder.
            revision: branch, tag or commit, default `main`; ignored for a folder.

        Raises:
            ValueError: if there is no such repository or revision, it may not be read, or is in no cache while the Hub
                cannot be reached.
        """
        path = resolve(name)
        if Path(path).exists():
            return cls(name, Path(path), None)
        with explained(name, revision):
            commit = HfApi().resolve_revision(path, repo_type="dataset", revision=revision).resolved
            files = list(_FIRST_FILES)
            folder = snapshot_download(path, repo_type="dataset", revision=commit, allow_patterns=files)
        return cls(name, Path(folder), commit)

    @property
    def config_names(self) -> list[str]:
        """Names of the configurations."""
        return sorted(file.parent.name for file in self.folder.glob(f"*/{CONFIG_FILE}"))

    def load_config(self, config_name: str | None = None) -> tuple[str, ReinforcementConfig]:
        """Name and `reinforcement.json` of a configuration, default the only one.

        Raises:
            ValueError: if there is no such configuration, or there are several, or none is in the cache and the Hub
                cannot be reached.
        """
        names = self.config_names
        if not names:
            if self.commit is not None:  # without the Hub, the cache may hold the card alone
                with explained(self.name):
                    HfApi().list_repo_files(self.name, repo_type="dataset", revision=self.commit)
            raise ValueError(f"{self.name} is not a reinforced data set; recipes/reinforce.py makes one of it.")
        if config_name is None and len(names) == 1:
            config_name = names[0]
        if config_name is None or config_name not in names:
            raise ValueError(
                f"{self.name} has the configurations {names}; name one of them with config_name "
                "(--dataset_config_name)."
            )
        return config_name, ReinforcementConfig.load(self.folder / config_name)

    def shards(self, config_name: str, split: str, streaming: bool = False) -> list[str]:
        """The shards of a configuration in their order, as paths of files.

        Args:
            config_name: the configuration.
            split: the split that was reinforced.
            streaming: download nothing: addresses that fsspec opens, unless all shards are in the cache.

        Raises:
            ValueError: as `find`.
        """
        pattern = f"{escape(config_name)}/{escape(split)}-*.parquet"
        if self.commit is not None:
            with explained(self.name):
                try:
                    self._snapshot(pattern, local_files_only=streaming)
                except LocalEntryNotFoundError:
                    if not streaming:
                        raise
                    files = HfApi().list_repo_files(self.name, repo_type="dataset", revision=self.commit)
                    address = f"hf://datasets/{self.name}@{self.commit}"
                    return sorted(f"{address}/{file}" for file in files if fnmatch(file, pattern))
        return sorted(map(str, self.folder.glob(pattern)))

    def _snapshot(self, pattern: str, local_files_only: bool) -> None:
        snapshot_download(
            self.name,
            repo_type="dataset",
            revision=self.commit,
            allow_patterns=pattern,
            local_files_only=local_files_only,
        )


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
    except (FileNotFoundDatasetsError, ValueError) as error:  # no files, or no such configuration or split
        first_lines = " ".join(str(error).splitlines()[:2])
        raise ValueError(f"{name!r} cannot be loaded: {first_lines}") from error
    except FileNotFoundError as error:
        path = resolve(name)
        message = f"The folder {path!r} holds no images or Parquet files; check its path."
        raise ValueError(message if Path(path).is_dir() else _unknown(name)) from error
    except DatasetGenerationError as error:
        raise ValueError(
            f"A file of {name!r} cannot be read, probably because it was cut short: {error.__cause__ or error} "
            "Delete it from the cache to download it again, or ask whoever published it to publish it again."
        ) from error


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
