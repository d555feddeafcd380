"""`reinforce`: runs a `Reinforcer` over a dataset and leaves a folder that is the Hub repository it will become."""

import itertools
import json
import logging
import os
import shutil
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
from datasets import ClassLabel, Dataset
from huggingface_hub.errors import HTTPError
from tqdm.auto import tqdm

from hf_reinforce import images
from hf_reinforce.augmentations.policies import AugmentationPolicy
from hf_reinforce.generation.reinforcer import Reinforcer, as_list
from hf_reinforce.models.teachers import ClassMap
from hf_reinforce.randomness import PARTNER_BLOCK, shuffled_rows
from hf_reinforce.sources.files import embed_files
from hf_reinforce.sources.image_source import AnyDataset, recorded_source
from hf_reinforce.sources.labels import column_values
from hf_reinforce.stopping import StopSignals
from hf_reinforce.store.atomic import explained_writes
from hf_reinforce.store.config import (
    CONFIG_FILE,
    PixelContract,
    ReferenceView,
    ReinforcementConfig,
    SkippedImage,
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

_SKIPPED = b"hf_reinforce.skipped"
_REFERENCE_VIEWS = 4
_ROWS_AT_ONCE = 8 * PARTNER_BLOCK  # that the reinforcer sees, so that the teacher does not wait at each block's start
_LONGEST_SHARD = timedelta(hours=12)  # that a process may wait for the last shard of another one


def reinforce(
    dataset: AnyDataset,
    teacher: AnyTeacher | Sequence[AnyTeacher],
    policy: AugmentationPolicy,
    output_dir: str | Path,
    *,
    num_samples: int,
    image_column: str | None = None,
    label_column: str | None = None,
    class_map: ClassMap | None = None,
    source_name: str | None = None,
    source_config: str | None = None,
    source_revision: str | None = None,
    split: str = "train",
    shard_size: int = 4096,
    embed_images: bool = False,
    device: str | torch.device | None = None,
    **options: Any,
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
        image_column: default: the only image column.
        label_column: of class indices or of texts that name classes; default: the only ClassLabel column, else
            `label` where there is one; `""`: use no labels.
        class_map: how the dataset's classes correspond to the teacher's, see `Teacher.with_classes`.
        source_name: Hub id or folder under which the images can be found again.
        source_config: its Hub configuration.
        source_revision: its Hub revision.
        split: its split, or the part of splits that `dataset` is (`train[:50%]`, `train+test`). The result has a split
            of a plain name, `train` in these examples.
        shard_size: rows per Parquet file, rounded up to a multiple of `PARTNER_BLOCK`, 64: 100 becomes 128.
        embed_images: store the images too. By default they stay where they are and are joined again for training.
            Files that other columns refer to are always stored.
        device: the teacher's device, default the one of this process.
        options: further arguments of `Reinforcer`: `seed`, `on_error`, `num_workers`, `batch_size`, and the settings
            of the target, such as `top_k`.

    Returns:
        The folder of the configuration, `output_dir / policy.name`.

    Raises:
        TypeError: if the dataset is not one split; for an unknown option.
        ValueError: for arguments or labels that do not fit each other or what the folder already holds.
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
    check_counts(num_samples=num_samples, shard_size=shard_size)
    # Processes on CPUs find each other only when asked to: accelerate looks for GPUs alone.
    on_cpu = not torch.accelerator.is_available() or os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true"
    state = accelerate.PartialState(cpu=on_cpu, timeout=_LONGEST_SHARD)
    where = (source_name, source_config, source_revision, split)
    dataset, source = recorded_source(dataset, image_column, label_column, *where, embed_images)
    label = dataset.features[source.label_column] if source.label_column else None
    names = label.names if isinstance(label, ClassLabel) else None
    teachers = [each.with_classes(names, class_map) for each in as_list(teacher, policy)]
    reinforcer = Reinforcer(
        teachers,
        policy,
        num_samples,
        image_column=source.image_column,
        label_column=source.label_column,
        first_sample=0,  # a run finds out by itself how many there are
        embed_images=embed_images,
        device=state.device if device is None else device,
        **options,
    )
    reinforcer.features(dataset.features)  # refuses columns of names that a reinforced dataset needs for itself
    if source.label_column and isinstance(dataset, Dataset):
        labels = column_values(dataset, source.label_column)
        reinforcer.check_labels(labels)
        if labels.null_count:
            logger.warning("%s of %s labels are missing (null).", f"{labels.null_count:,}", f"{len(labels):,}")
    config = ReinforcementConfig(
        policy=policy,
        num_samples=num_samples,
        targets=tuple(
            target.recorded(each.describe(), names) for each, target in zip(teachers, reinforcer.targets, strict=True)
        ),
        seed=reinforcer.seed,
        source=source,
        pixels=PixelContract(images.PIXEL_BACKEND, library_versions(), ()),
        shard_size=-(-shard_size // PARTNER_BLOCK) * PARTNER_BLOCK,
        shuffled=bool(policy.mix_operations) and source.num_rows is not None,
        embed_images=embed_images,
    )
    folder = Path(output_dir) / policy.name
    run = Run(dataset, reinforcer, config, folder)
    run.check()
    with _together(state, folder):
        for each in teachers:
            each.check_processes()
        if state.is_main_process:
            run.start()
        state.wait_for_everyone()
    run.write_shards(state.process_index, state.num_processes)
    with _together(state, folder):
        state.wait_for_everyone()
        if state.is_main_process:
            run.finish()
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


class Run:
    """One call of `reinforce`: the shards that are there, those that are missing, and the files beside them."""

    def __init__(self, dataset: AnyDataset, reinforcer: Reinforcer, config: ReinforcementConfig, folder: Path) -> None:
        self.dataset, self.reinforcer, self.config, self.folder = dataset, reinforcer, config, folder
        self.on_error = reinforcer.on_error
        self.existing = ReinforcementConfig.load(folder) if (folder / CONFIG_FILE).exists() else None
        before = self.existing or config
        extending = before.num_samples < config.num_samples
        self.added = config.num_samples - (before.num_samples if extending else 0)  # to each image
        # Checksums of this run's shards, and new reinforcements, so that the folder stays usable until all are there.
        self.staging = folder / f".num_samples-{config.num_samples}"
        self.written = self.staging if extending else folder
        self.recorded = before.checksums
        self.num_rows = config.source.num_rows
        self.num_shards = None if self.num_rows is None else -(-self.num_rows // config.shard_size)
        self.order: Any = None if self.num_rows is None else range(self.num_rows)  # rows as they are stored
        if config.shuffled and self.num_rows:
            self.order = shuffled_rows(config.seed, self.num_rows)

    def check(self) -> None:
        """Refuses a folder that holds something else."""
        if self.existing is None:
            return
        asked, there, different = self.config, self.existing.num_samples, self.config.differences(self.existing)
        if different:
            raise ValueError(
                f"{self.folder} holds a reinforced dataset that was made differently: {'; '.join(different)} "
                "(asked for, not what is there). Choose another output folder, or ask for the same."
            )
        # What is added must come out as what is there did.
        for stored, view in zip(self.existing.pixels.reference_views, self._reference_views(), strict=False):
            check_reference(self.existing.pixels, stored, view.checksum, "choose another output folder")
        if asked.num_samples < there:
            raise ValueError(f"{self.folder} already has {there} reinforcements per image; ask for as many, or more.")
        pending = [] if self.existing.complete else [there]
        if any(path != self.staging for path in self.folder.glob(".num_samples-*")):
            pending += [n for n in map(num_samples_in, shard_files(self.folder, asked.split)) if n > there]
        if pending and asked.num_samples != max(pending):
            raise ValueError(f"{self.folder} is not complete yet; finish it with num_samples={max(pending)} first.")

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
        """Reinforces the shards of one rank that are missing or damaged; SystemExit after one, if a signal came."""
        name, total = f"Reinforcing ({self.config.policy.name})", self.num_rows and self.num_rows * self.added
        progress = tqdm(total=total, unit="view", unit_scale=True, desc=name, disable=rank != 0)
        with StopSignals() as stop, progress:
            self.reinforcer.report = progress.update
            try:
                for index, start, rows in self._shards(rank, world):
                    if stop.requested:
                        break
                    name = shard_name(self.config.split, index, self.num_shards)
                    there = max(self._samples_there(path) for path in {self.folder / name, self.written / name})
                    if there == self.config.num_samples:
                        progress.update(len(rows) * self.added)
                    else:
                        self._write_shard(name, start, rows, there)
            except KeyboardInterrupt:
                stop.requested = "SIGINT"
        if stop.requested:
            said = "Stopped by %s: %d of %s shards are done and kept in %s; run the same command again to continue."
            done, of = len(shard_files(self.written, self.config.split)), self.num_shards or "an unknown number of"
            logger.warning(said, stop.requested, done, of, self.written)
            raise SystemExit(stop.exit_code)

    def _samples_there(self, path: Path) -> int:
        """Reinforcements of each image in a shard; 0 if it is missing, or not what was written."""
        if not path.exists():
            return 0
        known = self._checksums(path.name)
        if known and file_checksum(path) not in known:
            logger.warning("%s is damaged; it is computed again.", path)
            return 0
        return num_samples_in(path)

    def _checksums(self, name: str) -> set[str]:
        """The checksums that a shard may have: as the last finished run recorded it, and as it was written since."""
        since = self.staging / f"{name}.sha256"
        found = {self.recorded[name]} if name in self.recorded else set()
        return found | {since.read_text()} if since.exists() else found

    def _shards(self, rank: int, world: int) -> Iterator[tuple[int, int, Dataset]]:
        """The shards of one rank: index, position of the first row, and the rows in arrow format."""
        size = self.config.shard_size
        if isinstance(self.dataset, Dataset):
            dataset = self.dataset.with_format("arrow")
            for index in range(rank, self.num_shards or 0, world):
                yield index, index * size, dataset.select(self.order[index * size : (index + 1) * size])
            return
        info, stream = datasets.DatasetInfo(features=self.dataset.features), self._stream()
        for index in itertools.count():
            blocks = list(itertools.islice(stream, size // PARTNER_BLOCK))
            if not blocks:
                return
            if index % world == rank:
                yield index, index * size, Dataset(pa.concat_tables(blocks), info).with_format("arrow")

    def _stream(self) -> Iterator[pa.Table]:
        """The blocks of the dataset, one after the other."""
        try:
            yield from self.dataset.with_format("arrow").iter(batch_size=PARTNER_BLOCK)
        except (OSError, HTTPError) as error:
            reason = " ".join(str(error).split())
            raise ConnectionError(
                f"The stream of images broke off ({type(error).__name__}: {reason}). When it can be read again, run "
                f"the same command again to continue; finished shards are kept in {self.folder}."
            ) from error

    def _write_shard(self, name: str, start: int, rows: Dataset, there: int) -> None:
        """Reinforces a shard, of which some reinforcements may be there."""
        reinforcer, already = self.reinforcer, len(self.reinforcer.skipped)
        reinforcer.first_sample = there
        reinforcer.on_error = "skip" if there else self.on_error  # what could not be decoded then cannot be now
        tables = []
        for first in range(0, len(rows), _ROWS_AT_ONCE):
            batch = rows[first : first + _ROWS_AT_ONCE]
            tables.append(reinforcer(batch, range(start + first, start + first + len(batch)), self.order))
        whole = pa.concat_tables(tables)
        reinforcer.first_sample = 0
        features = reinforcer.features(rows.features)
        if there:
            whole = append_reinforcements(pq.read_table(self.folder / name), whole, self.config.targets)
        else:
            whole = embed_files(whole, features, self.config.source.image_column)
        arrow = features.arrow_schema
        metadata = {**(arrow.metadata or {}), _SKIPPED: json.dumps(reinforcer.skipped[already:]).encode()}
        whole = whole.cast(arrow).replace_schema_metadata(metadata)
        write_shard(self.written / name, whole, self.config.targets, self.staging / f"{name}.sha256")

    def finish(self) -> None:
        """Moves added reinforcements into place, and writes what describes the whole."""
        with explained_writes(self.folder):
            for path in sorted(self.staging.glob("*.parquet")):
                path.replace(self.folder / path.name)
        shards = shard_files(self.folder, self.config.split)
        if self.num_shards is not None and len(shards) != self.num_shards:
            there = f"{self.folder} has {len(shards)} of {self.num_shards} shards"
            raise OSError(f"{there}, since a process has stopped early; run the same command again to continue.")
        footers = [pq.read_metadata(shard) for shard in shards]
        lists = [json.loads((footer.metadata or {}).get(_SKIPPED, b"[]")) for footer in footers]
        skipped = tuple(SkippedImage(*item) for of_shard in lists for item in of_shard)
        num_images = sum(footer.num_rows for footer in footers)
        if not num_images:
            raise ValueError(f"No image could be decoded; {skipped[0].error}")
        checksums = {}
        for shard in shards:
            known = self._checksums(shard.name)
            checksums[shard.name] = known.pop() if len(known) == 1 else file_checksum(shard)
        pixels = ReinforcementConfig.load(self.folder).pixels
        config = replace(self.config, pixels=pixels, complete=True, skipped=skipped, checksums=checksums)
        with explained_writes(self.folder):
            config.save(self.folder)
            for folder in self.folder.glob(".num_samples-*"):  # also of a larger N that was given up
                shutil.rmtree(folder)
        holds = "%s holds %d images with %d reinforcements each, in %d shards."
        logger.info(holds, self.folder, num_images, config.num_samples, len(shards))
        if skipped:
            said = "%d images were skipped and are missing; %s lists them, the first: %s"
            logger.warning(said, len(skipped), self.folder / CONFIG_FILE, skipped[0].error)
