"""`reinforce`: runs a `Reinforcer` over a data set and leaves a folder that is the Hub repository it will become."""

import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from datasets import ClassLabel, Dataset, Features, Image, IterableDataset
from numpy.typing import NDArray
from tqdm.auto import tqdm

from hf_reinforce import images, schema
from hf_reinforce.cards import write_dataset_card
from hf_reinforce.config import CONFIG_FILE, PixelContract, ReinforcementConfig, SkippedImage, SourceRecord
from hf_reinforce.dataset import find_columns
from hf_reinforce.pixels import library_versions, reference_view
from hf_reinforce.policies import AugmentationPolicy
from hf_reinforce.preview import write_preview
from hf_reinforce.randomness import PARTNER_BLOCK, shuffled_rows
from hf_reinforce.reinforcer import Reinforcer
from hf_reinforce.storage import append_reinforcements, shard_name, write_shard
from hf_reinforce.teachers import ClassMap, Teacher

logger = logging.getLogger(__name__)

AnyDataset: TypeAlias = Dataset | IterableDataset

_SKIPPED = b"hf_reinforce.skipped"
_REFERENCE_VIEWS = 4


def reinforce(
    dataset: AnyDataset,
    teacher: Teacher,
    policy: AugmentationPolicy,
    output_dir: str | Path,
    *,
    num_samples: int,
    top_k: int = 10,
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
) -> Path:
    """Reinforces a data set.

    Run again after an interruption, it continues with the shards that are missing; run again with a larger
    `num_samples`, it adds reinforcements to the existing ones. Under `accelerate launch` the processes share the
    shards.

    Args:
        dataset: one split, with an image column.
        teacher: see `load_teacher`.
        policy: see `load_policy`.
        output_dir: folder of the Hub repository; the shards go to a subfolder with the policy's name.
        num_samples: N, reinforcements per image.
        top_k: K, classes stored per reinforcement.
        seed: seed of the augmentation parameters.
        image_column: default: the only image column.
        label_column: default: the only ClassLabel column, else `label` where there is one; `""`: use no labels.
        class_map: how the data set's classes correspond to the teacher's, see `Teacher.with_classes`.
        source_name: Hub id or folder under which the images can be found again.
        source_config: its Hub configuration.
        source_revision: its Hub revision.
        split: its split, and the split of the result.
        shard_size: rows per Parquet file, rounded up to a multiple of `PARTNER_BLOCK`.
        embed_images: store the images too. By default they stay where they are and are joined again for training.
        on_error: `"raise"` stops at an image that cannot be decoded, `"skip"` records it and goes on.
        num_workers: threads that decode and augment.
        batch_size: views per forward pass of the teacher, rounded down to whole blocks of `PARTNER_BLOCK`.
        device: the teacher's device, default the one of this process.

    Returns:
        The folder of the configuration, `output_dir / policy.name`.

    Raises:
        ValueError: for arguments that do not fit each other, the data set, or what the folder already holds.
        ImageError: for an image that cannot be decoded, with `on_error="raise"`.
        OSError: if a shard cannot be written; finished shards stay.
    """
    from accelerate import PartialState

    state = PartialState()
    if dataset.features is None:
        raise ValueError("This stream does not know its columns; give it features with dataset.cast(Features(...)).")
    image_column, label_column = find_columns(dataset.features, image_column, label_column)
    dataset = dataset.cast_column(image_column, Image(decode=False))
    features: Features = dataset.features
    names = features[label_column].names if label_column and isinstance(features[label_column], ClassLabel) else None
    teacher = teacher.with_classes(names, class_map)
    device = torch.device(device) if device is not None else state.device
    folder = Path(output_dir) / policy.name
    existing = ReinforcementConfig.load(folder) if (folder / CONFIG_FILE).exists() else None
    reinforcer = Reinforcer(
        teacher,
        policy,
        num_samples,
        top_k,
        seed,
        image_column,
        label_column,
        embed_images=embed_images,
        on_error=on_error,
        num_workers=num_workers,
        batch_size=batch_size,
        device=device,
    )
    num_rows = len(dataset) if isinstance(dataset, Dataset) else None
    if num_rows == 0:
        raise ValueError(f"The split {split!r} has no rows; there is nothing to reinforce.")
    kept = [name for name in features if embed_images or name != image_column]
    config = ReinforcementConfig(
        policy=policy,
        num_samples=num_samples,
        top_k=top_k,
        num_classes=teacher.num_classes,
        class_names=tuple(names) if names else teacher.class_names,
        seed=seed,
        teachers=tuple(teacher.describe()),
        temperature=teacher.temperature,
        class_map=teacher.class_map,
        source=SourceRecord(
            source_name, source_config, source_revision, split, num_rows, image_column, label_column, tuple(kept)
        ),
        pixels=PixelContract(images.PIXEL_BACKEND, library_versions(), ()),
        shard_size=-(-shard_size // PARTNER_BLOCK) * PARTNER_BLOCK,
        shuffled=bool(policy.mix_operations) and num_rows is not None,
        embed_images=embed_images,
    )
    run = _Run(dataset, reinforcer, config, folder, existing)
    run.check()
    with state.main_process_first():
        if state.is_main_process and existing is None:
            run.start()
    run.write_shards(state.process_index, state.num_processes)
    state.wait_for_everyone()
    if state.is_main_process:
        run.finish()
    state.wait_for_everyone()
    return folder


class _Run:
    """One call of `reinforce`: the shards that are there, those that are missing, and the files beside them."""

    def __init__(
        self,
        dataset: AnyDataset,
        reinforcer: Reinforcer,
        config: ReinforcementConfig,
        folder: Path,
        existing: ReinforcementConfig | None,
    ) -> None:
        self.dataset, self.reinforcer, self.config, self.folder, self.existing = (
            dataset,
            reinforcer,
            config,
            folder,
            existing,
        )
        self.existing_samples = config.num_samples if existing is None else existing.num_samples
        self.extending = self.existing_samples < config.num_samples
        # New reinforcements are collected here, so that the folder holds a complete data set at any time.
        self.staging = folder / f".num_samples-{config.num_samples}"
        num_rows = config.source.num_rows
        self.num_shards = None if num_rows is None else -(-num_rows // config.shard_size)
        shuffled = config.shuffled and num_rows is not None
        self.order: NDArray[np.int64] | None = shuffled_rows(config.seed, num_rows) if shuffled else None  # type: ignore[arg-type]

    def check(self) -> None:
        """Refuses a folder that holds something else."""
        if self.existing is None:
            return
        different = self.config.differences(self.existing)
        if different:
            raise ValueError(
                f"{self.folder} holds a reinforced data set that was made differently: {'; '.join(different)} "
                "(asked for, not what is there). Choose another output folder, or ask for the same."
            )
        if self.config.num_samples < self.existing_samples:
            raise ValueError(
                f"{self.folder} already has {self.existing_samples} reinforcements per image; num_samples can be "
                f"raised but not lowered to {self.config.num_samples}."
            )
        if self.extending and not self.existing.complete:
            raise ValueError(
                f"{self.folder} is not complete yet; finish it with num_samples={self.existing_samples} before "
                "adding reinforcements."
            )

    def start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        replace(self.config, pixels=replace(self.config.pixels, reference_views=self._reference_views())).save(
            self.folder
        )

    def _reference_views(self) -> tuple[Any, ...]:
        head = next(iter(self.dataset.with_format("arrow").iter(batch_size=PARTNER_BLOCK)))
        column = head.column(self.config.source.image_column)
        views = []
        for row in range(len(column)):
            item = column[row].as_py()
            try:
                image = images.decode(images.read_encoded(item))
            except images.ImageError:
                continue  # it is reported, or skipped, when its block is reinforced
            views.append(reference_view(self.config.policy, self.config.seed, row, 0, image))
            if len(views) == _REFERENCE_VIEWS:
                break
        return tuple(views)

    def write_shards(self, rank: int, world: int) -> None:
        folder = self.staging if self.extending else self.folder
        folder.mkdir(exist_ok=True)
        if self.extending:
            self.reinforcer.first_sample = self.existing_samples
            self.reinforcer.on_error = "skip"  # what could not be decoded then is missing now as well
        done = 0
        with self._progress(rank) as progress:
            for index, start, shard in self._shards(rank, world):
                name = shard_name(self.config.source.split, index, self.num_shards)
                rows = len(shard)
                if not (folder / name).exists() and not self._extended(name):
                    try:
                        self._write_shard(folder / name, start, shard, progress)
                    except KeyboardInterrupt:
                        logger.warning(
                            "Interrupted. %d shards of this process are finished and kept in %s; run the same command "
                            "again to continue.",
                            done,
                            folder,
                        )
                        raise
                else:
                    progress.update(rows * (self.config.num_samples - self.reinforcer.first_sample))
                done += 1

    def _extended(self, name: str) -> bool:
        """Whether an interrupted `finish` has already moved this shard into place."""
        path = self.folder / name
        if not self.extending or not path.exists():
            return False
        kind = pq.read_schema(path).field(schema.TEACHER_LOGITS).type
        return bool(kind.list_size == self.config.num_samples)

    def _shards(self, rank: int, world: int) -> Iterator[tuple[int, int, Dataset]]:
        """This process's shards: index, position of the first row, and the rows."""
        size = self.config.shard_size
        if isinstance(self.dataset, Dataset):
            rows = len(self.dataset)
            for index in range(rank, self.num_shards or 0, world):
                start, stop = index * size, min((index + 1) * size, rows)
                chosen = range(start, stop) if self.order is None else self.order[start:stop]
                yield index, start, self.dataset.select(chosen)
            return
        info = datasets.DatasetInfo(features=self.dataset.features)
        blocks: list[pa.Table] = []
        index = 0
        for block in self.dataset.with_format("arrow").iter(batch_size=PARTNER_BLOCK):
            blocks.append(block)
            if len(blocks) * PARTNER_BLOCK == size:
                if index % world == rank:
                    yield index, index * size, Dataset(pa.concat_tables(blocks), info)
                blocks, index = [], index + 1
        if blocks and index % world == rank:
            yield index, index * size, Dataset(pa.concat_tables(blocks), info)

    def _write_shard(self, path: Path, start: int, shard: Dataset, progress: Any) -> None:
        already = len(self.reinforcer.skipped)
        features = self.reinforcer.features(shard.features)
        mapped = (
            shard.to_iterable_dataset()
            .with_format("arrow")
            .map(
                self.reinforcer,
                batched=True,
                batch_size=PARTNER_BLOCK,
                with_indices=True,
                fn_kwargs={
                    "offset": start,
                    "order": None if self.order is None else self.order[start : start + len(shard)],
                },
                remove_columns=[name for name in shard.column_names if name not in features],
                features=features,
            )
        )
        tables = []
        for table in mapped.iter(batch_size=PARTNER_BLOCK):
            tables.append(table)
            progress.update(len(table) * (self.config.num_samples - self.reinforcer.first_sample))
        whole = pa.concat_tables(tables) if tables else features.arrow_schema.empty_table()
        skipped = self.reinforcer.skipped[already:]
        if self.extending:
            whole = append_reinforcements(pq.read_table(self.folder / path.name), whole)
            features = schema.reinforced_features(
                {name: features[name] for name in self.config.source.columns},
                self.config.policy.feature,
                self.config.num_samples,
                self.config.top_k,
                self.config.num_classes,
            )
        arrow = features.arrow_schema
        metadata = {**(arrow.metadata or {}), _SKIPPED: json.dumps(skipped).encode()}
        write_shard(path, whole.cast(arrow).replace_schema_metadata(metadata))

    def _progress(self, rank: int) -> Any:
        rows = self.config.source.num_rows
        added = self.config.num_samples - (self.existing_samples if self.extending else 0)
        return tqdm(
            total=None if rows is None else rows * added,
            unit="view",
            unit_scale=True,
            desc=f"Reinforcing ({self.config.policy.name})",
            disable=rank != 0,
        )

    def finish(self) -> None:
        """Moves added reinforcements into place, and writes what describes the whole."""
        if self.extending:
            for path in sorted(self.staging.glob("*.parquet")):
                path.replace(self.folder / path.name)
            self.staging.rmdir()
        shards = sorted(self.folder.glob(f"{self.config.source.split}-*.parquet"))
        skipped = [
            SkippedImage(*item)
            for shard in shards
            for item in json.loads((pq.read_schema(shard).metadata or {}).get(_SKIPPED, b"[]"))
        ]
        pixels = ReinforcementConfig.load(self.folder).pixels
        config = replace(self.config, pixels=pixels, complete=True, skipped=tuple(skipped))
        config.save(self.folder)
        if skipped:
            logger.warning(
                "%d images could not be used and are missing; %s lists them.", len(skipped), self.folder / CONFIG_FILE
            )
        write_preview(self.folder, config, shards, self.dataset)
        write_dataset_card(self.folder.parent)
        logger.info('Done: load_dataset("%s", "%s").', self.folder.parent, config.policy.name)
