"""Replaying a reinforced data set: images joined with stored augmentations and targets, ready for a student.

Item `epoch * len(dataset) + position` is the image at `position` as epoch `epoch` sees it, so the data set has no
state that workers could disagree about, and a resumed run sees what it would have seen.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import ClassLabel, Dataset, Features, Image
from numpy.typing import NDArray
from torch import Tensor

from hf_reinforce import images, schema
from hf_reinforce.config import ReinforcementConfig
from hf_reinforce.images import ImageError
from hf_reinforce.pixels import check_view
from hf_reinforce.policies import AugmentationPolicy
from hf_reinforce.randomness import PARTNER_BLOCK, hash_uniform, partner_positions, select_slots, shuffled_rows
from hf_reinforce.storage import ColumnReader
from hf_reinforce.targets import Targets, one_hot

_PLAIN_STREAM = 1


class WrongImageError(ValueError):
    """An image that is not the one the reinforcements were made from."""


def find_columns(
    features: Features, image_column: str | None = None, label_column: str | None = None
) -> tuple[str, str | None]:
    """Names of the image column and of the label column, None without labels.

    Args:
        features: of the data set.
        image_column: default: the only image column.
        label_column: default: the only ClassLabel column, else `label` where there is one; `""`: use no labels.

    Raises:
        ValueError: if there is no such column; the message lists those there are.
    """
    candidates = [name for name, feature in features.items() if isinstance(feature, Image)]
    if image_column is None and len(candidates) == 1:
        image_column = candidates[0]
    if image_column is None or image_column not in candidates:
        raise ValueError(
            f"The data set has no image column {image_column!r}; its columns are {list(features)}, "
            f"of which {candidates or 'none'} hold images. Name one with image_column."
        )
    if label_column and label_column not in features:
        raise ValueError(f"The data set has no label column {label_column!r}; its columns are {list(features)}.")
    if label_column is None:
        class_labels = [name for name, feature in features.items() if isinstance(feature, ClassLabel)]
        label_column = class_labels[0] if len(class_labels) == 1 else "label" if "label" in features else None
    return image_column, label_column or None


class ImageSource:
    """Encoded images and labels of a data set, read straight from memory-mapped Arrow.

    Args:
        dataset: a map-style data set.
        image_column: its image column.
        label_column: its integer label column; None without labels.
    """

    def __init__(self, dataset: Dataset, image_column: str, label_column: str | None = None) -> None:
        for column in filter(None, (image_column, label_column)):
            if column not in dataset.column_names:
                raise ValueError(f"The data set has no column {column!r}; its columns are {dataset.column_names}.")
        feature = dataset.features[label_column] if label_column else None
        self.class_names: tuple[str, ...] | None = tuple(feature.names) if isinstance(feature, ClassLabel) else None
        self._dataset, self._columns = dataset, (image_column, label_column)
        self._images = ColumnReader(dataset, image_column)
        self._labels = None if label_column is None else ColumnReader(dataset, label_column)

    @classmethod
    def of(cls, dataset: Dataset, image_column: str | None = None, label_column: str | None = None) -> "ImageSource":
        """An image source whose columns are found by themselves where they are unambiguous.

        Raises:
            ValueError: as `find_columns`.
        """
        return cls(dataset, *find_columns(dataset.features, image_column, label_column))

    def __len__(self) -> int:
        return len(self._dataset)

    def select(self, rows: Sequence[int]) -> "ImageSource":
        """The images of some rows."""
        return ImageSource(self._dataset.select(rows), *self._columns)

    @property
    def has_labels(self) -> bool:
        """Whether there is a label column."""
        return self._labels is not None

    def encoded(self, row: int) -> images.Encoded:
        """The encoded bytes of an image."""
        item = self._images(row)
        try:
            return images.read_encoded(item or {"bytes": None, "path": None})
        except ImageError as error:
            raise ImageError(f"Row {row} (path {(item or {}).get('path')!r}): {error}") from error

    def label(self, row: int) -> int | None:
        """The label of an image, None without labels."""
        return None if self._labels is None else int(self._labels(row))


@dataclass(frozen=True)
class _View:
    """One image as one epoch sees it: where it is, which reinforcement, and the augmentation's parameters."""

    position: int
    slot: int
    params: dict[str, Any]
    pixels: Tensor


