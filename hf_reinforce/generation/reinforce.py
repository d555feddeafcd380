"""`reinforce`: runs a `Reinforcer` over a data set and leaves a folder that is the Hub repository it will become."""

import logging
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import accelerate
import pyarrow.parquet as pq
import torch
from datasets import ClassLabel, Dataset, Features, Image, IterableDataset

from hf_reinforce import images
from hf_reinforce.augmentations.policies import AugmentationPolicy
from hf_reinforce.cards.commands import train_command
from hf_reinforce.generation.reinforcer import Reinforcer
from hf_reinforce.generation.run import Run
from hf_reinforce.licenses import read_license, recorded_name
from hf_reinforce.models.teachers import ClassMap
from hf_reinforce.randomness import PARTNER_BLOCK
from hf_reinforce.sources.image_source import AnyDataset, prepare
from hf_reinforce.sources.labels import column_values
from hf_reinforce.splits import split_names, split_text
from hf_reinforce.store.config import CONFIG_FILE, PixelContract, ReinforcementConfig, SourceRecord, check_counts
from hf_reinforce.store.pixel_contract import library_versions
from hf_reinforce.store.shards import shard_files
from hf_reinforce.targets import AnyTeacher

logger = logging.getLogger(__name__)

_NAMES = re.compile(
    r"^Row \d+ \(path .*?\): |: '.*'|: \S+://\S+(?=\))", re.DOTALL
)  # in the reason why an image was skipped
_REASONS = 5  # that the last lines name
_LONGEST_SHARD = timedelta(hours=12)  # that a process may wait for the last shard of another one


