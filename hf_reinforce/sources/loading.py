"""Datasets of images by Hub id or folder: one split of them, whole or as a stream."""

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset, DatasetBuilder, Features, Image
from datasets.packaged_modules.cache.cache import Cache
from datasets.packaged_modules.parquet.parquet import Parquet

from hf_reinforce.local_copies import resolve
from hf_reinforce.sources.errors import explained
from hf_reinforce.splits import WRITE, is_part, split_names, split_text
from hf_reinforce.store.rows import ParquetRows

logger = logging.getLogger(__name__)


def load_source(
    name: str,
    config_name: str | None = None,
    split: str = "train",
    revision: str | None = None,
    alone: bool = False,
    streaming: bool = False,
) -> Any:
    """One split of a dataset of images.

    Args:
        name: a Hub id, a folder of Parquet files, or an ImageFolder.
        config_name: Hub configuration; of a folder that has a single one of another name, that.
        split: name of the split, or a part of splits: `train[:50%]`, `train[5:15]`, `train+test`.
        revision: Hub revision; ignored for a folder.
        alone: download only the Parquet files of this split; `load_dataset` prepares all splits of a configuration.
        streaming: return an `IterableDataset`.

    Raises:
        ValueError: if there is no such dataset, revision, configuration or split, it may not be read or is damaged;
            the message names what there is, or says what to do.

    Example:
        from hf_reinforce import load_source

        dataset = load_source("uoft-cs/cifar100", split="train[:50%]")
    """
    builder, split = _builder(name, config_name, split, revision, streaming)
    with explained(name, revision):
        if streaming:
            return builder.as_streaming_dataset(split)
        files = builder.config.data_files or {}
        if alone and isinstance(builder, Parquet) and set(split_names(split)) <= set(files):
            files = {part: files[part] for part in split_names(split)}
            return datasets.load_dataset("parquet", data_files=files, split=split)
        builder.download_and_prepare()
        return builder.as_dataset(split)


def remote_source(
    name: str,
    columns: Sequence[str],
    config_name: str | None = None,
    split: str = "train",
    revision: str | None = None,
) -> Dataset | ParquetRows | None:
    """One split of a dataset of images, to be read without downloading it; arguments and errors as `load_source`.

    Args:
        name: Hub id or folder.
        columns: columns that are read, of which the first holds images.
        config_name: Hub configuration.
        split: name of the split, no part of splits.
        revision: Hub revision.

    Returns:
        Its rows, those in the cache where the Hub cannot be reached; None if it is not stored as Parquet, so that its
        rows cannot be reached one by one.
    """
    builder, split = _builder(name, config_name, split, revision, streaming=True)
    if isinstance(builder, Cache):
        return load_source(name, config_name, split, revision)
    if not isinstance(builder, Parquet) or split not in builder.config.data_files:
        return None
    with explained(name, revision):
        found = builder.as_streaming_dataset(split).features
    check_columns(name, found, columns)
    features = Features({column: found[column] for column in columns} | {columns[0]: Image(decode=False)})
    with explained(name, revision):
        return ParquetRows(builder.config.data_files[split], columns, features=features)


def _builder(
    name: str, config_name: str | None, split: str, revision: str | None, streaming: bool
) -> tuple[DatasetBuilder, str]:
    """What builds a dataset, and its split as a text, which is checked before anything is downloaded."""
    split = split_text(split)
    names = split_names(split)
    path = resolve(name)
    local = Path(path).is_dir()
    if local and (Path(path, "state.json").exists() or any(Path(path).glob("*/cache-*.arrow"))):
        raise ValueError(  # beside the rows there may be what `map` has cached
            f"{name!r} was written by save_to_disk, for load_from_disk alone; write it to another folder with "
            "load_from_disk(FOLDER).to_parquet('OTHER/train.parquet')."
        )
    with explained(name, revision):
        where = _own_config(path, config_name) if local and config_name is not None else {"name": config_name}
        builder = datasets.load_dataset_builder(path, **where, revision=None if local else revision)
    known = list(map(str, builder.config.data_files or builder.info.splits or ()))
    missing = [part for part in names if known and part not in (*known, "all")]
    if missing:
        raise ValueError(f"{name!r} has no split {missing[0]!r}; its splits are {known}.")
    if streaming and is_part(split):
        raise ValueError(
            f"{split!r} of {name!r} is a part of splits, which a stream cannot find; name a whole split, or load it "
            "without streaming=True (--streaming True)."
        )
    return builder, split


def _own_config(path: str, config_name: str) -> dict[str, str]:
    """How a local copy calls a configuration of the Hub: the card that names it may not have been copied."""
    there = datasets.get_dataset_config_names(path)
    if config_name not in there:
        if Path(config_name).name == config_name and (Path(path) / config_name).is_dir():
            return {"data_dir": config_name}
        if len(there) == 1:
            logger.warning("%s has no configuration %r; its only one, %r, is used.", path, config_name, there[0])
            return {"name": there[0]}
    return {"name": config_name}


def check_columns(name: str, found: Iterable[str], columns: Sequence[str]) -> None:
    """Raises ValueError for a source that lacks a column of what was reinforced; the message says what to do."""
    missing = [column for column in columns if column not in found]
    if missing:
        raise ValueError(
            f"{name} should have the columns {list(columns)}, as when it was reinforced, but has {list(found)}. Load "
            f"it with `datasets`, rename its column with .rename_column(..., {missing[0]!r}), and pass the result as "
            f"source=. {WRITE}"
        )
