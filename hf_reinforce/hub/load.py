"""Reinforced datasets by Hub id or folder, joined with their images."""

import logging
from collections.abc import Sequence
from functools import partial
from glob import escape
from typing import Any

import datasets
from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict

from hf_reinforce.hub.repository import Repository
from hf_reinforce.randomness import PARTNER_BLOCK
from hf_reinforce.replay.dataset import ReinforcedDataset
from hf_reinforce.replay.joining import check_missing, positions_by_hash, source_positions
from hf_reinforce.replay.streaming.stream import ReinforcedStream
from hf_reinforce.sources.errors import explained
from hf_reinforce.sources.image_source import one_split, say_columns
from hf_reinforce.sources.loading import check_columns, load_source, stream_source
from hf_reinforce.sources.rows import ParquetRows, StreamRows
from hf_reinforce.splits import WRITE, is_part
from hf_reinforce.store.config import ReinforcementConfig
from hf_reinforce.store.shards import check_source_rows

logger = logging.getLogger(__name__)


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

    The images are found by row, or by their hashes where the source was reordered, filtered or sharded anew; if that
    is noticed only later, when a read finds another image, they are then. Nothing is copied. A stream reads rows and
    images in step, and finds images by row only.

    Args:
        name_or_path: Hub id, or a folder that `reinforce` wrote.
        config_name: the configuration, that is the policy; default the only one.
        source: the data set with the images, or the Hub id or folder of it; default the recorded one.
        revision: Hub revision of the reinforced data set.
        max_rows: use the first so many rows, >= 1; for a policy that mixes, rounded up to whole blocks of partners.
        allow_missing: leave out rows whose image is not in the source, for which every image is hashed at once; a
            stream puts other rows in their place. A warning says how many they are.
        streaming: return a `ReinforcedStream`, for which nothing is downloaded as a whole; not for a policy that
            mixes, unless the images are embedded or were themselves a stream when they were reinforced.
        kwargs: arguments of `ReinforcedDataset`, such as `image_size`, `seed` and `selection`.

    Raises:
        ValueError: if the configuration is missing, unfinished or ambiguous, if the source or a revision cannot be
            found or read, if images are missing, or `max_rows` is less than 1; the message says what to do.
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
    if streaming:
        return ReinforcedStream(files, config, images, max_rows, allow_missing, **kwargs)
    reinforced = _rows(name_or_path, files, config)
    if max_rows is not None:
        if config.policy.mix_operations:  # partners are in the same block
            max_rows = -(-max_rows // PARTNER_BLOCK) * PARTNER_BLOCK
        reinforced = reinforced.select(range(min(max_rows, len(reinforced))))
    if config.embed_images:
        return ReinforcedDataset(reinforced, config, **kwargs)
    positions = source_positions(reinforced, images, config, every=allow_missing)
    check_missing(positions, reinforced, config, allow_missing)
    if isinstance(images, Dataset):
        say_columns(images.features, config.source.image_column, config.source.label_column, "the source")
    find = partial(positions_by_hash, reinforced, images, config)
    return ReinforcedDataset(reinforced, config, images, source_rows=positions, find_source_rows=find, **kwargs)


def _images(
    name: str, config: ReinforcementConfig, source: Dataset | IterableDataset | str | None, streaming: bool
) -> Dataset | IterableDataset | ParquetRows | StreamRows:
    """The data set that holds the images: the one in hand, or the one of this name or of the recorded one."""
    record = config.source
    columns = [record.image_column, *filter(None, [record.label_column])]
    if source is None or isinstance(source, str):
        return _named_images(name, config, source, columns, streaming)
    if isinstance(source, (DatasetDict, IterableDatasetDict)):
        raise TypeError(f"source has the splits {list(source)}; pass one of them: source[{config.split!r}].")
    if isinstance(source, IterableDataset) and not streaming:
        raise TypeError(
            "source is a stream (IterableDataset), whose rows cannot be looked up; pass streaming=True, or a "
            "map-style Dataset: load_dataset(...) without streaming=True."
        )
    images: Dataset | IterableDataset = one_split(source, "source")
    check_columns("source", images.features or columns, columns)
    return images


def _named_images(
    name: str, config: ReinforcementConfig, source: str | None, columns: Sequence[str], streaming: bool
) -> Dataset | ParquetRows | StreamRows:
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
        if streaming:
            return stream_source(found, columns, *where)
        images = load_source(found, *where)
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
    check_columns(found, images.features, columns)
    return images


def _rows(name: str, files: Sequence[str], config: ReinforcementConfig) -> Dataset:
    """The rows of some shards; known by their files, since a folder could be taken for an earlier one of its name."""
    split, expected = config.split, config.source.num_rows
    rows = Dataset.from_dict({})
    if files:
        with explained(name, files=files):
            rows = datasets.load_dataset("parquet", split=split, data_files={split: [escape(file) for file in files]})
        check_source_rows(files)
    if not files or (expected is not None and len(rows) + len(config.skipped) != expected):
        raise ValueError(
            f"{name} holds {len(rows)} rows, not {expected}: shards are missing. Publish it again, or run the command "
            "that reinforces it again."
        )
    return rows


def is_reinforced(name_or_path: str, config_name: str | None = None, revision: str | None = None) -> bool:
    """Whether a folder or Hub repository holds a reinforced data set.

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
