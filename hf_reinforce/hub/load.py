"""Reinforced datasets by Hub id or folder, joined with their images."""

import logging
from collections.abc import Sequence
from glob import escape
from typing import Any

import datasets
from datasets import Dataset, IterableDataset

from hf_reinforce import schema
from hf_reinforce.hub.repository import Repository
from hf_reinforce.randomness import PARTNER_BLOCK
from hf_reinforce.replay.dataset import ReinforcedDataset
from hf_reinforce.replay.joining import check_missing, source_positions
from hf_reinforce.sources.errors import explained
from hf_reinforce.sources.image_source import one_split, say_columns
from hf_reinforce.sources.loading import check_columns, load_source, remote_source
from hf_reinforce.splits import WRITE, is_part
from hf_reinforce.store.config import ReinforcementConfig
from hf_reinforce.store.rows import ParquetRows
from hf_reinforce.store.shards import check_rows

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
    reinforced = _rows(name_or_path, files, config, streaming)
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
    columns = [config.source.image_column, *filter(None, [config.source.label_column])]
    if source is None or isinstance(source, str):
        images = _named_images(name, config, source, columns, streaming)
    else:
        images = one_split(source, "source")
        if isinstance(images, IterableDataset):
            raise TypeError(
                "source is a stream (IterableDataset), whose rows cannot be looked up; pass its Hub id or folder, or "
                "load_dataset(...) without streaming=True."
            )
        check_columns("source", images.features, columns)
    if streaming and config.shuffled and isinstance(images, ParquetRows):
        raise ValueError(
            f"The policy {config.policy.name!r} mixes images, so the rows were reinforced in shuffled order and "
            "cannot be streamed in step with their source. Leave out streaming=True (--streaming True), or reinforce "
            "with --embed_images True, or from a stream (load_dataset(..., streaming=True))."
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
            "out streaming=True (--streaming True), or reinforce with --embed_images True."
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
            "True), or convert it with load_dataset(...).to_parquet(FILE) and name that folder with source= "
            "(--source_name_or_path)."
        )
    if not streaming:
        check_columns(found, images.features, columns)
    return images


def _rows(name: str, files: Sequence[str], config: ReinforcementConfig, streaming: bool) -> Dataset | ParquetRows:
    """The rows of some shards; known by their files, since a folder could be taken for an earlier one of its name."""
    if not streaming:
        check_rows(name, ParquetRows(files, [schema.SOURCE_ROW]), config)
        with explained(name):
            split = config.split
            return datasets.load_dataset("parquet", split=split, data_files={split: [escape(file) for file in files]})
    rows = ParquetRows(files, config.own_columns + [config.source.image_column] * config.embed_images)
    check_rows(name, rows, config)
    return rows


def is_reinforced(name_or_path: str, config_name: str | None = None, revision: str | None = None) -> bool:
    """Whether a folder or Hub repository holds a reinforced dataset, of that configuration if one is named.

    Raises:
        ValueError: if there is no such repository or revision, it may not be read, or is in no cache while the Hub
            cannot be reached.
    """
    names = Repository.find(name_or_path, revision).config_names
    return config_name in names if config_name else bool(names)
