"""Publishing: a folder that `reinforce` wrote becomes a Hub repository, file by file as it is.

The shards of a configuration that is new on the Hub are uploaded first, in as many commits as the Hub's client makes
of them. One commit of all other files follows: `reinforcement.json`, without which a configuration is not finished,
the pictures, the card, and whatever changes in a configuration that is already there, so readers see the old one or
the new one. That commit names the one that it builds on; if somebody else was faster, the Hub refuses it.
"""

import logging
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from glob import escape
from pathlib import Path

import yaml
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, DatasetCard, DatasetInfo, HfApi, RepoFile
from huggingface_hub.errors import (
    HfHubHTTPError,
    HTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils.sha import git_hash

from hf_reinforce.cards.dataset_card import current_card, keep_metadata
from hf_reinforce.cards.markdown import code
from hf_reinforce.cards.preview import PREVIEW_FILE, STATISTICS_FILE
from hf_reinforce.licenses import is_hub_id
from hf_reinforce.sources.errors import explained_publishing
from hf_reinforce.sources.files import check_no_local_paths
from hf_reinforce.store.config import CONFIG_FILE, ReinforcementConfig
from hf_reinforce.store.shards import SHARD_NAME, check_shards, file_checksum, shard_files

logger = logging.getLogger(__name__)

_CARD_FILE = "README.md"
_Contents = Mapping[str, Path | bytes]


@dataclass(frozen=True)
class FileChange:
    """One file that is sent to the Hub, or deleted there.

    Attributes:
        path: in the repository.
        size: bytes.
        reason: `new`, `changed`, or `deleted` for a shard that the folder no longer has.
    """

    path: str
    size: int
    reason: str


@dataclass(frozen=True)
class Publication:
    """What `push_to_hub` did, or with `dry_run` would do.

    Attributes:
        changes: files sent or deleted; empty if the Hub already had everything.
        commit_url: page of the commit that holds it all; None for a dry run.
    """

    changes: tuple[FileChange, ...]
    commit_url: str | None = None


def push_to_hub(
    folder: str | Path,
    repo_id: str,
    *,
    config_name: str | Sequence[str] | None = None,
    private: bool = False,
    revision: str | None = None,
    tag: str | None = None,
    commit_message: str | None = None,
    token: str | None = None,
    dry_run: bool = False,
) -> Publication:
    """Uploads a folder that `reinforce` wrote, as it is.

    Files that the Hub already has are not sent again, so the same call continues after an interruption. Sent are
    `README.md`, and of each configuration `reinforcement.json`, the card's pictures and the Parquet files. The card
    names the repository instead of the folder, and keeps the configurations and the metadata that only the card on
    the Hub has.

    Args:
        folder: the folder of the repository.
        repo_id: `owner/name`; created if it does not exist.
        config_name: the configurations to publish, default all of them.
        private: create the repository as a private one.
        revision: branch to upload to, created from `main` if it does not exist; default `main`.
        tag: name to give to the result.
        commit_message: default: policy, N, K and teachers of each configuration.
        token: default the one that `hf auth login` stored, or `HF_TOKEN`.
        dry_run: send nothing, and report what would be sent; without the Hub that is everything.

    Raises:
        ValueError: if a configuration is missing, unfinished or damaged, or holds paths of this machine, or the
            repository, branch or tag is not as asked for.
        OSError: if the Hub refuses or cannot be reached, or somebody else commits meanwhile; what was sent is kept
            there.

    Example:
        from hf_reinforce import push_to_hub

        push_to_hub("outputs/cifar100-plus", "me/cifar100-plus", private=True)
    """
    if not is_hub_id(repo_id):
        raise ValueError(
            f"repo_id must be 'owner/name', with letters, digits, '-', '_' and '.' in both of them, not {repo_id!r}."
        )
    folder = Path(folder)
    configs = _finished_configs(folder, [config_name] if isinstance(config_name, str) else config_name)
    files = {path: file for name, config in configs.items() for path, file in _files(folder, name, config).items()}
    _warn_of_local_names(configs)
    branch = _Branch(HfApi(token=token), repo_id, revision or "main")
    message, own_card = commit_message or _message(configs), _own_card(folder, configs)

    def plan(state: _State) -> tuple[_Contents, dict[str, FileChange]]:
        """All files as they are to be, and which of them are sent or deleted."""
        contents: _Contents = {**files, _CARD_FILE: _card(own_card, folder.resolve().name, branch, state)}
        return contents, _changes(configs, contents, state)

    with explained_publishing(repo_id):
        state = _state_or_nothing(branch) if dry_run else branch.state()
        _, changes = plan(state)
        if dry_run:
            return Publication(tuple(changes.values()))
        if private and state.info is not None and not state.info.private:
            raise ValueError(
                f"{repo_id} exists and is public; make it private in its settings first, or choose another name."
            )
        tagged = None if tag is None else state.tags.get(tag)
        if tagged is not None and (changes or tagged != state.sha):
            raise ValueError(f"{repo_id} already has a tag {tag!r}, of other contents; choose another name.")
        sha = state.sha
        if changes:
            branch.create(private)
            new = [name for name in configs if f"{name}/{CONFIG_FILE}" not in state.files]
            shards = [path for path in changes if path in files and _is_shard(path, new)]
            if shards:
                branch.upload(folder, shards, f"{message}: shards")
            state = branch.state()  # with what others have committed meanwhile
            contents, remaining = plan(state)
            changes |= remaining
            sha = branch.commit(contents, remaining, message, state) if remaining else state.sha
        if tag is not None and tagged is None:
            branch.api.create_tag(repo_id, repo_type="dataset", tag=tag, revision=sha)
    return Publication(tuple(changes.values()), f"{branch.api.endpoint}/datasets/{repo_id}/commit/{sha}")


@dataclass(frozen=True)
class _State:
    """What a branch holds: the newest commit, None where there is no repository; its files by path; all tags."""

    info: DatasetInfo | None = None
    files: Mapping[str, RepoFile] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)

    @property
    def sha(self) -> str | None:
        return None if self.info is None else self.info.sha


