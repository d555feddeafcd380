"""Publishing: a folder that `reinforce` wrote becomes a Hub repository, file by file as it is.

The shards of a configuration that is new on the Hub are uploaded first, in as many commits as the Hub's client makes
of them. One commit of all other files follows: `reinforcement.json`, without which a configuration is not finished,
the picture, the card, and whatever changes in a configuration that is already there, so readers see the old one or
the new one. That commit names the one that it builds on; if somebody else was faster, the Hub refuses it.
"""

import logging
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from glob import escape
from pathlib import Path

import yaml
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, DatasetCard, HfApi
from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled, RepositoryNotFoundError
from huggingface_hub.hf_api import RepoSibling
from huggingface_hub.utils.sha import git_hash

from hf_reinforce.cards.dataset_card import CARD_FILE, current_card, keep_metadata
from hf_reinforce.cards.markdown import code
from hf_reinforce.cards.preview import PREVIEW_FILE
from hf_reinforce.licenses import is_hub_id
from hf_reinforce.sources.errors import explained_publishing
from hf_reinforce.sources.files import check_no_local_paths
from hf_reinforce.store.config import CONFIG_FILE, ReinforcementConfig
from hf_reinforce.store.shards import SHARD_NAME, check_shards, file_checksum, shard_files

logger = logging.getLogger(__name__)

_Contents = Mapping[str, Path | bytes]


@dataclass(frozen=True)
class FileChange:
    """One file that is sent to the Hub, or deleted there, by its path in the repository and its size in bytes."""

    path: str
    size: int
    reason: str  # `new`, `changed`, or `deleted` for a shard that the folder no longer has


@dataclass(frozen=True)
class Publication:
    """What `push_to_hub` did, or with `dry_run` would do."""

    changes: tuple[FileChange, ...]  # empty if the Hub already had everything
    commit_url: str | None = None  # page of the commit that holds it all; None for a dry run


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
    `README.md`, and of each configuration `reinforcement.json`, the preview and the Parquet files. The card names the
    repository instead of the folder, and keeps the configurations and the metadata that only the card on the Hub has.

    Args:
        folder: the folder of the repository.
        repo_id: `owner/name`; created if it does not exist.
        config_name: the configurations to publish, default all of them.
        private: create the repository as a private one.
        revision: branch to upload to, created from `main` if it does not exist; default `main`.
        tag: name to give to the result.
        commit_message: default: the name and N of each configuration.
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
    folder, branch, api = Path(folder), revision or "main", HfApi(token=token)
    configs = _finished_configs(folder, [config_name] if isinstance(config_name, str) else config_name)
    files = _files(folder, configs)
    own_card = _own_card(folder, configs)
    message = commit_message or f"Add {', '.join(f'{name} (N={c.num_samples})' for name, c in configs.items())}"

    def plan(state: _State) -> tuple[_Contents, dict[str, FileChange]]:
        """All files as they are to be, and which of them are sent or deleted."""
        there = None
        if CARD_FILE in state.files:
            path = api.hf_hub_download(repo_id, CARD_FILE, repo_type="dataset", revision=state.sha)
            there = DatasetCard.load(path, ignore_metadata_errors=True)
        contents: _Contents = {**files, CARD_FILE: _card(own_card, folder.resolve().name, repo_id, there)}
        return contents, _changes(configs, contents, state)

    with explained_publishing(repo_id):
        try:
            state = _state(api, repo_id, branch)
        except (OfflineModeIsEnabled, HTTPError) as error:
            if not dry_run or isinstance(error, HfHubHTTPError):
                raise
            logger.warning("The Hub cannot be asked (%s), so every file is listed as new.", type(error).__name__)
            state = _State()
        _, changes = plan(state)
        if dry_run:
            return Publication(tuple(changes.values()))
        if private and state.private is False:
            raise ValueError(
                f"{repo_id} exists and is public; make it private in its settings first, or choose another name."
            )
        if tag in state.tags and (changes or state.tags[tag] != state.sha):
            raise ValueError(f"{repo_id} already has a tag {tag!r}, of other contents; choose another name.")
        sha = state.sha
        if changes:
            where = {"repo_id": repo_id, "repo_type": "dataset"}
            api.create_repo(**where, private=private, exist_ok=True)
            if branch != "main" and not branch.startswith("refs/pr/"):
                api.create_branch(**where, branch=branch, exist_ok=True)
            new = [name for name in configs if f"{name}/{CONFIG_FILE}" not in state.files]
            shards = [escape(path) for path in changes if path in files and _is_shard(path, new)]
            where |= {"revision": branch, "commit_message": message}
            if shards:
                of_shards = {**where, "commit_message": f"{message}: shards"}
                api.upload_folder(**of_shards, folder_path=folder, allow_patterns=shards)
            state = _state(api, repo_id, branch)  # with what others have committed meanwhile
            contents, remaining = plan(state)
            operations = [
                CommitOperationDelete(path) if change.reason == "deleted" else CommitOperationAdd(path, contents[path])
                for path, change in remaining.items()
            ]
            changes, sha = changes | remaining, state.sha
            if operations:
                sha = api.create_commit(**where, operations=operations, parent_commit=state.sha).oid
        if tag is not None and tag not in state.tags:
            api.create_tag(repo_id, repo_type="dataset", tag=tag, revision=sha)
    return Publication(tuple(changes.values()), f"{api.endpoint}/datasets/{repo_id}/commit/{sha}")


