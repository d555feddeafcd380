"""Replaying a reinforced dataset: images joined with stored augmentations and targets, ready for a student."""

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray
from torch import Tensor

from hf_reinforce import images, schema
from hf_reinforce.randomness import PARTNER_BLOCK, hash_uniform, partner_positions, select_slots, shuffled_rows
from hf_reinforce.replay.views import AugmentedDataset, BatchViews, Blocks, View
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
    come out as they did then.

    Args:
        reinforced: the rows, as `load_dataset(folder, config)` returns them; may be filtered or selected. Rows of
            Parquet files that stay where they are, in the order of the shards, make a stream: the same samples, in an
            order that reads them forward.
        config: contents of `reinforcement.json`.
        source: the dataset, or the rows of Parquet files, with the images; None when they are embedded.
        image_size: side of the views in pixels, default the policy's.
        seed: training seed, decides which reinforcement is used when.
        selection: `"cycle"` uses every reinforcement once before any twice; `"random"` draws as the paper does.
        plain_fraction: share of accesses that use a fresh augmentation and the hard label instead (the paper's 0.01).
        accept_pixel_mismatch: go on although the reference views come out differently.
        source_rows: row of the source that holds each reinforced row's image, see `joining.source_positions`; default
            the recorded ones. Rows with -1, whose image is missing, are left out.
        find_source_rows: finds `source_rows` anew, see `joining.positions_by_hash`; called if an image is another one,
            once by each worker that notices it before others have. Default: that is an error.

    Raises:
        PixelMismatchError: if a reference view has other pixels here.
        WrongImageError: if an image is another one, when the reference views are checked or when it is read.
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
        find_source_rows: Callable[[], NDArray[np.int64]] | None = None,
    ) -> None:
        record = config.source
        if source is None and not config.embed_images:
            raise ValueError(
                f"The images of this dataset are not stored with it; pass the source: {record.name or 'a Dataset'}, "
                f"split {record.split!r}."
            )
        if not 0 <= plain_fraction <= 1 or (plain_fraction > 0 and record.label_column is None):
            raise ValueError(f"plain_fraction must lie in [0, 1] and needs labels; it is {plain_fraction}.")
        stored = reinforced.features[schema.AUGMENTATION_PARAMS].length
        if stored != config.num_samples:
            raise ValueError(
                f"The shards hold {stored} reinforcements of each image, but {CONFIG_FILE} says {config.num_samples}: "
                f"reinforcements were being added. Run that command again, with num_samples={stored}, or load an "
                "earlier revision."
            )
        present = None if source_rows is None else np.flatnonzero(source_rows >= 0)
        self._incomplete = present is not None and len(present) < len(reinforced)
        if present is not None and self._incomplete:
            reinforced = reinforced.select(present.tolist())
        holder = reinforced if config.embed_images else source
        images_of = ImageSource(holder, record.image_column, record.label_column, config.class_names)
        super().__init__(images_of, config.policy, image_size, seed)
        self.config, self.selection, self.plain_fraction = config, selection, plain_fraction
        self.targets = config.targets
        self._rows = column_values(reinforced, schema.SOURCE_ROW).to_numpy().astype(np.int64)
        if config.embed_images:
            self._source_rows = np.arange(len(self._rows))
        else:
            self._source_rows = self._rows if source_rows is None else source_rows[present]
        self._present, self._find_source_rows = present, find_source_rows
        self._searched = False
        if find_source_rows is not None:  # what one forked worker finds, the others and those of later epochs have
            shared = torch.from_numpy(self._source_rows).share_memory_()  # type: ignore[no-untyped-call]
            self._source_rows = shared.numpy()
        self._by_row = np.argsort(self._rows, kind="stable")  # a dictionary would cost a hundred bytes a row
        self._sorted_rows = self._rows[self._by_row]
        self._hashes = column_reader(reinforced, schema.IMAGE_HASH)
        self._params = column_reader(reinforced, schema.AUGMENTATION_PARAMS, config.num_samples)
        if config.policy.mix_operations:  # read for every row at every epoch, so without the rest of the record
            self._partner_rows = column_reader(
                reinforced, schema.AUGMENTATION_PARAMS, config.num_samples, schema.PARTNER_ROW
            )
        self._answers = [
            column_reader(reinforced, target.column, config.num_samples if target.per == "view" else None)
            for target in self.targets
        ]
        # The label was stored beside the hash, so it is the image's wherever the image is found again.
        self._labels = None if record.label_column is None else column_reader(reinforced, record.label_column)
        if plain_fraction and record.label_column:
            for target in self.targets:
                target.of_label(0)  # refuses a target that no label can replace
            check_labels(column_values(reinforced, record.label_column), config.num_classes)
        select_slots(selection, seed, self._rows[:0], self._rows[:0], config.num_samples)  # refuses an unknown name
        self._remote_images = isinstance(holder, ParquetRows)
        if isinstance(reinforced, ParquetRows):
            self._set_blocks(reinforced, holder.largest_group if isinstance(holder, ParquetRows) else 1)
        if not accept_pixel_mismatch:
            self._check_reference_views()

    def __len__(self) -> int:
        return len(self._rows)

    def _check_reference_views(self) -> None:
        for reference in self.config.pixels.reference_views:
            position = self.position(reference.row)
            if position is not None:  # a selection may not hold it
                view = self.policy.render(self.encoded(position), self.params(position, reference.slot))
                check_reference(self.config.pixels, reference, view_checksum(view))

    def row(self, position: int) -> int:
        """The row of the source, when it was reinforced."""
        return int(self._rows[position])

    def position(self, row: int) -> int | None:
        """Where a row of the source is in this dataset; None if it is not."""
        found = int(self._find(np.array([row]))[0])
        return None if found < 0 else found

    def _find(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """The position of each row, -1 where it is missing."""
        if not len(self._rows):
            return np.full(len(rows), -1)
        places = np.minimum(np.searchsorted(self._sorted_rows, rows), len(self._rows) - 1)
        return np.where(self._sorted_rows[places] == rows, self._by_row[places], -1)

    def encoded(self, position: int) -> images.Encoded:
        where, expected = int(self._source_rows[position]), self._hashes(position)
        found = None
        if where < len(self.source):
            encoded = self.source.encoded(where)
            found = images.image_hash(encoded)
            if found == expected:
                return encoded
        if self._source_rows[position] == where:
            self._search(int(self._rows[position]))
        if self._source_rows[position] != where:  # it was found, here or by another worker
            return self.encoded(position)
        raise WrongImageError(self._wrong_image(int(self._rows[position]), expected, found))

    def _search(self, row: int) -> None:
        """Finds all images by their hashes, if that was not done before: a few rows were compared until now."""
        if self._find_source_rows is not None and not self._searched:
            logger.warning(
                "The image of row %d is not in its place, so the source was reordered or changed: finding all images "
                "by their hashes.",
                row,
            )
            found = self._find_source_rows()
            found = found if self._present is None else found[self._present]
            self._source_rows[found >= 0] = found[found >= 0]
            self._searched = True

    def _wrong_image(self, row: int, expected: str, found: str | None) -> str:
        record = self.config.source
        place = f"{record.name or 'the same dataset'}, split {record.split!r}"
        place += f", revision {record.revision!r}" if record.revision else ", in its original order"
        message = (
            f"The source has {len(self.source)} rows, but row {row} was reinforced. Use {place}"
            if found is None
            else f"Row {row} of the source holds another image than the one that was reinforced (hash {found}, "
            f"expected {expected}). Use {place}"
        )
        if self._remote_images:
            return (
                f"{message}. Or load it without streaming=True (--streaming True), which finds the images of a "
                "reordered or filtered source by their hashes."
            )
        if self._find_source_rows is None:
            return f"{message}."
        return f"{message}, or train on the images that are there with allow_missing=True (--allow_missing True)."

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
        if not len(self):
            return
        self._run_places = self._rows
        if self.config.shuffled:
            order = shuffled_rows(self.config.seed, self.config.source.num_rows or 0)
            self._run_places = np.argsort(order)[self._rows]
        files, blocks = reinforced.file_of(np.arange(len(self))), self._run_places // PARTNER_BLOCK
        starts = np.flatnonzero((np.diff(files, prepend=-1) != 0) | (np.diff(blocks, prepend=-1) != 0))
        shards_in_run = max(1, -(-largest_group // self.config.shard_size))
        self.blocks = Blocks(np.append(starts, len(self)), files[starts] // shards_in_run)
        for position in range(int(self.blocks.starts[1])) if self.policy.mix_operations else ():
            for slot in range(self.config.num_samples):
                partner = self._partner_rows(position, slot)
                found = None if partner is None else self.position(partner)
                if found is not None and blocks[found] != blocks[position]:
                    raise ValueError(
                        "The images of this dataset are mixed with others from anywhere in it, as in those that the "
                        "original implementation published, so they cannot be streamed. Load it without "
                        "streaming=True (--streaming True)."
                    )

    def _partners_of_blocks(self, epoch: int) -> NDArray[np.int64]:
        """As `partners`, of all rows that are mixed with each other at some strength; no row is read for it."""
        slot, end = int(self.slots(np.array([epoch]), np.array([0]))[0]), int(self._run_places.max()) + 1
        end = self.config.source.num_rows or end
        pairing = [
            start + partner_positions(self.config.seed, start // PARTNER_BLOCK, slot, min(PARTNER_BLOCK, end - start))
            for start in range(0, end, PARTNER_BLOCK)
        ]
        position_of = np.full(end, -1)
        position_of[self._run_places] = np.arange(len(self))
        found: NDArray[np.int64] = position_of[np.concatenate(pairing)[self._run_places]]
        return found

    def partners(self, epoch: int) -> NDArray[np.int64]:
        if not self.policy.mix_operations:
            return np.full(len(self), -1)
        if self.blocks is not None:
            return self._partners_of_blocks(epoch)
        positions = np.arange(len(self))
        slots = self.slots(np.full(len(self), epoch), positions)
        rows = (self._partner_rows(p, s) for p, s in zip(positions.tolist(), slots.tolist(), strict=True))
        found = self._find(np.array([-1 if row is None else row for row in rows]))
        # The partner of a mixed image may itself be used unmixed; it is emitted beside it all the same.
        mixed = np.flatnonzero(found >= 0)
        back = found.copy()
        back[found[mixed]] = np.where(found[found[mixed]] < 0, mixed, found[found[mixed]])
        return back

    def _sample(self, batch: BatchViews, epoch: int, position: int, slot: int) -> dict[str, Any]:
        if self.plain_fraction and self._is_plain(epoch, position):
            return self._plain_sample(batch, epoch, position)
        if self._incomplete:
            position, slot = self._replayable(position, slot)
        return {**super()._sample(batch, epoch, position, slot), **self.target(position, slot)}

    def _replayable(self, position: int, slot: int) -> tuple[int, int]:
        """The reinforcement itself; if the image it is mixed with is missing, the next one that can be replayed."""
        count = self.config.num_samples
        for step in range(len(self) * count if self.policy.mix_operations else 0):
            where, which = (position + step // count) % len(self), (slot + step) % count
            partner = self.params(where, which)[schema.PARTNER_ROW]
            if partner is None or self.position(partner) is not None:
                return where, which
        return position, slot

    def _is_plain(self, epoch: int, position: int) -> bool:
        draw = int(hash_uniform(self.seed, _PLAIN_STREAM, epoch, int(self._rows[position]))[0])
        return draw < self.plain_fraction * 2.0**64

    def _plain_sample(self, batch: BatchViews, epoch: int, position: int) -> dict[str, Any]:
        seed = int(hash_uniform(self.seed, _PLAIN_STREAM)[0])
        params = self.policy.sample(seed, int(self._rows[position]), epoch, *self.size(position))
        params |= {operation.field: None for operation in self.policy.mix_operations}
        view = batch.view(position, -1, params)
        label = self._label(position)
        sample: dict[str, Any] = {"pixel_values": view.pixels, **label}
        if self.policy.mix_operations:
            sample["mix_params"] = params
        for target in self.targets:
            sample |= target.of_label(label["labels"])
        return sample

    def collate(self, samples: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Batches samples as `AugmentedDataset.collate`, with the targets of the batch; see `Target.collate`."""
        batch = AugmentedDataset.collate(self, samples)
        for target in self.targets:
            batch |= target.collate(samples)
        return batch

    def _label(self, position: int) -> dict[str, int]:
        label = None if self._labels is None else self._labels(position)
        return {} if self._labels is None else {"labels": NO_LABEL if label is None else int(label)}

    def _partner(self, batch: BatchViews, view: View) -> View | None:
        row = view.params[schema.PARTNER_ROW]
        if row is None:
            return None
        position = self.position(row)
        if position is None:
            raise ValueError(
                f"Row {self._rows[view.position]} is mixed with row {row}, which is missing from this selection; "
                "train on the whole dataset, or select pairs."
            )
        return batch.view(position, view.slot, view.params[schema.PARTNER_PARAMS])

    def image_source(self) -> "ImageSource":
        """The images of this dataset, in its order, for fresh augmentations of the same rows."""
        return self.source.select(self._source_rows.tolist())

    def view(self, position: int, slot: int) -> Tensor:
        """The view that the teacher saw, mixed where the reinforcement says so: float [3, S, S], values 0 to 255."""
        batch = BatchViews(self)
        sample = AugmentedDataset._sample(self, batch, 0, position, slot)
        pixels: Tensor = sample["pixel_values"].float()[None]
        if not self.policy.mix_operations:
            return pixels[0]
        partner = sample.get("partner_pixel_values", sample["pixel_values"]).float()[None]
        return self.policy.mix(pixels, partner, self.policy.collate_mix([sample["mix_params"]]))[0]