@dataclass(frozen=True)
class _Branch:
    """A branch of a dataset repository."""

    api: HfApi
    repo_id: str
    name: str

    def state(self) -> _State:
        """What is there now; for a branch that does not exist, what it would start from.

        Raises:
            ValueError: if the name is that of a tag or commit.
        """
        try:
            refs = self.api.list_repo_refs(self.repo_id, repo_type="dataset")
            info = self.api.dataset_info(self.repo_id, revision=self.name)
            if not self.name.startswith("refs/pr/") and self.name not in {ref.name for ref in refs.branches}:
                raise ValueError(
                    f"{self.name!r} is a tag or a commit of {self.repo_id}, and what it holds cannot change; name a "
                    "branch with revision=, and the result with tag=."
                )
        except RevisionNotFoundError:
            info = self.api.dataset_info(self.repo_id)
        except RepositoryNotFoundError:
            return _State()
        entries = self.api.list_repo_tree(self.repo_id, repo_type="dataset", revision=info.sha, recursive=True)
        files = {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}
        return _State(info, files, {ref.name: ref.target_commit for ref in refs.tags})

    def create(self, private: bool) -> None:
        """Creates the repository and the branch, unless they exist."""
        self.api.create_repo(self.repo_id, repo_type="dataset", private=private, exist_ok=True)
        if self.name != "main" and not self.name.startswith("refs/pr/"):
            self.api.create_branch(self.repo_id, repo_type="dataset", branch=self.name, exist_ok=True)

    def upload(self, folder: Path, paths: Sequence[str], message: str) -> None:
        """Uploads files of a folder, in as many commits as the client makes of them."""
        where = {"repo_id": self.repo_id, "repo_type": "dataset", "revision": self.name}
        patterns = [escape(path) for path in paths]
        self.api.upload_folder(**where, folder_path=folder, allow_patterns=patterns, commit_message=message)

    def commit(self, contents: _Contents, changes: Mapping[str, FileChange], message: str, state: _State) -> str:
        """Makes one commit of some changes on top of a state. Returns its id."""
        operations = [
            CommitOperationDelete(path) if change.reason == "deleted" else CommitOperationAdd(path, contents[path])
            for path, change in changes.items()
        ]
        where = {"repo_id": self.repo_id, "repo_type": "dataset", "revision": self.name, "parent_commit": state.sha}
        return str(self.api.create_commit(operations=operations, commit_message=message, **where).oid)


def _state_or_nothing(branch: _Branch) -> _State:
    """What a branch holds; nothing where the Hub cannot be asked."""
    try:
        return branch.state()
    except (OfflineModeIsEnabled, HTTPError) as error:
        if isinstance(error, HfHubHTTPError):
            raise
        logger.warning("The Hub cannot be asked (%s), so every file is listed as new.", type(error).__name__)
        return _State()


def _finished_configs(folder: Path, names: Collection[str] | None) -> dict[str, ReinforcementConfig]:
    """The configurations to publish, each with all of its shards."""
    there = sorted(path.parent.name for path in folder.glob(f"[!.]*/{CONFIG_FILE}"))
    chosen = there if names is None else sorted(set(names))
    if not chosen or not set(chosen) <= set(there):
        raise ValueError(
            f"{folder} has no configuration {names or 'of a reinforced dataset'}; those it has are {there}."
        )
    configs = {name: ReinforcementConfig.load(folder / name) for name in chosen}
    for name, config in configs.items():
        if not config.complete:
            raise ValueError(
                f"The configuration {name!r} is not finished; run the command that reinforces it again to complete it."
            )
        check_shards(folder / name, config)
        for shard in shard_files(folder / name, config.split):
            check_no_local_paths(shard)
    return configs


