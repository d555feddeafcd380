"""A branch of a data set repository on the Hub: what it holds, commits and tags, and which of its errors pass."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, DatasetCard, HfApi, RepoFile, hf_hub_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    RevisionResolutionError,
)

from hf_reinforce.local_copies import resolve

CARD_FILE = "README.md"
HUB_ERRORS = (HTTPError, LocalEntryNotFoundError, RuntimeError)
"""What the Hub's client raises when a request fails; an upload that fails is a RuntimeError with the reason inside."""

_CONFLICTS = (409, 412)
_PASSING = (408, 429, 500, 502, 503, 504)


@dataclass(frozen=True)
class State:
    """What a branch holds: its newest commit, None where there is no repository, and its files by path."""

    sha: str | None
    files: dict[str, RepoFile]


@dataclass(frozen=True)
class Branch:
    """A branch of a data set repository."""

    api: HfApi
    repo_id: str
    name: str

    def create(self, private: bool) -> None:
        """Creates the repository and the branch, unless they exist.

        Raises:
            ValueError: if the repository exists and is public, but is to be private.
        """
        self.api.create_repo(self.repo_id, repo_type="dataset", private=private, exist_ok=True)
        if private and not self.api.repo_info(self.repo_id, repo_type="dataset").private:
            raise ValueError(
                f"{self.repo_id} exists and is public; make it private in its settings first, or choose another name."
            )
        try:
            self.api.repo_info(self.repo_id, repo_type="dataset", revision=self.name)
        except RevisionNotFoundError:
            self.api.create_branch(self.repo_id, repo_type="dataset", branch=self.name, exist_ok=True)

    def state(self) -> State:
        """What is there now; for a branch that does not exist, what it would start from."""
        try:
            info = self.api.repo_info(self.repo_id, repo_type="dataset", revision=self.name)
        except RevisionNotFoundError:
            info = self.api.repo_info(self.repo_id, repo_type="dataset")
        except RepositoryNotFoundError:
            return State(None, {})
        entries = self.api.list_repo_tree(self.repo_id, repo_type="dataset", revision=info.sha, recursive=True)
        return State(info.sha, {entry.path: entry for entry in entries if isinstance(entry, RepoFile)})

    def card(self, state: State) -> DatasetCard | None:
        """The card that is there, None without."""
        if CARD_FILE not in state.files:
            return None
        path = hf_hub_download(self.repo_id, CARD_FILE, repo_type="dataset", revision=state.sha, token=self.api.token)
        return DatasetCard.load(path, ignore_metadata_errors=True)

    def commit(
        self, operations: Sequence[CommitOperationAdd | CommitOperationDelete], message: str, state: State
    ) -> str:
        """Commits on top of a state; refused by the Hub (412) if the branch has moved on. Returns the commit's id."""
        commit = self.api.create_commit(
            self.repo_id,
            operations,
            commit_message=message,
            repo_type="dataset",
            revision=self.name,
            parent_commit=state.sha,
        )
        return str(commit.oid)

    def url(self, sha: str | None) -> str:
        """The page of a commit."""
        return f"{self.api.endpoint}/datasets/{self.repo_id}/commit/{sha}"

    def check_tag(self, tag: str) -> None:
        """Raises ValueError if a tag exists already."""
        if tag in self._tags():
            raise ValueError(f"{self.repo_id} already has a tag {tag!r}, of other contents; choose another name.")

    def add_tag(self, tag: str, sha: str | None) -> None:
        """Tags a commit, unless it has the tag already.

        Raises:
            ValueError: if another commit has the tag.
        """
        existing = self._tags().get(tag)
        if existing is None:
            self.api.create_tag(self.repo_id, repo_type="dataset", tag=tag, revision=sha)
        elif existing != sha:
            raise ValueError(f"{self.repo_id} already has a tag {tag!r}, of commit {existing}; choose another name.")

    def _tags(self) -> dict[str, str]:
        refs = self.api.list_repo_refs(self.repo_id, repo_type="dataset")
        return {ref.name: ref.target_commit for ref in refs.tags}


def dataset_commit(name: str, revision: str | None = None) -> str | None:
    """The commit of a data set that a branch or tag names now: it means the same images when that has moved on.

    Args:
        name: Hub id or folder.
        revision: branch, tag or commit, default `main`.

    Returns:
        The commit's id, from the cache if the Hub cannot be asked; the revision as it is for a folder, and where
        neither knows it.
    """
    if Path(resolve(name)).exists():
        return revision
    try:
        return str(HfApi().resolve_revision(name, repo_type="dataset", revision=revision).resolved)
    except (HTTPError, RevisionResolutionError, HFValidationError):
        return revision


def passes(error: Exception) -> bool:
    """Whether an error may be gone at the next try: a conflict, a server's trouble, or the connection."""
    status = _status(error)
    if status is not None:
        return status in _CONFLICTS + _PASSING
    return isinstance(_reason(error), (HTTPError, LocalEntryNotFoundError))


def describe(error: Exception) -> str:
    """The status or the kind of an error, in a few words."""
    status = _status(error)
    return f"HTTP {status}" if status is not None else type(_reason(error)).__name__


def explain(error: Exception, repo_id: str) -> str:
    """What an error means for somebody who publishes, and what to do."""
    if _status(error) in (401, 403):
        return (
            f"The Hub does not let you write to {repo_id} ({describe(error)}). Log in with `hf auth login`, or pass a "
            "token that may write there."
        )
    if passes(error):
        return (
            f"{repo_id} could not be published completely ({describe(error)}). What was sent is kept; run the same "
            "command again to continue."
        )
    return f"The Hub refused to publish {repo_id}: {_reason(error)}"


def _reason(error: Exception) -> BaseException:
    return error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ is not None else error


def _status(error: Exception) -> int | None:
    reason = _reason(error)
    return int(reason.response.status_code) if isinstance(reason, HfHubHTTPError) else None
