"""One run of `reinforce`: which shards are there, which are missing, and the files beside them."""

import json
import logging
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset
from huggingface_hub.errors import HTTPError
from numpy.typing import NDArray
from tqdm.auto import tqdm

from hf_reinforce import images, schema
from hf_reinforce.cards.dataset_card import write_dataset_card
from hf_reinforce.cards.preview import write_preview
from hf_reinforce.generation.reinforcer import Reinforcer
from hf_reinforce.randomness import PARTNER_BLOCK, shuffled_rows
from hf_reinforce.sources.files import embed_files
from hf_reinforce.sources.image_source import AnyDataset
from hf_reinforce.stopping import StopSignals
from hf_reinforce.store.config import ReferenceView, ReinforcementConfig, SkippedImage
from hf_reinforce.store.parquet import append_reinforcements, explained_writes, file_checksum, shard_name, write_shard
from hf_reinforce.store.pixel_contract import check_reference, reference_view
from hf_reinforce.store.shards import num_samples, open_shard, shard_files

logger = logging.getLogger(__name__)

_SKIPPED = b"hf_reinforce.skipped"
_REFERENCE_VIEWS = 4
_BLOCKS = 8  # that the reinforcer sees at once, so that the teacher does not wait at the start of each


def _num_samples(shard: Path) -> int:
    with open_shard(shard) as file:
        return num_samples(file)