def _warn_of_local_names(configs: dict[str, ReinforcementConfig]) -> None:
    for name, config in configs.items():
        source = config.source.name
        if not config.embed_images and not is_hub_id(source):
            logger.warning(
                "%s: its images are in %s, which others cannot load; they will have to pass source= "
                "(--source_name_or_path).",
                name,
                repr(source) if source else "a dataset without a name",
            )


def _files(folder: Path, name: str, config: ReinforcementConfig) -> dict[str, Path]:
    """The files of a configuration that belong into the repository, by their paths there.

    Raises:
        ValueError: if one of them is a link: what it points to may lie anywhere.
    """
    subfolder = folder / name
    pictures_and_config = (subfolder / file for file in (CONFIG_FILE, PREVIEW_FILE, STATISTICS_FILE))
    found = sorted(path for path in pictures_and_config if path.exists() or path.is_symlink())
    found += shard_files(subfolder, config.split)
    for path in (subfolder, *found):
        _check_no_link(path)
    return {f"{name}/{path.name}": path for path in found}


def _check_no_link(path: Path) -> None:
    if path.is_symlink():
        raise ValueError(f"{path} is a link; replace it by a copy of what it points to.")


def _own_card(folder: Path, configs: Mapping[str, ReinforcementConfig]) -> str:
    """The folder's card, or a new one if only some of its configurations are published."""
    _check_no_link(folder / _CARD_FILE)
    try:
        card = current_card(folder, list(configs))
    except (yaml.YAMLError, UnicodeError) as error:
        lines = " ".join(str(error).split())
        raise ValueError(
            f"The YAML at the top of {folder / _CARD_FILE} cannot be read ({lines}); mend it, or delete the file."
        ) from error
    return str(card)


def _card(own: str, folder_name: str, branch: _Branch, state: _State) -> bytes:
    """The folder's card with the repository's name, and with what only the card on the Hub has."""
    card = DatasetCard(own)
    names = "|".join(re.escape(str(name)) for name in (folder_name, card.data.pretty_name) if name)
    calls = rf'((?:load_(?:dataset|reinforced)\(|--dataset_name )")(?:{names})"'
    card.text = re.sub(calls, rf'\g<1>{branch.repo_id}"', card.text)
    if _CARD_FILE in state.files:
        there = branch.api.hf_hub_download(branch.repo_id, _CARD_FILE, repo_type="dataset", revision=state.sha)
        kept = keep_metadata(card, DatasetCard.load(there, ignore_metadata_errors=True))
        others = ", ".join(code(name) for name in kept)
        if others:
            card.text += (
                f"\n\nThis repository also holds {others}; `{CONFIG_FILE}` in its folder describes each, with\n"
            )
            card.text += "its source and its teachers. The licences in the metadata above are those of all.\n"
    return str(card).encode()


def _changes(configs: Mapping[str, ReinforcementConfig], files: _Contents, state: _State) -> dict[str, FileChange]:
    """What makes the files on the Hub those of the folder, by path; other Parquet files on the Hub are left alone."""
    changes = {}
    for path, content in files.items():
        name, _, rest = path.partition("/")
        there, size = state.files.get(path), len(content) if isinstance(content, bytes) else content.stat().st_size
        checksum = configs[name].checksums.get(rest) if rest else None
        if there is None or there.size != size or not _is_equal(content, checksum, there):
            changes[path] = FileChange(path, size, "changed" if there else "new")
    for path, there in state.files.items():
        if path not in files and _is_shard(path, configs):
            changes[path] = FileChange(path, there.size, "deleted")
    return changes


def _is_shard(path: str, configs: Collection[str]) -> bool:
    name, _, rest = path.partition("/")
    return name in configs and SHARD_NAME.fullmatch(rest) is not None


def _is_equal(content: Path | bytes, checksum: str | None, there: RepoFile) -> bool:
    """Whether the Hub has a file of these contents; the checksum is its SHA-256 where that is known."""
    if there.lfs is not None and isinstance(content, Path):
        return bool(there.lfs.sha256 == (checksum or file_checksum(content)))
    return bool(there.blob_id == git_hash(content if isinstance(content, bytes) else content.read_bytes()))


def _message(configs: dict[str, ReinforcementConfig]) -> str:
    described = (
        f"{name} (policy {config.policy.name}, N={config.num_samples}, "
        f"{', '.join(target.words for target in config.targets)}, "
        f"{' + '.join(_short(teacher['name']) for teacher in config.teachers)})"
        for name, config in configs.items()
    )
    return f"Add {', '.join(described)}"


def _short(name: str) -> str:
    return name if is_hub_id(name) else Path(name).name
