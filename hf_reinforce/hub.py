"""Data sets by Hub id or folder: sources, and reinforced data sets joined with them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset, Features, Image, IterableDataset
from datasets.exceptions import DatasetGenerationError
from datasets.packaged_modules.parquet.parquet import Parquet
from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

from hf_reinforce.config import CONFIG_FILE, ReinforcementConfig
from hf_reinforce.dataset import ReinforcedDataset
from hf_reinforce.joining import check_missing, source_positions
from hf_reinforce.local import resolve
from hf_reinforce.randomness import PARTNER_BLOCK
from hf_reinforce.streaming.rows import ParquetRows, StreamRows
from hf_reinforce.streaming.stream import ReinforcedStream


def load_source(
    name: str,
    config_name: str | None = None,
    split: str = "train",
    revision: str | None = None,
    alone: bool = False,
    **kwargs: Any,
) -> Dataset:
    """One split of a data set of images.

    Args:
        name: a Hub id, a folder of Parquet files, or an ImageFolder.
        config_name: Hub configuration.
        split: name of the split.
        revision: Hub revision; ignored for a folder.
        alone: download only the Parquet files of this split; `load_dataset` prepares all splits of a configuration.
        kwargs: further arguments of `datasets.load_dataset`.

    Raises:
        ValueError: if there is no such data set, revision, configuration or split, it may not be read or is damaged;
            the message names what there is, or says what to do.
    """
    path = resolve(name)
    revision = None if Path(path).exists() else revision
    with _explained(name):
        if alone:
            builder = datasets.load_dataset_builder(path, config_name, revision=revision)
            if isinstance(builder, Parquet) and split in builder.config.data_files:
                files = {split: builder.config.data_files[split]}
                return datasets.load_dataset("parquet", data_files=files, split=split, **kwargs)
        return datasets.load_dataset(path, config_name, split=split, revision=revision, **kwargs)


def stream_source(
    name: str,
    columns: Sequence[str],
    config_name: str | None = None,
    split: str = "train",
    revision: str | None = None,
) -> ParquetRows | StreamRows:
    """One split of a data set of images, to be read without downloading it.

    Args:
        name: as `load_source`.
        columns: columns that are read, of which the first holds images.
        config_name: Hub configuration.
        split: name of the split.
        revision: Hub revision; ignored for a folder.

    Returns:
        Rows of Parquet files, any of which can be reached at once; of any other format, rows of a stream.

    Raises:
        ValueError: as `load_source`, or if it lacks a column.
    """
    path = resolve(name)
    revision = None if Path(path).exists() else revision
    with _explained(name):
        builder = datasets.load_dataset_builder(path, config_name, revision=revision)
        stream: IterableDataset = builder.as_streaming_dataset(split)
        features = stream.features
        if features is None:  # a stream of samples that nobody has looked at
            return StreamRows(stream, columns)
        if not set(columns) <= set(features):
            raise ValueError(f"{name!r} should have the columns {list(columns)}, but has {list(features)}.")
        if isinstance(builder, Parquet) and split in builder.config.data_files:
            features = Features({column: features[column] for column in columns} | {columns[0]: Image(decode=False)})
            return ParquetRows(builder.config.data_files[split], columns, features=features)
        return StreamRows(stream, columns)


@contextmanager
def _explained(name: str) -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, ConnectionError) as error:
        if "gated dataset" in str(error):  # datasets has no class for it, and drops the cause
            raise ValueError(_gated(name)) from error
        raise ValueError(f"There is no data set {name!r}, neither as a folder nor on the Hub: {error}") from error
    except DatasetGenerationError as error:
        raise ValueError(
            f"A file of {name!r} cannot be read, probably because it was cut short: {error.__cause__ or error} "
            "Delete it from the cache to download it again, or ask whoever published it to publish it again."
        ) from error


def load_reinforced(
    name_or_path: str,
    config_name: str | None = None,
    *,
    source: Dataset | IterableDataset | str | None = None,
    revision: str | None = None,
    max_rows: int | None = None,
    allow_missing: bool = False,
    streaming: bool = False,
    **kwargs: Any,
) -> ReinforcedDataset | ReinforcedStream:
    """A reinforced data set joined with its images.

    The images are found by row, or by their hashes where the source was reordered, filtered or sharded anew. Nothing
    is copied. A stream reads rows and images in step, and finds images by row only.

    Args:
        name_or_path: Hub id, or a folder that `reinforce` wrote.
        config_name: the configuration, that is the policy; default the only one.
        source: the data set with the images, or the Hub id or folder of it; default the recorded one.
        revision: Hub revision of the reinforced data set.
        max_rows: use the first so many rows; for a policy that mixes, rounded up to whole blocks of partners.
        allow_missing: leave out rows whose image is not in the source.
        streaming: return a `ReinforcedStream`, for which nothing is downloaded as a whole.
        kwargs: arguments of `ReinforcedDataset`, such as `image_size`, `seed` and `selection`.

    Raises:
        ValueError: if the configuration is missing, unfinished or ambiguous, if the source or a revision cannot be
            found or read, or if images are missing; the message says what to do.
    """
    path = resolve(name_or_path)
    config_name, config = _load_config(path, config_name, revision)
    if not config.complete:
        raise ValueError(f"{name_or_path} is not finished; run the command that reinforces it again to complete it.")
    record = config.source
    where = (record.config_name, record.split, record.revision if source is None else None)
    if source is None and not config.embed_images:
        if record.name is None:
            raise ValueError(f"{name_or_path} does not record where its images are; pass source=.")
        source = record.name
    if streaming:
        columns = [record.image_column, *filter(None, [record.label_column])]
        images = stream_source(source, columns, *where) if isinstance(source, str) else source
        files = _shards(name_or_path, config_name, record.split, revision)
        return ReinforcedStream(files, config, images, max_rows, allow_missing, **kwargs)
    reinforced = _load_rows(name_or_path, config_name, record.split, revision)
    if max_rows is not None:
        if config.policy.mix_operations:  # partners are in the same block
            max_rows = -(-max_rows // PARTNER_BLOCK) * PARTNER_BLOCK
        reinforced = reinforced.select(range(min(max_rows, len(reinforced))))
    if config.embed_images:
        return ReinforcedDataset(reinforced, config, **kwargs)
    if isinstance(source, str):
        source = load_source(source, *where)
    positions = source_positions(reinforced, source, config)
    check_missing(positions, reinforced, config, allow_missing)
    return ReinforcedDataset(reinforced, config, source, source_rows=positions, **kwargs)


def _load_rows(name_or_path: str, config_name: str, split: str, revision: str | None) -> Dataset:
    folder = Path(resolve(name_or_path)) / config_name
    if not folder.exists():
        return load_source(name_or_path, config_name, split, revision)
    # Known by name and card, a folder could be taken for an earlier one of the same name; known by its files, not.
    files = _shards(name_or_path, config_name, split, revision)
    return load_source("parquet", split=split, data_files={split: files})


def _shards(name_or_path: str, config_name: str, split: str, revision: str | None) -> list[str]:
    """The shards of a configuration in their order, as paths or as addresses of one commit on the Hub."""
    path = resolve(name_or_path)
    folder = Path(path) / config_name
    if folder.exists():
        return sorted(str(file) for file in folder.glob(f"{split}-*.parquet"))
    with _explained(name_or_path):
        builder = datasets.load_dataset_builder(path, config_name, revision=revision)
        return sorted(builder.config.data_files[split])


def is_reinforced(name_or_path: str, config_name: str | None = None) -> bool:
    """Whether a folder or Hub repository holds a reinforced data set."""
    path = resolve(name_or_path)
    if Path(path).exists():
        return any(Path(path).glob(f"{config_name or '*'}/{CONFIG_FILE}"))
    return any(file.endswith(f"/{CONFIG_FILE}") for file in HfApi().list_repo_files(path, repo_type="dataset"))


def _load_config(path: str, config_name: str | None, revision: str | None) -> tuple[str, ReinforcementConfig]:
    local = Path(path).exists()
    try:
        files = (
            [f"{file.parent.name}/{file.name}" for file in Path(path).glob(f"*/{CONFIG_FILE}")]
            if local
            else HfApi().list_repo_files(path, repo_type="dataset", revision=revision)
        )
        names = sorted(file.split("/")[0] for file in files if file.count("/") == 1 and file.endswith(CONFIG_FILE))
        if config_name is None and len(names) == 1:
            config_name = names[0]
        if not names:
            raise ValueError(f"{path} is not a reinforced data set; recipes/reinforce.py makes one of it.")
        if config_name is None or config_name not in names:
            raise ValueError(
                f"{path} has the configurations {names}; name one of them with config_name (--dataset_config_name)."
            )
        if local:
            return config_name, ReinforcementConfig.load(Path(path) / config_name)
        file = hf_hub_download(path, f"{config_name}/{CONFIG_FILE}", repo_type="dataset", revision=revision)
    except GatedRepoError as error:
        raise ValueError(_gated(path)) from error
    except RevisionNotFoundError as error:
        branches = HfApi().list_repo_refs(path, repo_type="dataset")
        known = [ref.name for ref in (*branches.branches, *branches.tags)]
        raise ValueError(f"{path} has no revision {revision!r}; its branches and tags are {known}.") from error
    except RepositoryNotFoundError as error:
        raise ValueError(
            f"There is no data set {path!r}, neither as a folder nor on the Hub. If it is private, log in with "
            "`hf auth login` first."
        ) from error
    return config_name, ReinforcementConfig.load(Path(file).parent)


def _gated(name: str) -> str:
    return (
        f"{name!r} may only be read by those who accepted its conditions: accept them on its page on the Hub, then "
        "log in with `hf auth login`, or set HF_TOKEN."
    )
