"""Data sets by Hub id or folder: sources, and reinforced data sets joined with them."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from glob import escape
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset, DatasetDict, Features, Image, IterableDataset, IterableDatasetDict
from datasets.packaged_modules.parquet.parquet import Parquet

from hf_reinforce.config import ReinforcementConfig
from hf_reinforce.dataset import ReinforcedDataset
from hf_reinforce.joining import check_missing, positions_by_hash, source_positions
from hf_reinforce.local import resolve
from hf_reinforce.randomness import PARTNER_BLOCK
from hf_reinforce.repository import Repository, explained
from hf_reinforce.shards import check_source_rows
from hf_reinforce.streaming.rows import ParquetRows, StreamRows, read_footer, repair
from hf_reinforce.streaming.stream import ReinforcedStream

logger = logging.getLogger(__name__)


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
    with explained(name, revision):
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
    with explained(name, revision):
        builder = datasets.load_dataset_builder(path, config_name, revision=revision)
        stream: IterableDataset = builder.as_streaming_dataset(split)
    features = stream.features
    if features is not None:  # None: a stream of samples that nobody has looked at
        _check_columns(name, features, columns)
    if features is None or not isinstance(builder, Parquet) or split not in builder.config.data_files:
        return StreamRows(stream, columns)
    features = Features({column: features[column] for column in columns} | {columns[0]: Image(decode=False)})
    with explained(name, revision):
        return ParquetRows(builder.config.data_files[split], columns, features=features)


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
    files = repository.shards(config_name, config.source.split, streaming)
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
        raise TypeError(f"source has the splits {list(source)}; pass one of them: source[{record.split!r}].")
    if isinstance(source, IterableDataset) and not streaming:
        raise TypeError(
            "source is a stream (IterableDataset), whose rows cannot be looked up; pass streaming=True, or a "
            "map-style Dataset: load_dataset(...) without streaming=True."
        )
    _check_columns("source", source.features or columns, columns)
    return source


def _named_images(
    name: str, config: ReinforcementConfig, source: str | None, columns: Sequence[str], streaming: bool
) -> Dataset | ParquetRows | StreamRows:
    record = config.source
    found = source or record.name
    if found is None:
        raise ValueError(f"{name} does not record where its images are; pass source= (--source_name_or_path).")
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
            hint = " Load it with `datasets`, and pass the result as source=."
        raise ValueError(f"{error}{hint}") from error
    _check_columns(found, images.features, columns)
    return images


def _check_columns(name: str, found: Iterable[str], columns: Sequence[str]) -> None:
    missing = [column for column in columns if column not in found]
    if missing:
        raise ValueError(
            f"{name} should have the columns {list(columns)}, as when it was reinforced, but has {list(found)}. Load "
            f"it with `datasets`, rename its column with .rename_column(..., {missing[0]!r}), and pass the result as "
            "source=."
        )


def _rows(name: str, files: Sequence[str], config: ReinforcementConfig) -> Dataset:
    """The rows of some shards; known by their files, since a folder could be taken for an earlier one of its name."""
    split, expected = config.source.split, config.source.num_rows
    rows = Dataset.from_dict({})
    if files:
        with _explained_files(name, files), explained(name):
            rows = datasets.load_dataset("parquet", split=split, data_files={split: [escape(file) for file in files]})
        check_source_rows(files)
    if not files or (expected is not None and len(rows) + len(config.skipped) != expected):
        raise ValueError(
            f"{name} holds {len(rows)} rows, not {expected}: shards are missing. Publish it again, or run the command "
            "that reinforces it again."
        )
    return rows


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