class Run:
    """One call of `reinforce`: the shards that are there, those that are missing, and the files beside them."""

    def __init__(
        self,
        dataset: AnyDataset,
        reinforcer: Reinforcer,
        config: ReinforcementConfig,
        folder: Path,
        existing: ReinforcementConfig | None,
    ) -> None:
        self.dataset, self.reinforcer, self.config = dataset, reinforcer, config
        self.folder, self.existing, self.on_error = folder, existing, reinforcer.on_error
        self.recorded = {} if existing is None else existing.checksums
        self.existing_samples = config.num_samples if existing is None else existing.num_samples
        self.extending = self.existing_samples < config.num_samples
        # Checksums of this run's shards, and new reinforcements, so that the folder stays usable until all are there.
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
        # What is added must come out as what is there did.
        for stored, view in zip(self.existing.pixels.reference_views, self._reference_views(), strict=False):
            check_reference(self.existing.pixels, stored, view.checksum, "choose another output folder")
        if self.config.num_samples < self.existing_samples:
            raise ValueError(
                f"{self.folder} already has {self.existing_samples} reinforcements per image; num_samples can be "
                f"raised but not lowered to {self.config.num_samples}."
            )
        others = any(path != self.staging for path in self.folder.glob(".num_samples-*"))
        unfinished = max(map(_num_samples, self._shard_files()), default=0) if others else 0
        if unfinished > self.existing_samples and unfinished != self.config.num_samples:
            raise ValueError(
                f"{self.folder} was interrupted while reinforcements were added; finish that first with "
                f"num_samples={unfinished}."
            )
        if self.extending and not self.existing.complete:
            raise ValueError(
                f"{self.folder} is not complete yet; finish it with num_samples={self.existing_samples} before "
                "adding reinforcements."
            )

    def _shard_files(self) -> list[Path]:
        return shard_files(self.folder, self.config.split)

    def start(self) -> None:
        """Makes the folder with its configuration; clears what a killed run has left half-written."""
        if self.existing is None:
            pixels = replace(self.config.pixels, reference_views=self._reference_views())
        with explained_writes(self.folder):
            self.staging.mkdir(parents=True, exist_ok=True)
            for path in (*self.folder.rglob(".*.tmp-*"), *self.folder.parent.glob(".README.tmp-*.md")):
                path.unlink()
            if self.existing is None:
                replace(self.config, pixels=pixels).save(self.folder)

    def _reference_views(self) -> tuple[ReferenceView, ...]:
        head = next(self._stream(), None)
        if head is None:
            raise ValueError(f"The split {self.config.source.split!r} has no rows; there is nothing to reinforce.")
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
        """Reinforces the shards of one process that are missing, or not what was written.

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
                        progress.update(len(shard) * self._added)
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

    @property
    def _added(self) -> int:
        """Reinforcements that this run adds to each image."""
        return self.config.num_samples - (self.existing_samples if self.extending else 0)

    def _samples_there(self, path: Path) -> int:
        """Reinforcements of each image in a shard; 0 if it is missing, or not what was written."""
        if not path.exists():
            return 0
        known = {self.recorded.get(path.name), self._record(path.name)} - {None}
        if known and file_checksum(path) not in known:
            logger.warning("%s is damaged; it is computed again.", path)
            return 0
        return _num_samples(path)

    def _checksum(self, shard: Path) -> str:
        known = {self.recorded.get(shard.name), self._record(shard.name)} - {None}
        # Of a shard that an earlier version wrote none is known; of one that came back from a backup there are two.
        return file_checksum(shard) if len(known) != 1 else str(known.pop())

    def _record(self, name: str) -> str | None:
        """The checksum of a shard that was written since the last `finish`."""
        path = self.staging / f"{name}.sha256"
        return path.read_text() if path.exists() else None

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
        for block in self._stream():
            blocks.append(block)
            if len(blocks) * PARTNER_BLOCK == size:
                if index % world == rank:
                    yield index, index * size, Dataset(pa.concat_tables(blocks), info)
                blocks, index = [], index + 1
        if blocks and index % world == rank:
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
        already = len(self.reinforcer.skipped)
        self.reinforcer.first_sample = there
        self.reinforcer.on_error = "skip" if there else self.on_error  # what could not be decoded then cannot be now
        features = self.reinforcer.features(shard.features)
        mapped = (
            shard.to_iterable_dataset()
            .with_format("arrow")
            .map(
                self.reinforcer,
                batched=True,
                batch_size=_BLOCKS * PARTNER_BLOCK,
                with_indices=True,
                fn_kwargs={
                    "offset": start,
                    "order": None if self.order is None else self.order[start : start + len(shard)],
                },
                remove_columns=[name for name in shard.column_names if name not in features],
                features=features,
            )
        )
        tables = list(mapped.iter(batch_size=_BLOCKS * PARTNER_BLOCK))
        whole = pa.concat_tables(tables) if tables else features.arrow_schema.empty_table()
        skipped = self.reinforcer.skipped[already:]
        progress.update(len(skipped) * self._added)
        if there:
            whole = append_reinforcements(pq.read_table(self.folder / path.name), whole, self.config.targets)
            features = schema.reinforced_features(
                {name: features[name] for name in self.config.source.columns},
                self.config.policy.feature,
                self.config.num_samples,
                {target.column: target.column_feature(self.config.num_samples) for target in self.config.targets},
            )
        else:
            whole = embed_files(whole, features, self.config.source.image_column)
        arrow = features.arrow_schema
        metadata = {**(arrow.metadata or {}), _SKIPPED: json.dumps(skipped).encode()}
        record = self.staging / f"{path.name}.sha256"
        write_shard(path, whole.cast(arrow).replace_schema_metadata(metadata), self.config.targets, record)

    def _progress(self, rank: int) -> Any:
        rows = self.config.source.num_rows
        return tqdm(
            total=None if rows is None else rows * self._added,
            unit="view",
            unit_scale=True,
            desc=f"Reinforcing ({self.config.policy.name})",
            disable=rank != 0,
        )

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
        skipped = [
            SkippedImage(*item)
            for shard in shards
            for item in json.loads((pq.read_schema(shard).metadata or {}).get(_SKIPPED, b"[]"))
        ]
        if not any(pq.read_metadata(shard).num_rows for shard in shards):
            raise ValueError(
                f"No image of the split {self.config.source.split!r} could be decoded; {skipped[0].error}"
            )
        pixels = ReinforcementConfig.load(self.folder).pixels
        found = {shard.name: self._checksum(shard) for shard in shards}
        config = replace(self.config, pixels=pixels, complete=True, skipped=tuple(skipped), checksums=found)
        with explained_writes(self.folder):
            config.save(self.folder)
        write_preview(self.folder, config, shards, self.dataset)
        write_dataset_card(self.folder.parent)
        with explained_writes(self.folder):
            shutil.rmtree(self.staging)
        return config
