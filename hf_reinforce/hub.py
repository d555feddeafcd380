"""Data sets by Hub id or folder: sources, reinforced data sets joined with them, and publishing."""

from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset
from huggingface_hub import HfApi, hf_hub_download

from hf_reinforce.config import CONFIG_FILE, ReinforcementConfig
from hf_reinforce.dataset import ReinforcedDataset
from hf_reinforce.local import resolve


def load_source(
    name: str, config_name: str | None = None, split: str = "train", revision: str | None = None, **kwargs: Any
) -> Dataset:
    """One split of a data set of images.

    Args:
        name: a Hub id, a folder of Parquet files, or an ImageFolder.
        config_name: Hub configuration.
        split: name of the split.
        revision: Hub revision; ignored for a folder.
        kwargs: further arguments of `datasets.load_dataset`.

    Raises:
        ValueError: if there is no such data set, configuration or split; the message names those there are.
    """
    path = resolve(name)
    try:
        revision = None if Path(path).exists() else revision
        return datasets.load_dataset(path, config_name, split=split, revision=revision, **kwargs)
    except (FileNotFoundError, ConnectionError) as error:
        raise ValueError(f"There is no data set {name!r}, neither as a folder nor on the Hub: {error}") from error


def load_reinforced(
    name_or_path: str,
    config_name: str | None = None,
    *,
    source: Dataset | str | None = None,
    revision: str | None = None,
    max_rows: int | None = None,
    **kwargs: Any,
) -> ReinforcedDataset:
    """A reinforced data set joined with its images.

    Args:
        name_or_path: Hub id, or a folder that `reinforce` wrote.
        config_name: the configuration, that is the policy; default the only one.
        source: the data set with the images, or the Hub id or folder of it; default the recorded one.
        revision: Hub revision of the reinforced data set.
        max_rows: use the first so many rows.
        kwargs: arguments of `ReinforcedDataset`, such as `image_size`, `seed` and `selection`.

    Raises:
        ValueError: if the configuration is missing, unfinished or ambiguous, or the source cannot be found.
    """
    path = resolve(name_or_path)
    config_name, config = _load_config(path, config_name, revision)
    if not config.complete:
        raise ValueError(f"{name_or_path} is not finished; run the command that reinforces it again to complete it.")
    record = config.source
    local = Path(path).exists()
    reinforced = datasets.load_dataset(path, config_name, split=record.split, revision=None if local else revision)
    if max_rows is not None:
        reinforced = reinforced.select(range(min(max_rows, len(reinforced))))
    if config.embed_images:
        return ReinforcedDataset(reinforced, config, **kwargs)
    if isinstance(source, str):
        source = load_source(source, record.config_name, record.split)
    elif source is None:
        if record.name is None:
            raise ValueError(f"{name_or_path} does not record where its images are; pass source=.")
        source = load_source(record.name, record.config_name, record.split, record.revision)
    return ReinforcedDataset(reinforced, config, source, **kwargs)


def is_reinforced(name_or_path: str, config_name: str | None = None) -> bool:
    """Whether a folder or Hub repository holds a reinforced data set."""
    path = resolve(name_or_path)
    if Path(path).exists():
        return any(Path(path).glob(f"{config_name or '*'}/{CONFIG_FILE}"))
    return any(file.endswith(f"/{CONFIG_FILE}") for file in HfApi().list_repo_files(path, repo_type="dataset"))


def _load_config(path: str, config_name: str | None, revision: str | None) -> tuple[str, ReinforcementConfig]:
    if Path(path).exists():
        names = sorted(file.parent.name for file in Path(path).glob(f"*/{CONFIG_FILE}"))
    else:
        files = HfApi().list_repo_files(path, repo_type="dataset", revision=revision)
        names = sorted(file.split("/")[0] for file in files if file.count("/") == 1 and file.endswith(CONFIG_FILE))
    if config_name is None and len(names) == 1:
        config_name = names[0]
    if config_name not in names:
        raise ValueError(f"{path} has the configurations {names}; name one of them with config_name.")
    if Path(path).exists():
        return config_name, ReinforcementConfig.load(Path(path) / config_name)
    file = hf_hub_download(path, f"{config_name}/{CONFIG_FILE}", repo_type="dataset", revision=revision)
    return config_name, ReinforcementConfig.load(Path(file).parent)


def push_to_hub(folder: str | Path, repo_id: str, *, private: bool = False, revision: str | None = None) -> str:
    """Uploads a folder that `reinforce` wrote, as it is.

    Files that are already there are not sent again.

    Args:
        folder: the folder of the repository.
        repo_id: `owner/name`; created if it does not exist.
        private: whether a new repository is private.
        revision: branch to upload to.

    Returns:
        The address of the commit.

    Raises:
        ValueError: if the folder holds no finished configuration.
    """
    configs = {
        path.parent.name: ReinforcementConfig.load(path.parent) for path in Path(folder).glob(f"*/{CONFIG_FILE}")
    }
    unfinished = [name for name, config in configs.items() if not config.complete]
    if not configs or unfinished:
        raise ValueError(f"{folder} has no configuration to publish, or unfinished ones: {unfinished}.")
    message = "Add " + ", ".join(
        f"{name} (N={config.num_samples}, K={config.top_k}, {' + '.join(t['name'] for t in config.teachers)})"
        for name, config in sorted(configs.items())
    )
    api = HfApi()
    api.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True)
    commit = api.upload_folder(
        folder_path=folder,
        repo_id=repo_id,
        repo_type="dataset",
        revision=revision,
        commit_message=message,
        ignore_patterns=["**/.*", ".*"],
    )
    return str(commit.commit_url)