def reinforce(
    dataset: AnyDataset,
    teacher: AnyTeacher | Sequence[AnyTeacher],
    policy: AugmentationPolicy,
    output_dir: str | Path,
    *,
    num_samples: int,
    seed: int = 0,
    image_column: str | None = None,
    label_column: str | None = None,
    class_map: ClassMap | None = None,
    source_name: str | None = None,
    source_config: str | None = None,
    source_revision: str | None = None,
    split: str = "train",
    shard_size: int = 4096,
    embed_images: bool = False,
    on_error: str = "raise",
    num_workers: int = 2,
    batch_size: int = PARTNER_BLOCK,
    device: str | torch.device | None = None,
    **target_options: Any,
) -> Path:
    """Reinforces a dataset.

    Run again after an interruption, it continues with the shards that are missing; run again with a larger
    `num_samples`, it adds reinforcements to the existing ones. Under `accelerate launch` the processes share the
    shards.

    Args:
        dataset: one split, with an image column. Its format or transform, if any, is dropped.
        teacher: see `load_teacher`. Several teachers have a column of targets each.
        policy: see `load_policy`.
        output_dir: folder of the Hub repository; the shards go to a subfolder with the policy's name.
        num_samples: N, reinforcements per image.
        seed: seed of the augmentation parameters.
        image_column: default: the only image column.
        label_column: of class indices, null where unknown, or of texts that name classes; default: the only
            ClassLabel column, else `label` where there is one; `""`: use no labels.
        class_map: how the data set's classes correspond to the teacher's, see `Teacher.with_classes`.
        source_name: Hub id or folder under which the images can be found again.
        source_config: its Hub configuration.
        source_revision: its Hub revision.
        split: its split, or the part of splits that `dataset` is (`train[:50%]`, `train+test`). The result has a split
            of a plain name, `train` in these examples.
        shard_size: rows per Parquet file, rounded up to a multiple of `PARTNER_BLOCK`.
        embed_images: store the images too. By default they stay where they are and are joined again for training.
            Files that other columns refer to are always stored.
        on_error: `"raise"` stops at an image that cannot be decoded, `"skip"` records it and goes on.
        num_workers: threads that decode and augment.
        batch_size: views per forward pass of the teacher, rounded down to whole blocks of `PARTNER_BLOCK`.
        device: the teacher's device, default the one of this process.
        target_options: settings of the target; of a distribution over classes `top_k`, how many are stored of each
            view, default 10, or all where there are fewer.

    Returns:
        The folder of the configuration, `output_dir / policy.name`.

    Raises:
        TypeError: if the dataset is not one split.
        ValueError: for arguments that do not fit each other, the data set, or what the folder already holds; for a
            label that is no class.
        ImageError: for an image that cannot be decoded, with `on_error="raise"`.
        OSError: if a shard cannot be written, a stream breaks off, or another process stops; finished shards stay.
        SystemExit: with 128 + the signal's number, if SIGTERM or SIGINT came; the shard at hand was finished.
    """
    check_counts(num_samples=num_samples, shard_size=shard_size, batch_size=batch_size)
    # Processes on CPUs find each other only when asked to: accelerate looks for GPUs alone.
    on_cpu = not torch.accelerator.is_available() or os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true"
    state = accelerate.PartialState(cpu=on_cpu, timeout=_LONGEST_SHARD)
    split = split_text(split)
    split_names(split)  # refuses what nobody could load again
    dataset, image_column, label_column = prepare(dataset, image_column, label_column)
    dataset = dataset.cast_column(image_column, Image(decode=False))
    if isinstance(dataset, IterableDataset):  # some streams yield their columns in changing order
        dataset = dataset.select_columns([name for name in dataset.features if not name.startswith("__")])
    num_rows = len(dataset) if isinstance(dataset, Dataset) else None
    if num_rows == 0:
        raise ValueError(f"The split {split!r} has no rows; there is nothing to reinforce.")
    features: Features = dataset.features
    names = features[label_column].names if label_column and isinstance(features[label_column], ClassLabel) else None
    teachers = [*teacher] if isinstance(teacher, Sequence) else [teacher]
    teachers = [each.with_classes(names, class_map) for each in teachers]
    reinforcer = Reinforcer(
        teachers,
        policy,
        num_samples,
        seed,
        image_column,
        label_column,
        embed_images=embed_images,
        on_error=on_error,
        num_workers=num_workers,
        batch_size=batch_size,
        device=state.device if device is None else device,
        **target_options,
    )
    if label_column and isinstance(dataset, Dataset):
        labels = column_values(dataset, label_column)
        reinforcer.check_labels(labels)
        if labels.null_count:
            logger.warning("%s of %s labels are missing (null).", f"{labels.null_count:,}", f"{len(labels):,}")
    kept = tuple(name for name in features if embed_images or name != image_column)
    config = ReinforcementConfig(
        policy=policy,
        num_samples=num_samples,
        targets=tuple(
            target.recorded(each.describe(), names) for each, target in zip(teachers, reinforcer.targets, strict=True)
        ),
        seed=seed,
        source=SourceRecord(
            source_name and recorded_name(source_name),
            source_config,
            source_revision,
            split,
            num_rows,
            image_column,
            label_column,
            kept,
            read_license(source_name, "dataset", source_revision),
        ),
        pixels=PixelContract(images.PIXEL_BACKEND, library_versions(), ()),
        shard_size=-(-shard_size // PARTNER_BLOCK) * PARTNER_BLOCK,
        shuffled=bool(policy.mix_operations) and num_rows is not None,
        embed_images=embed_images,
    )
    folder = Path(output_dir) / policy.name
    existing = ReinforcementConfig.load(folder) if (folder / CONFIG_FILE).exists() else None
    run = Run(dataset, reinforcer, config, folder, existing)
    run.check()
    with _together(state, folder):
        for each in teachers:
            each.check_processes()
    with _together(state, folder), state.main_process_first():
        if state.is_main_process:
            run.start()
    run.write_shards(state.process_index, state.num_processes)
    with _together(state, folder):
        state.wait_for_everyone()
    if state.is_main_process:
        _say_what_is_there(folder, run.finish())
    with _together(state, folder):
        state.wait_for_everyone()
    return folder


@contextmanager
def _together(state: accelerate.PartialState, folder: Path) -> Iterator[None]:
    """Explains what happens to a process that waits for one that is gone."""
    try:
        yield
    except RuntimeError as error:
        if state.num_processes == 1:
            raise
        raise ConnectionError(
            f"Another process has stopped, or took longer than {_LONGEST_SHARD} ({error}). Finished shards are kept "
            f"in {folder}; run the same command again, with any number of processes, to continue."
        ) from error


def _say_what_is_there(folder: Path, config: ReinforcementConfig) -> None:
    shards, name = shard_files(folder, config.split), folder.parent
    num_images = sum(pq.read_metadata(shard).num_rows for shard in shards)
    size = sum(shard.stat().st_size for shard in shards)
    logger.info(
        "%s holds %d images with %d reinforcements each: %d shards, %.1f MB.",
        folder,
        num_images,
        config.num_samples,
        len(shards),
        size / 1e6,
    )
    if config.skipped:
        reasons = Counter(_NAMES.sub("", item.error) for item in config.skipped).most_common()
        lines = [f"{count:>9,} {reason}" for reason, count in reasons[:_REASONS]]
        others = sum(count for _, count in reasons[_REASONS:])
        lines += [f"{others:>9,} for {len(reasons) - _REASONS} other reasons"] if others else []
        where = folder / CONFIG_FILE
        logger.warning(
            "%d images were skipped and are missing; %s lists them:\n%s", len(config.skipped), where, "\n".join(lines)
        )
    command = train_command(str(name), folder.name, config, num_images)
    logger.info('Done: load_dataset("%s", "%s"). To train a student:\n%s', name, folder.name, command)
