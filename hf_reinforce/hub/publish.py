"""Publishing: a folder that `reinforce` wrote becomes a Hub repository, file by file as it is.

The files of a configuration that is new on the Hub are committed in groups, its `reinforcement.json` last: one that
has none is not finished. A configuration that is already there changes in a single commit, so readers see the old one
or the new one. Every commit names the one that it builds on; if somebody else was faster, the Hub refuses it and it is
made again from what is there now.
"""

import hashlib
import io
import logging
import re
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import yaml
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, DatasetCard, HfApi, RepoFile
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

from hf_reinforce.cards.dataset_card import dataset_card, keep_metadata
from hf_reinforce.cards.markdown import code
from hf_reinforce.cards.preview import PREVIEW_FILE, STATISTICS_FILE
from hf_reinforce.hub.remote import CARD_FILE, HUB_ERRORS, Branch, State, describe, explain, passes
from hf_reinforce.hub.repository_names import check_branch, check_names
from hf_reinforce.licenses import is_hub_id
from hf_reinforce.sources.files import check_no_local_paths
from hf_reinforce.store.config import CONFIG_FILE, ReinforcementConfig
from hf_reinforce.store.shards import SHARD_NAME, check_shards, shard_files

logger = logging.getLogger(__name__)

_FILES_PER_COMMIT = 100
_WAITS = (1.0, 2.0, 4.0, 8.0, 16.0)


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

    Files that the Hub already has are not sent again, so the same call continues after an interruption. Conflicts and
    errors that pass are retried. Sent are `README.md`, and of each configuration `reinforcement.json`, the card's
    pictures and the Parquet files. The card names the repository instead of the folder, and keeps the configurations
    and the metadata that only the card on the Hub has.

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
        OSError: if the Hub refuses or cannot be reached; what was sent is kept there.
    """
    check_names(repo_id, revision, tag)
    folder = Path(folder)
    configs = _finished_configs(folder, [config_name] if isinstance(config_name, str) else config_name)
    files = [file for name, config in configs.items() for file in _local_files(folder, name, config.split)]
    branch = Branch(HfApi(token=token), repo_id, revision or "main")
    message = commit_message or _message(configs)
    _warn_of_local_names(configs)
    changes: dict[str, FileChange] = {}
    committed: set[str] = set()
    prepared, waits = False, list(_WAITS)
    while True:
        try:
            if not prepared:
                check_branch(branch)
                if not dry_run:
                    branch.create(private)
                prepared = True
            state = branch.state()
            wanted = _steps([*files, _card(folder, configs, branch, state)], configs, state)
            steps = [step for step in wanted if step.change.path not in committed]
            if dry_run:
                return Publication(tuple(step.change for step in steps))
            if tag and steps:
                branch.check_tag(tag)
            group = [step for step in steps if step.early][:_FILES_PER_COMMIT] or steps
            changes |= {step.change.path: step.change for step in group}
            remaining = len(steps) - len(group)
            title = f"{message}, {remaining} files to follow" if remaining else message
            sha = branch.commit([step.operation for step in group], title, state) if group else state.sha
            committed |= {step.change.path for step in group}
            waits = list(_WAITS)
            if not remaining:
                if tag:
                    branch.add_tag(tag, sha)
                return Publication(tuple(changes.values()), branch.url(sha))
        except (OfflineModeIsEnabled, *HUB_ERRORS) as error:
            offline = isinstance(error, OfflineModeIsEnabled)
            if dry_run and (offline or (passes(error) and not isinstance(error, HfHubHTTPError))):
                logger.warning("The Hub cannot be asked (%s), so every file is listed as new.", type(error).__name__)
                nothing = State(None, {})
                steps = _steps([*files, _card(folder, configs, branch, nothing)], configs, nothing)
                return Publication(tuple(step.change for step in steps))
            if offline:
                raise OSError(f"HF_HUB_OFFLINE forbids to ask the Hub; unset it to publish {repo_id}.") from error
            if not passes(error) or not waits:
                raise OSError(explain(error, repo_id)) from error
            wait = waits.pop(0)
            logger.warning("%s: %s; trying again in %.0f s.", repo_id, describe(error), wait)
            time.sleep(wait)


@dataclass(frozen=True)
class _LocalFile:
    """A file to publish: from the disk, or the card's text. It is hashed at most once."""

    path: str
    content: Path | bytes

    @cached_property
    def size(self) -> int:
        return len(self.content) if isinstance(self.content, bytes) else self.content.stat().st_size

    @cached_property
    def sha256(self) -> str:
        with io.BytesIO(self.content) if isinstance(self.content, bytes) else open(self.content, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    @cached_property
    def git_hash(self) -> str:
        content = self.content if isinstance(self.content, bytes) else self.content.read_bytes()
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()

    def equals(self, remote: RepoFile) -> bool:
        if remote.size != self.size:
            return False
        return bool(self.sha256 == remote.lfs.sha256 if remote.lfs else self.git_hash == remote.blob_id)


@dataclass(frozen=True)
class _Step:
    """A change and the operation that makes it; `early`: it may be committed before the rest."""

    change: FileChange
    operation: CommitOperationAdd | CommitOperationDelete
    early: bool = False


def _finished_configs(folder: Path, names: Collection[str] | None) -> dict[str, ReinforcementConfig]:
    """The configurations to publish, each with all of its shards."""
    there = sorted(path.parent.name for path in folder.glob(f"[!.]*/{CONFIG_FILE}"))
    chosen = there if names is None else sorted(set(names))
    if not chosen or not set(chosen) <= set(there):
        raise ValueError(
            f"{folder} has no configuration {names or 'of a reinforced data set'}; those it has are {there}."
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
                repr(source) if source else "a data set without a name",
            )


def _local_files(folder: Path, name: str, split: str) -> list[_LocalFile]:
    """The files of a configuration that belong into the repository.

    Raises:
        ValueError: if one of them is a link: what it points to may lie anywhere.
    """
    subfolder = folder / name
    files = (CONFIG_FILE, PREVIEW_FILE, STATISTICS_FILE)
    found = [*(subfolder / file for file in files), *shard_files(subfolder, split)]
    found = sorted(path for path in found if path.exists() or path.is_symlink())
    for path in (subfolder, *found):
        if path.is_symlink():
            raise ValueError(f"{path} is a link; replace it by a copy of what it points to.")
    return [_LocalFile(f"{name}/{path.name}", path) for path in found]


def _card(folder: Path, configs: dict[str, ReinforcementConfig], branch: Branch, state: State) -> _LocalFile:
    """The folder's card with the repository's name, and with what only the card on the Hub has."""
    path = folder / CARD_FILE
    if path.is_symlink():
        raise ValueError(f"{path} is a link; replace it by a copy of what it points to.")
    everything = set(configs) == {file.parent.name for file in folder.glob(f"*/{CONFIG_FILE}")}
    try:
        card = DatasetCard.load(path) if everything and path.exists() else dataset_card(folder, list(configs))
    except (yaml.YAMLError, UnicodeError) as error:
        lines = " ".join(str(error).split())
        raise ValueError(
            f"The YAML at the top of {path} cannot be read ({lines}); mend it, or delete the file."
        ) from error
    names = "|".join(re.escape(str(name)) for name in (folder.resolve().name, card.data.pretty_name) if name)
    calls = rf'((?:load_(?:dataset|reinforced)\(|--dataset_name )")(?:{names})"'
    card.text = re.sub(calls, rf'\g<1>{branch.repo_id}"', card.text)
    on_hub = branch.card(state)
    if on_hub is not None:
        others = ", ".join(code(name) for name in keep_metadata(card, on_hub))
        if others:
            card.text += (
                f"\n\nThis repository also holds {others}; `{CONFIG_FILE}` in its folder describes each, with\n"
            )
            card.text += "its source and its teachers. The licences in the metadata above are those of all.\n"
    return _LocalFile(CARD_FILE, str(card).encode())


def _steps(files: Iterable[_LocalFile], configs: Mapping[str, ReinforcementConfig], state: State) -> list[_Step]:
    """What makes the files on the Hub those of the folder; other Parquet files on the Hub are left alone."""
    steps = []
    local = {file.path: file for file in files}
    published = {name for name in configs if f"{name}/{CONFIG_FILE}" in state.files}
    for path, file in local.items():
        there = state.files.get(path)
        if there is None or not file.equals(there):
            content = file.content if isinstance(file.content, bytes) else str(file.content)
            early = path.endswith(".parquet") and path.split("/")[0] not in published
            change = FileChange(path, file.size, "changed" if there else "new")
            steps.append(_Step(change, CommitOperationAdd(path, content), early))
    for path, there in state.files.items():
        name, _, rest = path.partition("/")
        if name in configs and SHARD_NAME.fullmatch(rest) and path not in local:
            steps.append(_Step(FileChange(path, there.size, "deleted"), CommitOperationDelete(path)))
    return steps


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
