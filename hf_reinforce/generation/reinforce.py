"""`reinforce`: runs a `Reinforcer` over a dataset and leaves a folder that is the Hub repository it will become."""

import itertools
import json
import logging
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import accelerate
import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from datasets import ClassLabel, Dataset, Features, Image, IterableDataset
from huggingface_hub.errors import HTTPError
from tqdm.auto import tqdm

from hf_reinforce import images
from hf_reinforce.augmentations.policies import AugmentationPolicy
from hf_reinforce.generation.reinforcer import Reinforcer
from hf_reinforce.licenses import read_license, recorded_name
from hf_reinforce.models.teachers import ClassMap
from hf_reinforce.randomness import PARTNER_BLOCK, shuffled_rows
from hf_reinforce.sources.files import embed_files
from hf_reinforce.sources.image_source import AnyDataset, prepare
from hf_reinforce.sources.labels import column_values
from hf_reinforce.splits import split_names, split_text
from hf_reinforce.stopping import StopSignals
from hf_reinforce.store.atomic import explained_writes
from hf_reinforce.store.config import (
    CONFIG_FILE,
    PixelContract,
    ReferenceView,
    ReinforcementConfig,
    SkippedImage,
    SourceRecord,
    check_counts,
)
from hf_reinforce.store.pixel_contract import check_reference, library_versions, reference_view
from hf_reinforce.store.shards import (
    append_reinforcements,
    file_checksum,
    num_samples_in,
    shard_files,
    shard_name,
    write_shard,
)
from hf_reinforce.targets import AnyTeacher

logger = logging.getLogger(__name__)

_NAMES = re.compile(
    r"^Row \d+ \(path .*?\): |: '.*'|: \S+://\S+(?=\))", re.DOTALL
)  # in the reason why an image was skipped
_REASONS = 5  # that the last lines name
_SKIPPED = b"hf_reinforce.skipped"
_REFERENCE_VIEWS = 4
_BLOCKS = 8  # that the reinforcer sees at once, so that the teacher does not wait at the start of each
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
    shards. The folder's card is not written: call `write_preview` and `write_dataset_card` afterwards, also when
    reinforcements were added, since `load_dataset` knows a folder's rows in its cache by the card.

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
        class_map: how the dataset's classes correspond to the teacher's, see `Teacher.with_classes`.
        source_name: Hub id or folder under which the images can be found again.
        source_config: its Hub configuration.
        source_revision: its Hub revision.
        split: its split, or the part of splits that `dataset` is (`train[:50%]`, `train+test`). The result has a split
            of a plain name, `train` in these examples.
        shard_size: rows per Parquet file, rounded up to a multiple of `PARTNER_BLOCK`, 64: 100 becomes 128.
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
        ValueError: for arguments that do not fit each other, the dataset, or what the folder already holds; for a
            label that is no class.
        ImageError: for an image that cannot be decoded, with `on_error="raise"`.
        OSError: if a shard cannot be written, a stream breaks off, or another process stops; finished shards stay.
        SystemExit: with 128 + the signal's number, if SIGTERM or SIGINT came; the shard at hand was finished.

    Example:
        from hf_reinforce import load_policy, load_source, load_teacher, reinforce

        dataset = load_source("uoft-cs/cifar100")
        teacher = load_teacher("timm/tf_efficientnet_lite0.in1k")
        folder = reinforce(
            dataset,
            teacher,
            load_policy("small_crop", image_size=32),
            "outputs/my-cifar100-plus",
            num_samples=2,
            label_column="fine_label",
            class_map="identity",
            source_name="uoft-cs/cifar100",
        )
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
    run = Run(dataset, reinforcer, config, folder)
    run.check()
    with _together(state, folder):
        for each in teachers:
            each.check_processes()
        with state.main_process_first():
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