class AugmentedDataset(torch.utils.data.Dataset[dict[str, Any]]):
    """Images under fresh augmentations: what plain training, online distillation and evaluation look at.

    Epoch `e` uses the very augmentations that reinforcement `e` of a data set with the same seed would hold.

    Args:
        source: images and labels.
        policy: makes the views; see `evaluation_policy` for evaluation.
        image_size: side of the views in pixels, default the policy's.
        seed: seed of the augmentations.

    Each sample is a dict: `pixel_values` uint8 [3, S, S]; `labels` int, with labels; and for policies that mix
    `mix_params`, `partner_pixel_values` and `partner_labels`. `collate` batches them.
    """

    def __init__(
        self, source: ImageSource, policy: AugmentationPolicy, image_size: int | None = None, seed: int = 0
    ) -> None:
        self.source, self.policy, self.image_size, self.seed = source, policy, image_size, seed
        self._order = shuffled_rows(seed, len(source)) if policy.mix_operations else np.arange(len(source))
        self._places = np.argsort(self._order)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        batch = _Batch(self)
        epochs, positions = np.divmod(np.asarray(indices, dtype=np.int64), len(self))
        slots = self.slots(epochs, positions)
        return [
            self._sample(batch, int(epoch), int(position), int(slot))
            for epoch, position, slot in zip(epochs, positions, slots, strict=True)
        ]

    def slots(self, epochs: NDArray[np.int64], positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Which reinforcement each position uses in each epoch."""
        return epochs

    def partners(self, epoch: int) -> NDArray[np.int64]:
        """Position of the image that each position is mixed with in an epoch, -1 where there is none."""
        if not self.policy.mix_operations:
            return np.full(len(self), -1)
        found = np.empty(len(self), dtype=np.int64)
        for start in range(0, len(self), PARTNER_BLOCK):
            rows = self._order[start : start + PARTNER_BLOCK]
            found[rows] = rows[partner_positions(self.seed, start // PARTNER_BLOCK, epoch, len(rows))]
        return found

    def _sample(self, batch: "_Batch", epoch: int, position: int, slot: int) -> dict[str, Any]:
        view = batch.view(position, slot)
        sample: dict[str, Any] = {"pixel_values": view.pixels, **self._label(position)}
        if self.policy.mix_operations:
            sample["mix_params"] = view.params
            partner = self._partner(batch, view)
            if partner is not None:
                sample["partner_pixel_values"] = partner.pixels
                sample |= {f"partner_{name}": value for name, value in self._label(partner.position).items()}
        return sample

    def _label(self, position: int) -> dict[str, int]:
        label = self.source.label(position)
        return {} if label is None else {"labels": label}

    def _partner(self, batch: "_Batch", view: _View) -> _View | None:
        if not self.policy.mixes(view.params):
            return None
        start = int(self._places[view.position]) // PARTNER_BLOCK * PARTNER_BLOCK
        rows = self._order[start : start + PARTNER_BLOCK]
        pairing = partner_positions(self.seed, start // PARTNER_BLOCK, view.slot, len(rows))
        return batch.view(int(rows[pairing[self._places[view.position] - start]]), view.slot)

    def image(self, position: int) -> Tensor:
        """The decoded image at a position, uint8 [3, H, W]."""
        return images.decode(self.source.encoded(position))

    def params(self, position: int, slot: int, image: Tensor) -> dict[str, Any]:
        """Parameters of one reinforcement."""
        return self.policy.sample(self.seed, position, slot, *image.shape[1:])

    def collate(self, samples: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Batches samples; pass it to a `DataLoader` as `collate_fn`.

        Returns:
            `pixel_values` uint8 [B + E, 3, S, S], the B samples first, then partners that are in no sample; `labels`
            int64 [B]. With a policy that mixes: `partner` int64 [B], each sample's partner in `pixel_values`,
            `partner_labels` int64 [B], and one tensor for each mixing operation. With stored targets: `target_label`
            [B, K], `target_value` [B, K], `target_tail` [B].
        """
        pixels = [sample["pixel_values"] for sample in samples]
        batch: dict[str, Tensor] = {}
        if self.policy.mix_operations:
            where = {id(view): i for i, view in enumerate(pixels)}
            partner = []
            for i, sample in enumerate(samples):
                view = sample.get("partner_pixel_values", pixels[i])
                if id(view) not in where:
                    where[id(view)] = len(pixels)
                    pixels.append(view)
                partner.append(where[id(view)])
            batch["partner"] = torch.tensor(partner)
            batch |= self.policy.collate_mix([sample["mix_params"] for sample in samples])
        batch["pixel_values"] = torch.stack(pixels)
        if "labels" in samples[0]:
            batch["labels"] = torch.tensor([sample["labels"] for sample in samples])
            if self.policy.mix_operations:
                partner_labels = [sample.get("partner_labels", sample["labels"]) for sample in samples]
                batch["partner_labels"] = torch.tensor(partner_labels)
        for name in ("target_label", "target_value", "target_tail"):
            if name in samples[0]:
                batch[name] = torch.as_tensor(np.stack([sample[name] for sample in samples]))
        return batch


class _Batch:
    """Decoded images and views of one batch, so that an image and its partner are decoded once."""

    def __init__(self, dataset: AugmentedDataset) -> None:
        self._dataset = dataset
        self._images: dict[int, Tensor] = {}
        self._views: dict[tuple[int, int], _View] = {}

    def image(self, position: int) -> Tensor:
        if position not in self._images:
            self._images[position] = self._dataset.image(position)
        return self._images[position]

    def view(self, position: int, slot: int, params: dict[str, Any] | None = None) -> _View:
        """The view of a reinforcement; with `params`, of an augmentation that is stored elsewhere."""
        key = (position, slot)
        if params is None and key in self._views:
            return self._views[key]
        image, dataset = self.image(position), self._dataset
        drawn = dataset.params(position, slot, image) if params is None else params
        view = _View(position, slot, drawn, dataset.policy.apply(image, drawn, dataset.image_size).contiguous())
        if params is None:
            self._views[key] = view
        return view


class ReinforcedDataset(AugmentedDataset):
    """A reinforced data set joined with its images.

    Every read checks that the image is the one the reinforcements were made from, and the first one that the pixels
    come out as they did then.

    Args:
        reinforced: the rows, as `load_dataset(folder, config)` returns them; may be filtered or selected.
        config: contents of `reinforcement.json`.
        source: the data set that holds the images; None when they are embedded.
        image_size: side of the views in pixels, default the policy's.
        seed: training seed, decides which reinforcement is used when.
        selection: `"cycle"` uses every reinforcement once before any twice; `"random"` draws as the paper does.
        plain_fraction: share of accesses that use a fresh augmentation and the hard label instead (the paper's 0.01).
        accept_pixel_mismatch: go on although the reference views come out differently.

    Raises:
        PixelMismatchError: if a reference view has other pixels here.
        WrongImageError: if an image is another one, when the reference views are checked or when it is read.
        ValueError: if the images are missing, or `plain_fraction` is used without labels.

    Samples are those of `AugmentedDataset`, with `target_label`, `target_value` [K] and `target_tail`.
    """

    def __init__(
        self,
        reinforced: Dataset,
        config: ReinforcementConfig,
        source: Dataset | None = None,
        image_size: int | None = None,
        seed: int = 0,
        selection: str = "cycle",
        plain_fraction: float = 0.0,
        accept_pixel_mismatch: bool = False,
    ) -> None:
        record = config.source
        if source is None and not config.embed_images:
            raise ValueError(
                f"The images of this data set are not stored with it; pass the source: {record.name or 'a Dataset'}, "
                f"split {record.split!r}."
            )
        if not 0 <= plain_fraction <= 1 or (plain_fraction > 0 and record.label_column is None):
            raise ValueError(f"plain_fraction must lie in [0, 1] and needs labels; it is {plain_fraction}.")
        holder = reinforced if config.embed_images else source
        super().__init__(
            ImageSource(holder, record.image_column, record.label_column), config.policy, image_size, seed
        )
        self.config, self.selection, self.plain_fraction = config, selection, plain_fraction
        self._rows = np.asarray(reinforced.with_format("numpy")[schema.SOURCE_ROW], dtype=np.int64)
        self._position = dict(zip(self._rows.tolist(), range(len(self._rows)), strict=True))
        self._hashes = ColumnReader(reinforced, schema.IMAGE_HASH)
        self._params = ColumnReader(reinforced, schema.AUGMENTATION_PARAMS, config.num_samples)
        self._targets = ColumnReader(reinforced, schema.TEACHER_LOGITS, config.num_samples)
        select_slots(selection, seed, self._rows[:0], self._rows[:0], config.num_samples)  # refuses an unknown name
        if not accept_pixel_mismatch:
            self._check_reference_views()

    def __len__(self) -> int:
        return len(self._rows)

    def _check_reference_views(self) -> None:
        for reference in self.config.pixels.reference_views:
            position = self._position.get(reference.row)
            if position is not None:  # a selection may not hold it
                image = self.image(position)
                view = self.policy.apply(image, self.params(position, reference.slot, image))
                check_view(self.config.pixels, reference, view)

    def image(self, position: int) -> Tensor:
        row = int(self._rows[position])
        where = position if self.config.embed_images else row
        if where >= len(self.source):
            raise WrongImageError(f"The source has {len(self.source)} rows, but row {row} was reinforced.")
        encoded = self.source.encoded(where)
        expected, found = self._hashes(position), images.image_hash(encoded)
        if expected != found:
            record = self.config.source
            raise WrongImageError(
                f"Row {row} of the source holds another image than the one that was reinforced (hash {found}, "
                f"expected {expected}). Use {record.name or 'the same data set'}, split {record.split!r}"
                + (f", revision {record.revision!r}." if record.revision else ", in its original order.")
            )
        try:
            return images.decode(encoded)
        except ImageError as error:
            raise ImageError(f"Row {row}: {error}") from error

    def params(self, position: int, slot: int, image: Tensor | None = None) -> dict[str, Any]:
        """Stored parameters of one reinforcement."""
        stored: dict[str, Any] = self._params(position, slot)
        return stored

    def target(self, position: int, slot: int) -> dict[str, Any]:
        """Stored target of one reinforcement: `target_label` [K], `target_value` [K], `target_tail`."""
        stored = self._targets(position, slot)
        return {
            "target_label": np.array(stored[schema.LABEL], dtype=np.int64),
            "target_value": np.array(stored[schema.VALUE], dtype=np.float32),
            "target_tail": np.float32(stored[schema.TAIL]),
        }

    def slots(self, epochs: NDArray[np.int64], positions: NDArray[np.int64]) -> NDArray[np.int64]:
        # Partners share a slot, so a policy that mixes moves the whole data set to the same slot in each epoch.
        groups = positions * 0 if self.policy.mix_operations else self._rows[positions]
        return select_slots(self.selection, self.seed, epochs, groups, self.config.num_samples)

    def partners(self, epoch: int) -> NDArray[np.int64]:
        if not self.policy.mix_operations:
            return np.full(len(self), -1)
        positions = np.arange(len(self))
        slots = self.slots(np.full(len(self), epoch), positions)
        rows = (self.params(int(p), int(s))[schema.PARTNER_ROW] for p, s in zip(positions, slots, strict=True))
        found = np.array([-1 if row is None else self._position.get(row, -1) for row in rows])
        # The partner of a mixed image may itself be used unmixed; it is emitted beside it all the same.
        mixed = np.flatnonzero(found >= 0)
        back = found.copy()
        back[found[mixed]] = np.where(found[found[mixed]] < 0, mixed, found[found[mixed]])
        return back

    def _sample(self, batch: _Batch, epoch: int, position: int, slot: int) -> dict[str, Any]:
        if self.plain_fraction and self._is_plain(epoch, position):
            return self._plain_sample(batch, epoch, position)
        return {**super()._sample(batch, epoch, position, slot), **self.target(position, slot)}

    def _is_plain(self, epoch: int, position: int) -> bool:
        draw = int(hash_uniform(self.seed, _PLAIN_STREAM, epoch, int(self._rows[position]))[0])
        return draw < self.plain_fraction * 2.0**64

    def _plain_sample(self, batch: _Batch, epoch: int, position: int) -> dict[str, Any]:
        image = batch.image(position)
        seed = int(hash_uniform(self.seed, _PLAIN_STREAM)[0])
        params = self.policy.sample(seed, int(self._rows[position]), epoch, *image.shape[1:])
        params |= {operation.field: None for operation in self.policy.mix_operations}
        view = batch.view(position, -1, params)
        label = self._label(position)
        target = one_hot(torch.tensor([label["labels"]]), self.config.top_k, self.config.num_classes)
        return {
            "pixel_values": view.pixels,
            **label,
            **({"mix_params": params} if self.policy.mix_operations else {}),
            "target_label": target.label[0].numpy(),
            "target_value": target.value[0].numpy(),
            "target_tail": target.tail[0].numpy(),
        }

    def _label(self, position: int) -> dict[str, int]:
        return super()._label(position if self.config.embed_images else int(self._rows[position]))

    def _partner(self, batch: _Batch, view: _View) -> _View | None:
        row = view.params[schema.PARTNER_ROW]
        if row is None:
            return None
        if row not in self._position:
            raise ValueError(
                f"Row {self._rows[view.position]} is mixed with row {row}, which is missing from this selection; "
                "train on the whole data set, or select pairs."
            )
        return batch.view(self._position[row], view.slot, view.params[schema.PARTNER_PARAMS])

    def image_source(self) -> "ImageSource":
        """The images of this data set, in its order, for fresh augmentations of the same rows."""
        rows = np.arange(len(self)) if self.config.embed_images else self._rows
        return self.source.select(rows.tolist())

    def view(self, position: int, slot: int) -> Tensor:
        """The view that the teacher saw, mixed where the reinforcement says so: float [3, S, S], values 0 to 255."""
        batch = _Batch(self)
        sample = AugmentedDataset._sample(self, batch, 0, position, slot)
        pixels: Tensor = sample["pixel_values"].float()[None]
        if not self.policy.mix_operations:
            return pixels[0]
        partner = sample.get("partner_pixel_values", sample["pixel_values"]).float()[None]
        return self.policy.mix(pixels, partner, self.policy.collate_mix([sample["mix_params"]]))[0]


def batch_targets(batch: dict[str, Tensor]) -> Targets:
    """The stored targets of a collated batch."""
    return Targets(batch["target_label"], batch["target_value"], batch["target_tail"])


class EpochSampler(torch.utils.data.Sampler[int]):
    """Shuffles every epoch, keyed by (seed, epoch); an image and its mixing partner come next to each other.

    Args:
        dataset: what is sampled.
        seed: seed of the order.
    """

    def __init__(self, dataset: AugmentedDataset, seed: int = 0) -> None:
        self.dataset, self.seed, self.epoch = dataset, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """The next iteration is that of epoch `epoch`, counted from 0."""
        self.epoch = int(epoch)

    def __len__(self) -> int:
        return len(self.dataset)

    def __iter__(self) -> Iterator[int]:
        size = len(self.dataset)
        place = np.random.Generator(np.random.Philox(key=[self.seed, self.epoch])).permutation(size)
        partners = self.dataset.partners(self.epoch)
        pair = np.where(partners < 0, place, np.minimum(place, place[partners]))
        order = np.lexsort((place, pair))
        yield from (self.epoch * size + order).tolist()
