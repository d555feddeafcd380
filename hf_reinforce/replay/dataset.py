"""Replaying a reinforced dataset: images joined with stored augmentations and targets, ready for a student."""

import logging
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray
from torch import Tensor

from hf_reinforce import images, schema
from hf_reinforce.randomness import PARTNER_BLOCK, hash_uniform, select_slots, shuffled_rows
from hf_reinforce.replay.joining import positions_by_hash, recorded_place, reinforced_rows
from hf_reinforce.replay.views import AugmentedDataset, BatchViews, Blocks, mixed_views, partner_places
from hf_reinforce.sources.image_source import ImageSource
from hf_reinforce.sources.labels import NO_LABEL, check_labels, column_values
from hf_reinforce.store.config import CONFIG_FILE, ReinforcementConfig
from hf_reinforce.store.pixel_contract import check_reference, view_checksum
from hf_reinforce.store.rows import ParquetRows, column_reader

logger = logging.getLogger(__name__)

_PLAIN_STREAM = 1


class WrongImageError(ValueError):
    """An image that is not the one the reinforcements were made from."""


class ReinforcedDataset(AugmentedDataset):
    """A reinforced dataset joined with its images.

    Every read checks that the image is the one the reinforcements were made from, and the first one that the pixels
    come out as they did then. Where an image is another one, all are found by their hashes, once; those of streamed
    rows are not.

    Args:
        reinforced: the rows, as `load_dataset(folder, config)` returns them; may be filtered or selected. Rows of
            Parquet files that stay where they are, in the order of the shards, make a stream.
        config: contents of `reinforcement.json`.
        source: the dataset, or the rows of Parquet files, with the images; None when they are embedded.
        image_size: side of the views in pixels, default the policy's.
        seed: training seed, decides which reinforcement is used when.
        selection: `"cycle"` uses every reinforcement once before any twice; `"random"` draws as the paper does.
        plain_fraction: share of accesses that use a fresh augmentation and the hard label instead (the paper's 0.01).
        accept_pixel_mismatch: go on although the reference views come out differently.
        source_rows: row of the source that holds each reinforced row's image, see `joining.source_positions`; default
            the recorded ones. Rows with -1, whose image is missing, are left out.

    Raises:
        PixelMismatchError: if a reference view has other pixels here.
        WrongImageError: if an image is nowhere, when the reference views are checked or when it is read.
        ValueError: if the images are missing, or `plain_fraction` is used without labels.

    Samples are those of `AugmentedDataset` with the entries of each target, see `Target.read`.

    Attributes:
        targets: what is stored of the teachers' answers.

    Example:
        from torch.utils.data import DataLoader
        from hf_reinforce import load_reinforced

        dataset = load_reinforced("outputs/cifar100-plus", "small_randaug")
        loader = DataLoader(dataset, batch_size=4, collate_fn=dataset.collate)
        batch = next(iter(loader))
        params = dataset.params(position=0, slot=1)  # of one stored augmentation
    """

    def __init__(
        self,
        reinforced: Dataset | ParquetRows,
        config: ReinforcementConfig,
        source: Dataset | ParquetRows | None = None,
        image_size: int | None = None,
        seed: int = 0,
        selection: str = "cycle",
        plain_fraction: float = 0.0,
        accept_pixel_mismatch: bool = False,
        source_rows: NDArray[np.int64] | None = None,
    ) -> None:
        label, count = config.source.label_column, config.num_samples
        if source is None and not config.embed_images:
            raise ValueError(
                f"The images of this dataset are not stored with it; pass the source: {recorded_place(config)}."
            )
        if not 0 <= plain_fraction <= 1 or (plain_fraction > 0 and label is None):
            raise ValueError(f"plain_fraction must lie in [0, 1] and needs labels; it is {plain_fraction}.")
        stored = reinforced.features[schema.AUGMENTATION_PARAMS].length
        if stored != count:
            raise ValueError(
                f"The shards hold {stored} reinforcements of each image, but {CONFIG_FILE} says {count}: adding some "
                f"was interrupted. Run that command again, with num_samples={stored}, or load an earlier revision."
            )
        self._incomplete = source_rows is not None and bool((source_rows < 0).any())
        if source_rows is not None and self._incomplete:
            present = np.flatnonzero(source_rows >= 0)
            reinforced, source_rows = reinforced.select(present.tolist()), source_rows[present]
        holder = reinforced if config.embed_images else source
        images_of = ImageSource(holder, config.source.image_column, label, config.class_names)
        super().__init__(images_of, config.policy, image_size, seed)
        self.config, self.selection, self.plain_fraction = config, selection, plain_fraction
        self.targets = config.targets
        self._rows = reinforced_rows(reinforced)
        self._by_row = np.argsort(self._rows, kind="stable")  # a dictionary would cost a hundred bytes a row
        self._source_rows = self._rows if source_rows is None else source_rows
        self._joined = None  # rows and source, where images can be looked for
        if config.embed_images:
            self._source_rows = np.arange(len(self._rows))
        elif isinstance(reinforced, Dataset) and isinstance(source, Dataset):
            self._joined = reinforced, source
            # What one forked worker finds, the others and those of later epochs have.
            shared = torch.from_numpy(self._source_rows.copy()).share_memory_()  # type: ignore[no-untyped-call]
            self._source_rows = shared.numpy()
        self._hashes = column_reader(reinforced, schema.IMAGE_HASH)
        self._params = column_reader(reinforced, schema.AUGMENTATION_PARAMS, count)
        # Read for every row at every epoch, so without the rest of the record.
        if config.policy.mix_operations:
            self._partner_rows = column_reader(reinforced, schema.AUGMENTATION_PARAMS, count, schema.PARTNER_ROW)
        self._answers = [
            column_reader(reinforced, target.column, count if target.per == "view" else None)
            for target in self.targets
        ]
        # The label was stored beside the hash, so it is the image's wherever the image is found again.
        self._labels = None if label is None else column_reader(reinforced, label)
        if plain_fraction and label:
            for target in self.targets:
                target.of_label(0)  # refuses a target that no label can replace
            check_labels(column_values(reinforced, label), config.num_classes)
        select_slots(selection, seed, self._rows[:0], self._rows[:0], count)  # refuses an unknown name
        if isinstance(reinforced, ParquetRows):
            self._set_blocks(reinforced, holder.largest_group if isinstance(holder, ParquetRows) else 1)
        for reference in () if accept_pixel_mismatch else config.pixels.reference_views:
            position = self.position(reference.row)
            if position is not None:  # a selection may not hold it
                view = self.policy.render(self.encoded(position), self.params(position, reference.slot))
                check_reference(config.pixels, reference, view_checksum(view))

    def __len__(self) -> int:
        return len(self._rows)

    def row(self, position: int) -> int:
        """The row of the source, when it was reinforced."""
        return int(self._rows[position])

    def position(self, row: int) -> int | None:
        """Where a row of the source is in this dataset; None if it is not."""
        found = int(self._positions(np.array([row]))[0])
        return None if found < 0 else found

    def _positions(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """The position of each row of the source, -1 where it is missing."""
        if not len(self):
            return np.full(len(rows), -1)
        places = np.minimum(np.searchsorted(self._rows, rows, sorter=self._by_row), len(self) - 1)
        found = self._by_row[places]
        return np.where(self._rows[found] == rows, found, -1)

    def encoded(self, position: int) -> images.Encoded:
        where, expected = int(self._source_rows[position]), self._hashes(position)
        if where < len(self.source):
            encoded = self.source.encoded(where)
            if images.image_hash(encoded) == expected:
                return encoded
        if self._joined is not None and self._source_rows[position] == where:
            logger.warning(
                "The image of row %d is not in its place, so the source was reordered or changed: finding all images "
                "by their hashes.",
                self.row(position),
            )
            found = positions_by_hash(*self._joined, self.config)
            self._source_rows[found >= 0] = found[found >= 0]
        if self._source_rows[position] != where:  # it was found, here or by another worker
            return self.encoded(position)
        remedy = ""
        if self._joined is not None:
            remedy = ", or train on the images that are there with allow_missing=True (--allow_missing True)"
        elif not self.config.embed_images:
            remedy = ", or load it without streaming=True (--streaming True), which finds images by their hashes"
        raise WrongImageError(
            f"Row {self.row(position)} of the source, which has {len(self.source)} rows, is another image than the "
            f"one that was reinforced (hash {expected}). Use {recorded_place(self.config)}{remedy}."
        )

    def params(self, position: int, slot: int) -> dict[str, Any]:
        """Stored parameters of one reinforcement."""
        stored: dict[str, Any] = self._params(position, slot)
        return stored

    def target(self, position: int, slot: int) -> dict[str, Any]:
        """Stored targets of one reinforcement, as entries of its sample; see `Target.read`."""
        found: dict[str, Any] = {}
        for target, reader in zip(self.targets, self._answers, strict=True):
            found |= target.read(reader(position, slot))
        return found

    def slots(self, epochs: NDArray[np.int64], positions: NDArray[np.int64]) -> NDArray[np.int64]:
        # Partners share a slot, so a policy that mixes moves the whole dataset to the same slot in each epoch.
        groups = positions * 0 if self.policy.mix_operations else self._rows[positions]
        return select_slots(self.selection, self.seed, epochs, groups, self.config.num_samples)

    def _set_blocks(self, reinforced: ParquetRows, largest_group: int) -> None:
        """Finds the rows that were reinforced together, and the shards whose images are in one row group."""
        self._drawn = self.config.source.num_rows or int(self._rows.max()) + 1  # rows that partners were drawn among
        self._places = self._rows
        if self.config.shuffled:
            self._places = np.argsort(shuffled_rows(self.config.seed, self._drawn))[self._rows]
        files, blocks = reinforced.file_of(np.arange(len(self))), self._places // PARTNER_BLOCK
        starts = np.flatnonzero((np.diff(files, prepend=-1) != 0) | (np.diff(blocks, prepend=-1) != 0))
        shards_in_run = max(1, -(-largest_group // self.config.shard_size))
        self.blocks = Blocks(np.append(starts, len(self)), files[starts] // shards_in_run)
        for position in range(int(self.blocks.starts[1])) if self.policy.mix_operations else ():
            partners = [self._partner_rows(position, slot) for slot in range(self.config.num_samples)]
            found = self._positions(np.array([row for row in partners if row is not None], dtype=np.int64))
            if (blocks[found[found >= 0]] != blocks[position]).any():
                raise ValueError(
                    "The images of this dataset are mixed with others from anywhere in it, as in those that the "
                    "original implementation published; load it without streaming=True (--streaming True)."
                )

    def partners(self, epoch: int) -> NDArray[np.int64]:
        positions = np.arange(len(self))
        if not self.policy.mix_operations:
            return np.full(len(self), -1)
        slots = self.slots(np.full(len(self), epoch), positions)
        if self.blocks is not None:  # as they were drawn, whether mixed or not: no row is read for it
            position_of = np.full(self._drawn, -1)
            position_of[self._places] = positions
            drawn: NDArray[np.int64] = position_of[partner_places(self.config.seed, int(slots[0]), self._drawn)]
            return drawn[self._places]
        rows = (self._partner_rows(p, s) for p, s in zip(positions.tolist(), slots.tolist(), strict=True))
        found = self._positions(np.array([-1 if row is None else row for row in rows]))
        # The partner of a mixed image may itself be used unmixed; it is emitted beside it all the same.
        mixed = np.flatnonzero(found >= 0)
        back = found.copy()
        back[found[mixed]] = np.where(found[found[mixed]] < 0, mixed, found[found[mixed]])
        return back

    def _sample(self, batch: BatchViews, epoch: int, position: int, slot: int) -> dict[str, Any]:
        if self.plain_fraction:
            draw = int(hash_uniform(self.seed, _PLAIN_STREAM, epoch, self.row(position))[0])
            if draw < self.plain_fraction * 2.0**64:
                return self._plain_sample(batch, epoch, position)
        if self._incomplete and self.policy.mix_operations:
            position, slot = self._replayable(position, slot)
        return self._stored(batch, position, slot)

    def _stored(self, batch: BatchViews, position: int, slot: int) -> dict[str, Any]:
        return {**super()._sample(batch, 0, position, slot), **self.target(position, slot)}

    def _replayable(self, position: int, slot: int) -> tuple[int, int]:
        """The reinforcement itself; if the image it is mixed with is missing, the next one that can be replayed."""
        count = self.config.num_samples
        for step in range(len(self) * count):
            where, which = (position + step // count) % len(self), (slot + step) % count
            partner = self._partner_rows(where, which)
            if partner is None or self.position(partner) is not None:
                return where, which
        return position, slot

    def _plain_sample(self, batch: BatchViews, epoch: int, position: int) -> dict[str, Any]:
        seed = int(hash_uniform(self.seed, _PLAIN_STREAM)[0])
        params = self.policy.sample(seed, self.row(position), epoch, *self.size(position))
        params |= {operation.field: None for operation in self.policy.mix_operations}
        sample = {"pixel_values": batch.pixels(position, params), **self._label(position)}
        if self.policy.mix_operations:
            sample["mix_params"] = params
        for target in self.targets:
            sample |= target.of_label(sample["labels"])
        return sample

    def _label(self, position: int) -> dict[str, Any]:
        label = None if self._labels is None else self._labels(position)
        return {} if self._labels is None else {"labels": NO_LABEL if label is None else int(label)}

    def _partner(self, position: int, slot: int, params: dict[str, Any]) -> tuple[int, dict[str, Any] | None]:
        row = params[schema.PARTNER_ROW]
        partner = self.position(row)
        if partner is None:
            raise ValueError(
                f"Row {self.row(position)} is mixed with row {row}, which is missing from this selection; train on "
                "the whole dataset, or select pairs."
            )
        return partner, params[schema.PARTNER_PARAMS]

    def image_source(self) -> ImageSource:
        return self.source.select(self._source_rows.tolist())

    def view(self, position: int, slot: int) -> Tensor:
        """The view that the teacher saw, mixed where the reinforcement says so: float [3, S, S], values 0 to 255."""
        return mixed_views(self.policy, self.collate([self._stored(BatchViews(self), position, slot)]))[0]
