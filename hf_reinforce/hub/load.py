"""Reinforced datasets by Hub id or folder, joined with their images."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from glob import escape
from typing import Any

import datasets
import numpy as np
from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict

from hf_reinforce import schema
from hf_reinforce.hub.repository import Repository
from hf_reinforce.randomness import PARTNER_BLOCK
from hf_reinforce.replay.dataset import ReinforcedDataset
from hf_reinforce.replay.joining import check_missing, source_positions
from hf_reinforce.sources.errors import explained
from hf_reinforce.sources.image_source import one_split, say_columns
from hf_reinforce.sources.loading import check_columns, load_source, remote_source
from hf_reinforce.sources.rows import ParquetRows, read_footer, repair
from hf_reinforce.splits import WRITE, is_part
from hf_reinforce.store.config import ReinforcementConfig
from hf_reinforce.store.shards import check_source_rows

logger = logging.getLogger(__name__)


def load_reinforced(
    name_or_path: str,
    config_name: str | None = None,
    *,
    source: Dataset | str | None = None,
    revision: str | None = None,
    max_rows: int | None = None,
    allow_missing: bool = False,
    streaming: bool = False,
    **kwargs: Any,
) -> ReinforcedDataset:
    """A reinforced dataset joined with its images.

    The images are found by row, or by their hashes where the source was reordered, filtered or sharded anew; if that
    is noticed only later, when a read finds another image, they are then. Nothing is copied. With streaming, images
    are found by row only.

    Args:
        name_or_path: Hub id, or a folder that `reinforce` wrote.
        config_name: the configuration, that is the policy; default the only one.
        source: the dataset with the images, or the Hub id or folder of it; default the recorded one.
        revision: Hub revision of the reinforced dataset.
        max_rows: use the first so many rows, >= 1; for a policy that mixes, rounded up to whole blocks of partners.
        allow_missing: leave out rows whose image is not in the source, for which every image is hashed at once; with
            streaming, rows behind its end. A warning says how many they are.
        streaming: download neither rows nor images as a whole: the samples are the same, and `EpochSampler` orders
            them so that each reader reads forward. The images must be Parquet files, a `Dataset` in hand, or
            embedded; not for a policy that mixes, unless the images are one of the latter two or were themselves a
            stream when they were reinforced.
        kwargs: arguments of `ReinforcedDataset`, such as `image_size`, `seed` and `selection`.

    Raises:
        ValueError: if the configuration is missing, unfinished or ambiguous, if the source or a revision cannot be
            found or read, if images are missing, or `max_rows` is less than 1; the message says what to do.

    Example:
        from hf_reinforce import load_reinforced

        dataset = load_reinforced("outputs/cifar100-plus", "small_randaug")  # a folder, or a Hub id
        sample = dataset[0]
        view = sample["pixel_values"]  # uint8 [3, 32, 32]
    """
    if max_rows is not None and max_rows < 1:
        raise ValueError(
            f"max_rows (--max_train_samples) must be at least 1, not {max_rows}; leave it out to use all rows."
        )
    repository = Repository.find(name_or_path, revision)
    config_name, config = repository.load_config(config_name)
    if not config.complete:
        raise ValueError(f"{name_or_path} is not finished; run the command that reinforces it again to complete it.")
    if repository.commit is not None:
        logger.info("Loading %s, configuration %r, of commit %s.", name_or_path, config_name, repository.commit)
    files = repository.shards(config_name, config.split, streaming)
    images = None if config.embed_images else _images(name_or_path, config, source, streaming)
    reinforced = _remote_rows(name_or_path, files, config) if streaming else _rows(name_or_path, files, config)
    if max_rows is not None:
        if config.policy.mix_operations:  # partners are in the same block
            max_rows = -(-max_rows // PARTNER_BLOCK) * PARTNER_BLOCK
        reinforced = reinforced.select(range(min(max_rows, len(reinforced))))
    if images is None:
        return ReinforcedDataset(reinforced, config, **kwargs)
    positions = source_positions(reinforced, images, config, every=allow_missing)
    check_missing(positions, reinforced, config, allow_missing)
    if isinstance(images, Dataset):
        say_columns(images.features, config.source.image_column, config.source.label_column, "the source")
    return ReinforcedDataset(reinforced, config, images, source_rows=positions, **kwargs)


def _images(
    name: str, config: ReinforcementConfig, source: Dataset | str | None, streaming: bool
) -> Dataset | ParquetRows:
    """The dataset that holds the images: the one in hand, or the one of this name or of the recorded one."""
    record = config.source
    columns = [record.image_column, *filter(None, [record.label_column])]
    if source is None or isinstance(source, str):
        images = _named_images(name, config, source, columns, streaming)
    elif isinstance(source, (DatasetDict, IterableDatasetDict)):
        raise TypeError(f"source has the splits {list(source)}; pass one of them: source[{config.split!r}].")
    elif isinstance(source, IterableDataset):
        raise TypeError(
            "source is a stream (IterableDataset), whose rows cannot be looked up; pass its Hub id or folder, or a "
            "map-style Dataset: load_dataset(...) without streaming=True."
        )
    else:
        images = one_split(source, "source")
        check_columns("source", images.features, columns)
    if streaming and config.shuffled and isinstance(images, ParquetRows):
        raise ValueError(
            f"The policy {config.policy.name!r} mixes images, so the rows were reinforced in shuffled order and "
            "cannot be streamed in step with their source. Leave out streaming=True (--streaming True); whoever "
            "reinforces it can make it fit for streaming with --embed_images True, or from a source that is a stream "
            "(load_dataset(..., streaming=True))."
        )
    return images


def _named_images(
    name: str, config: ReinforcementConfig, source: str | None, columns: Sequence[str], streaming: bool
) -> Dataset | ParquetRows:
    record = config.source
    found = source or record.name
    if found is None:
        raise ValueError(f"{name} does not record where its images are; pass source= (--source_name_or_path).")
    if streaming and is_part(record.split):
        raise ValueError(
            f"{name} was made from {record.split!r} of {found}, a part that a stream of the images cannot find. Leave "
            "out streaming=True (--streaming True); whoever reinforces it can store the images (--embed_images True)."
        )
    where = (record.config_name, record.split, record.revision if source is None else None)
    try:
        images = remote_source(found, columns, *where) if streaming else load_source(found, *where)
    except ValueError as error:
        hint = ""
        if source is None:
            hint = (
                f" {name} records it as the source of its images; if they are elsewhere now, name them with source= "
                "(--source_name_or_path)."
            )
        elif isinstance(error.__cause__, ValueError):  # its configurations or splits have other names
            hint = f" Load it with `datasets`, and pass the result as source=. {WRITE}"
        raise ValueError(f"{error}{hint}") from error
    if images is None:
        raise ValueError(
            f"{found} is not stored as Parquet, so its rows cannot be streamed. Leave out streaming=True (--streaming "
            "True), convert it with load_dataset(...).to_parquet(FILE) and name that folder with source= "
            "(--source_name_or_path), or store the images when reinforcing (--embed_images True)."
        )
    if not streaming:
        check_columns(found, images.features, columns)
    return images


def _rows(name: str, files: Sequence[str], config: ReinforcementConfig) -> Dataset:
    """The rows of some shards; known by their files, since a folder could be taken for an earlier one of its name."""
    split = config.split
    rows = Dataset.from_dict({})
    if files:
        with explained(name, files=files):
            rows = datasets.load_dataset("parquet", split=split, data_files={split: [escape(file) for file in files]})
        check_source_rows(files)
    _check_count(name, len(rows), config)
    return rows


def _remote_rows(name: str, files: Sequence[str], config: ReinforcementConfig) -> ParquetRows:
    """The rows of some shards, which stay where they are."""
    record = config.source
    columns = [*schema.REINFORCEMENT_COLUMNS, *(target.column for target in config.targets)]
    columns += filter(None, [record.label_column])
    if config.embed_images:
        columns.append(record.image_column)
    with _explained_files(name, files):
        rows = ParquetRows(files, columns)
    _check_count(name, len(rows), config)
    there = rows.values(schema.SOURCE_ROW).to_numpy()
    if len(np.unique(there)) < len(there):
        raise ValueError(
            f"Shards of {name} hold the same rows, so one is there twice; publish it again, or load it anew."
        )
    return rows


def _check_count(name: str, count: int, config: ReinforcementConfig) -> None:
    expected = config.source.num_rows
    if count == 0 or (expected is not None and count + len(config.skipped) != expected):
        raise ValueError(
            f"{name} holds {count} rows, not {expected}: shards are missing. Publish it again, or run the command "
            "that reinforces it again."
        )


@contextmanager
def _explained_files(name: str, files: Sequence[str]) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        for file in files:
            try:
                read_footer(file)
            except (ValueError, OSError):  # pyarrow's errors are such
                raise ValueError(
                    f"A file of {name!r} cannot be read, probably because it was cut short. {repair(file)}"
                ) from error
        raise


def is_reinforced(name_or_path: str, config_name: str | None = None, revision: str | None = None) -> bool:
    """Whether a folder or Hub repository holds a reinforced dataset.

    Args:
        name_or_path: Hub id or folder.
        config_name: the configuration, default any.
        revision: Hub revision; ignored for a folder.

    Raises:
        ValueError: if there is no such repository or revision, it may not be read, or is in no cache while the Hub
            cannot be reached.
    """
    names = Repository.find(name_or_path, revision).config_names
    return config_name in names if config_name else bool(names)