class Run:
    """One call of `reinforce`: the shards that are there, those that are missing, and the files beside them."""

    def __init__(self, dataset: AnyDataset, reinforcer: Reinforcer, config: ReinforcementConfig, folder: Path) -> None:
        self.dataset, self.reinforcer, self.config, self.folder = dataset, reinforcer, config, folder
        self.on_error = reinforcer.on_error
        self.existing = ReinforcementConfig.load(folder) if (folder / CONFIG_FILE).exists() else None
        before = self.existing or config
        self.recorded, self.extending = before.checksums, before.num_samples < config.num_samples
        self.added = config.num_samples - (before.num_samples if self.extending else 0)  # to each image
        # Checksums of this run's shards, and new reinforcements, so that the folder stays usable until all are there.
        self.staging = folder / f".num_samples-{config.num_samples}"
        self.num_rows = config.source.num_rows
        self.num_shards = None if self.num_rows is None else -(-self.num_rows // config.shard_size)
        self.order = shuffled_rows(config.seed, self.num_rows) if config.shuffled and self.num_rows else None

    def check(self) -> None:
        """Refuses a folder that holds something else."""
        if self.existing is None:
            return
        there, different = self.existing.num_samples, self.config.differences(self.existing)
        if different:
            raise ValueError(
                f"{self.folder} holds a reinforced dataset that was made differently: {'; '.join(different)} "
                "(asked for, not what is there). Choose another output folder, or ask for the same."
            )
        # What is added must come out as what is there did.
        for stored, view in zip(self.existing.pixels.reference_views, self._reference_views(), strict=False):
            check_reference(self.existing.pixels, stored, view.checksum, "choose another output folder")
        if self.config.num_samples < there:
            raise ValueError(
                f"{self.folder} already has {there} reinforcements per image; num_samples can be raised but not "
                f"lowered to {self.config.num_samples}."
            )
        others = any(path != self.staging for path in self.folder.glob(".num_samples-*"))
        unfinished = max(map(num_samples_in, self._shard_files()), default=0) if others else 0
        if unfinished > there and unfinished != self.config.num_samples:
            raise ValueError(
                f"{self.folder} was interrupted while reinforcements were added; finish that first with "
                f"num_samples={unfinished}."
            )
        if self.extending and not self.existing.complete:
            raise ValueError(
                f"{self.folder} is not complete yet; finish it with num_samples={there} before adding reinforcements."
            )

    def _shard_files(self) -> list[Path]:
        return shard_files(self.folder, self.config.split)

    def start(self) -> None:
        """Makes the folder with its configuration; clears what a killed run has left half-written."""
        config = self.config
        if self.existing is None:
            config = replace(config, pixels=replace(config.pixels, reference_views=self._reference_views()))
        with explained_writes(self.folder):
            self.staging.mkdir(parents=True, exist_ok=True)
            for path in (*self.folder.rglob(".*.tmp-*"), *self.folder.parent.glob(".README.tmp-*.md")):
                path.unlink()
            if self.existing is None:
                config.save(self.folder)

    def _reference_views(self) -> tuple[ReferenceView, ...]:
        head = next(self._stream(), None)
        if head is None:
            raise ValueError(f"The split {self.config.source.split!r} has no rows; there is nothing to reinforce.")
        views: list[ReferenceView] = []
        for row, item in enumerate(head.column(self.config.source.image_column)):
            if len(views) < _REFERENCE_VIEWS:
                with suppress(images.ImageError):  # reported, or skipped, when its block is reinforced
                    image = images.decode(images.read_encoded(item.as_py()))
                    views.append(reference_view(self.config.policy, self.config.seed, row, 0, image))
        return tuple(views)

    def write_shards(self, rank: int, world: int) -> None:
        """Reinforces the shards of one rank that are missing, or not what was written.

        Raises:
            SystemExit: after the shard at hand, if SIGTERM or SIGINT came.
        """
        folder = self.staging if self.extending else self.folder
        with StopSignals() as stop, self._progress(rank) as progress:
            self.reinforcer.report = progress.update
            try:
                for index, start, shard in self._shards(rank, world):
                    if stop.requested:
                        break
                    name = shard_name(self.config.split, index, self.num_shards)
                    there = max(self._samples_there(path) for path in {self.folder / name, folder / name})
                    if there == self.config.num_samples:
                        progress.update(len(shard) * self.added)
                    else:
                        self._write_shard(folder / name, start, shard, there, progress)
            except KeyboardInterrupt:
                stop.requested = "SIGINT"
        if stop.requested:
            logger.warning(
                "Stopped by %s: %d of %s shards are done and kept in %s; run the same command again to continue.",
                stop.requested,
                len(shard_files(folder, self.config.split)),
                self.num_shards or "an unknown number of",
                folder,
            )
            raise SystemExit(stop.exit_code)

    def _samples_there(self, path: Path) -> int:
        """Reinforcements of each image in a shard; 0 if it is missing, or not what was written."""
        if not path.exists():
            return 0
        known = self._checksums(path)
        if known and file_checksum(path) not in known:
            logger.warning("%s is damaged; it is computed again.", path)
            return 0
        return num_samples_in(path)

    def _checksums(self, shard: Path) -> set[str]:
        """The checksums that a shard may have: as the last finished run recorded it, and as it was written since.

        There are none of a shard that an earlier version wrote, and two of one that came back from a backup.
        """
        since = self.staging / f"{shard.name}.sha256"
        found = {self.recorded[shard.name]} if shard.name in self.recorded else set()
        return found | {since.read_text()} if since.exists() else found

    def _shards(self, rank: int, world: int) -> Iterator[tuple[int, int, Dataset]]:
        """The shards of one rank: index, position of the first row, and the rows."""
        size = self.config.shard_size
        if isinstance(self.dataset, Dataset):
            rows: Any = range(len(self.dataset)) if self.order is None else self.order
            for index in range(rank, self.num_shards or 0, world):
                yield index, index * size, self.dataset.select(rows[index * size : (index + 1) * size])
            return
        info, stream = datasets.DatasetInfo(features=self.dataset.features), self._stream()
        for index in itertools.count():
            blocks = list(itertools.islice(stream, size // PARTNER_BLOCK))
            if not blocks:
                return
            if index % world == rank:
                yield index, index * size, Dataset(pa.concat_tables(blocks), info)

    def _stream(self) -> Iterator[pa.Table]:
        try:
            yield from self.dataset.with_format("arrow").iter(batch_size=PARTNER_BLOCK)
        except (OSError, HTTPError) as error:
            reason = " ".join(str(error).split())
            raise ConnectionError(
                f"The stream of images broke off ({type(error).__name__}: {reason}). When it can be read again, run "
                f"the same command again to continue; finished shards are kept in {self.folder}."
            ) from error

    def _write_shard(self, path: Path, start: int, shard: Dataset, there: int, progress: Any) -> None:
        """Reinforces a shard, of which some reinforcements may be there."""
        config, already, size = self.config, len(self.reinforcer.skipped), _BLOCKS * PARTNER_BLOCK
        self.reinforcer.first_sample = there
        self.reinforcer.on_error = "skip" if there else self.on_error  # what could not be decoded then cannot be now
        features = self.reinforcer.features(shard.features)
        order = None if self.order is None else self.order[start : start + len(shard)]
        mapped = (
            shard.to_iterable_dataset()
            .with_format("arrow")
            .map(
                self.reinforcer,
                batched=True,
                batch_size=size,
                with_indices=True,
                fn_kwargs={"offset": start, "order": order},
                remove_columns=[name for name in shard.column_names if name not in features],
                features=features,
            )
        )
        whole = pa.concat_tables([features.arrow_schema.empty_table(), *mapped.iter(batch_size=size)])
        skipped = self.reinforcer.skipped[already:]
        progress.update(len(skipped) * self.added)
        if there:
            whole = append_reinforcements(pq.read_table(self.folder / path.name), whole, config.targets)
            self.reinforcer.first_sample = 0
            features = self.reinforcer.features(shard.features)
        else:
            whole = embed_files(whole, features, config.source.image_column)
        arrow = features.arrow_schema
        metadata = {**(arrow.metadata or {}), _SKIPPED: json.dumps(skipped).encode()}
        record = self.staging / f"{path.name}.sha256"
        write_shard(path, whole.cast(arrow).replace_schema_metadata(metadata), config.targets, record)

    def _progress(self, rank: int) -> Any:
        total, name = self.num_rows and self.num_rows * self.added, self.config.policy.name
        return tqdm(total=total, unit="view", unit_scale=True, desc=f"Reinforcing ({name})", disable=rank != 0)

    def finish(self) -> ReinforcementConfig:
        """Moves added reinforcements into place, and writes and returns what describes the whole."""
        with explained_writes(self.folder):
            for path in sorted(self.staging.glob("*.parquet")):
                path.replace(self.folder / path.name)
        shards = self._shard_files()
        if self.num_shards is not None and len(shards) != self.num_shards:
            raise OSError(
                f"{self.folder} has {len(shards)} of {self.num_shards} shards; a process has stopped early, or a file "
                "was taken away. Run the same command again to continue."
            )
        footers = [pq.read_metadata(shard) for shard in shards]
        skipped = [
            SkippedImage(*item)
            for footer in footers
            for item in json.loads((footer.metadata or {}).get(_SKIPPED, b"[]"))
        ]
        if not any(footer.num_rows for footer in footers):
            raise ValueError(
                f"No image of the split {self.config.source.split!r} could be decoded; {skipped[0].error}"
            )
        pixels = ReinforcementConfig.load(self.folder).pixels
        checksums = {}
        for shard in shards:
            known = self._checksums(shard)
            checksums[shard.name] = known.pop() if len(known) == 1 else file_checksum(shard)
        config = replace(self.config, pixels=pixels, complete=True, skipped=tuple(skipped), checksums=checksums)
        with explained_writes(self.folder):
            config.save(self.folder)
            for folder in self.folder.glob(".num_samples-*"):  # also of a larger N that was given up
                shutil.rmtree(folder)
        return config


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
    shards = shard_files(folder, config.split)
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