@dataclass(frozen=True)
class _State:
    """What a branch holds: the newest commit and its files by path, None and none where there is no repository."""

    sha: str | None = None
    private: bool | None = None
    files: Mapping[str, RepoSibling] = field(default_factory=dict)
    tags: Mapping[str | None, str] = field(default_factory=dict)


def _state(api: HfApi, repo_id: str, branch: str) -> _State:
    """What is there now; for a branch that does not exist, what it would start from."""
    try:
        refs = api.list_repo_refs(repo_id, repo_type="dataset")
    except RepositoryNotFoundError:
        return _State()
    tags = {ref.name: ref.target_commit for ref in refs.tags}
    exists = branch.startswith("refs/pr/") or branch in {ref.name for ref in refs.branches}
    if not exists and (branch in tags or re.fullmatch(r"[0-9a-f]{7,40}", branch)):
        raise ValueError(
            f"{branch!r} is a tag or a commit of {repo_id}, and what it holds cannot change; name a branch with "
            "revision=, and the result with tag=."
        )
    info = api.dataset_info(repo_id, revision=branch if exists else "main", files_metadata=True)
    return _State(info.sha, info.private, {file.rfilename: file for file in info.siblings or ()}, tags)


def _finished_configs(folder: Path, names: Collection[str] | None) -> dict[str, ReinforcementConfig]:
    """The configurations to publish, each with all of its shards."""
    there = sorted(path.parent.name for path in folder.glob(f"[!.]*/{CONFIG_FILE}"))
    chosen = there if names is None else sorted(set(names))
    if not chosen or not set(chosen) <= set(there):
        raise ValueError(
            f"{folder} has no configuration {names or 'of a reinforced dataset'}; those it has are {there}. Name the "
            "folder that reinforce.py wrote (--output_dir), and its configurations."
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
        if not config.embed_images and not is_hub_id(config.source.name):
            logger.warning(
                "%s: its images are in %s, which others cannot load; they will have to pass source= "
                "(--source_name_or_path).",
                name,
                repr(config.source.name or "a dataset without a name"),
            )
    return configs


def _files(folder: Path, configs: Mapping[str, ReinforcementConfig]) -> dict[str, Path]:
    """The files that belong into the repository, by their paths there."""
    found: dict[str, Path] = {}
    for name, config in configs.items():
        paths = [folder / name / CONFIG_FILE, *shard_files(folder / name, config.split)]
        preview = folder / name / PREVIEW_FILE
        found |= {f"{name}/{path.name}": path for path in [*paths, *([preview] if preview.exists() else [])]}
    for path in (folder / CARD_FILE, *(folder / name for name in configs), *found.values()):
        if path.is_symlink():  # what it points to may lie anywhere
            raise ValueError(f"{path} is a link; replace it by a copy of what it points to.")
    return found


def _own_card(folder: Path, configs: Mapping[str, ReinforcementConfig]) -> str:
    """The folder's card, or a new one if only some of its configurations are published."""
    try:
        return str(current_card(folder, list(configs)))
    except (yaml.YAMLError, UnicodeError) as error:
        lines = " ".join(str(error).split())
        raise ValueError(
            f"The YAML at the top of {folder / CARD_FILE} cannot be read ({lines}); mend it, or delete the file."
        ) from error


def _card(own: str, folder_name: str, repo_id: str, there: DatasetCard | None) -> bytes:
    """The folder's card with the repository's name, and with what only the card on the Hub has."""
    card = DatasetCard(own)
    names = "|".join(re.escape(str(name)) for name in (folder_name, card.data.pretty_name) if name)
    calls = rf'((?:load_(?:dataset|reinforced)\(|--dataset_name )")(?:{names})"'
    card.text = re.sub(calls, rf'\g<1>{repo_id}"', card.text)
    others = [] if there is None else keep_metadata(card, there)
    if others:
        card.text += (
            f"\n\nThis repository also holds {', '.join(map(code, others))}; `{CONFIG_FILE}` in its folder describes "
            "each, with\nits source and its teachers. The licences in the metadata above are those of all.\n"
        )
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
            changes[path] = FileChange(path, there.size or 0, "deleted")
    return changes


def _is_shard(path: str, configs: Collection[str]) -> bool:
    name, _, rest = path.partition("/")
    return name in configs and SHARD_NAME.fullmatch(rest) is not None


def _is_equal(content: Path | bytes, checksum: str | None, there: RepoSibling) -> bool:
    """Whether the Hub has a file of these contents; the checksum is its SHA-256 where that is known."""
    if there.lfs is not None and isinstance(content, Path):
        return bool(there.lfs.sha256 == (checksum or file_checksum(content)))
    return bool(there.blob_id == git_hash(content if isinstance(content, bytes) else content.read_bytes()))
