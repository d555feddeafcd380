"""A reinforced dataset where it is: a folder, or one commit of a Hub repository, from the cache where that has it."""

from dataclasses import dataclass
from glob import escape
from pathlib import Path

from huggingface_hub import HfApi, HfFileSystem, snapshot_download
from huggingface_hub.errors import HFValidationError, HTTPError, LocalEntryNotFoundError, RevisionResolutionError

from hf_reinforce.local_copies import resolve
from hf_reinforce.sources.errors import explained
from hf_reinforce.store.config import CONFIG_FILE, ReinforcementConfig
from hf_reinforce.store.shards import shard_files


@dataclass(frozen=True)
class Repository:
    """A reinforced dataset."""

    name: str  # Hub id or folder, as the user named it
    folder: Path  # of a Hub repository the cached files of the commit
    commit: str | None  # None for a folder

    @classmethod
    def find(cls, name: str, revision: str | None = None) -> "Repository":
        """The dataset of this name, with every `reinforcement.json` that it has.

        A branch or tag is resolved once, so that all files that are read later are of one commit. Without the Hub it
        is the commit that the branch or tag named when the cache was filled.

        Raises:
            ValueError: if there is no such repository or revision, it may not be read, is in no cache while the Hub
                cannot be reached, or is the folder of a configuration.
        """
        path = resolve(name)
        if Path(path, CONFIG_FILE).is_file():
            above = Path(path).absolute()
            raise ValueError(
                f"{name} is the configuration {above.name!r} of a reinforced dataset; name the folder above, "
                f"{above.parent}, and the configuration beside it."
            )
        if Path(path).exists():
            return cls(name, Path(path), None)
        with explained(name, revision):
            commit = HfApi().resolve_revision(path, repo_type="dataset", revision=revision).resolved
            first = [f"*/{CONFIG_FILE}", "README.md"]
            folder = snapshot_download(path, repo_type="dataset", revision=commit, allow_patterns=first)
        return cls(name, Path(folder), commit)

    @property
    def config_names(self) -> list[str]:
        """Names of the configurations."""
        return sorted(file.parent.name for file in self.folder.glob(f"*/{CONFIG_FILE}"))

    def load_config(self, config_name: str | None = None) -> tuple[str, ReinforcementConfig]:
        """Name and `reinforcement.json` of a configuration, default the only one."""
        names = self.config_names
        if not names:
            if self.commit is not None:  # without the Hub, the cache may hold the card alone
                with explained(self.name):
                    HfApi().list_repo_files(self.name, repo_type="dataset", revision=self.commit)
            raise ValueError(f"{self.name} is not a reinforced dataset; recipes/reinforce.py makes one of it.")
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

        With streaming nothing is downloaded: they are addresses that fsspec opens, unless all are in the cache.
        """
        if self.commit is not None:
            pattern = f"{escape(config_name)}/{escape(split)}-*.parquet"
            where = {"repo_type": "dataset", "revision": self.commit}
            with explained(self.name):
                try:
                    snapshot_download(self.name, **where, allow_patterns=pattern, local_files_only=streaming)
                except LocalEntryNotFoundError:
                    if not streaming:
                        raise
                    found = HfFileSystem().glob(f"datasets/{self.name}@{self.commit}/{pattern}")
                    return sorted(f"hf://{path}" for path in found)
        return list(map(str, shard_files(self.folder / config_name, split)))


def dataset_commit(name: str, revision: str | None = None) -> str | None:
    """The commit that a branch or tag of a dataset names now, so that the same images are meant when it moves on.

    It is found in the cache if the Hub cannot be asked. The revision is returned as it is for a folder, and where
    neither knows it.
    """
    if Path(resolve(name)).exists():
        return revision
    try:
        return str(HfApi().resolve_revision(name, repo_type="dataset", revision=revision).resolved)
    except (HTTPError, RevisionResolutionError, HFValidationError):
        return revision
