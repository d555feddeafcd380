"""Images under augmentations, as batches of uint8 views.

Item `epoch * len(dataset) + position` is the image at `position` as epoch `epoch` sees it, so a dataset has no state
that workers could disagree about, and a resumed run sees what it would have seen.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hf_reinforce import images
from hf_reinforce.augmentations.policies import AugmentationPolicy
from hf_reinforce.randomness import PARTNER_BLOCK, partner_positions, shuffled_rows
from hf_reinforce.replay.decoded_images import DecodedImages
from hf_reinforce.sources.image_source import ImageSource
from hf_reinforce.sources.labels import NO_LABEL


@dataclass(frozen=True)
class View:
    """One image as one epoch sees it."""

    position: int
    slot: int
    params: dict[str, Any]
    pixels: Tensor


@dataclass(frozen=True)
class Blocks:
    """Neighbours that are read together, for a dataset whose rows should not be asked for in any order.

    Attributes:
        starts: int64 [B + 1], ascending: the first position of each block, and the number of rows.
        runs: int64 [B], the run that each block is in: what is read one block behind the other, such as a file.
    """

    starts: NDArray[np.int64]
    runs: NDArray[np.int64]


class AugmentedDataset(torch.utils.data.Dataset[dict[str, Any]]):
    """Images under fresh augmentations: what plain training, online distillation and evaluation look at.

    Epoch `e` uses the very augmentations that reinforcement `e` of a dataset with the same seed would hold.

    Args:
        source: images and labels.
        policy: makes the views; see `evaluation_policy` for evaluation.
        image_size: side of the views in pixels, default the policy's.
        seed: seed of the augmentations.

    Each sample is a dict: `pixel_values` uint8 [3, S, S]; `labels`, where there are any (`NO_LABEL` for null); for
    policies that mix `mix_params`, `partner_pixel_values` and `partner_labels`. `collate` batches them.

    Attributes:
        blocks: rows that should be read together, see `EpochSampler`; None where any order will do.

    Example:
        from hf_reinforce import AugmentedDataset, ImageSource, load_policy, load_source

        images = ImageSource.of(load_source("uoft-cs/cifar100"), label_column="fine_label")
        dataset = AugmentedDataset(images, load_policy("small_randaug", image_size=32))
        view = dataset[0]["pixel_values"]  # uint8 [3, 32, 32]
    """

    def __init__(
        self, source: ImageSource, policy: AugmentationPolicy, image_size: int | None = None, seed: int = 0
    ) -> None:
        self.source, self.policy, self.image_size, self.seed = source, policy, image_size, seed
        self.blocks: Blocks | None = None
        self._decoded: DecodedImages | None = None

    def __len__(self) -> int:
        return len(self.source)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """The samples of epoch 0. Python would go on with those of the next, since an index may be of any epoch."""
        return (self[position] for position in range(len(self)))

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        epochs, positions = np.divmod(np.asarray(indices, dtype=np.int64), len(self))
        batch = BatchViews(self, positions)
        return [
            self._sample(batch, int(epoch), int(position), int(slot))
            for epoch, position, slot in zip(epochs, positions, self.slots(epochs, positions), strict=True)
        ]

    @cached_property
    def _order(self) -> NDArray[np.int64]:
        """The order of the rows in which a policy that mixes takes its blocks of partners."""
        return shuffled_rows(self.seed, len(self.source))

    @cached_property
    def _places(self) -> NDArray[np.int64]:
        return np.argsort(self._order)

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

    def _sample(self, batch: "BatchViews", epoch: int, position: int, slot: int) -> dict[str, Any]:
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
        return {"labels": NO_LABEL if label is None else label} if self.source.has_labels else {}

    def _partner(self, batch: "BatchViews", view: View) -> View | None:
        if not self.policy.mixes(view.params):
            return None
        start = int(self._places[view.position]) // PARTNER_BLOCK * PARTNER_BLOCK
        rows = self._order[start : start + PARTNER_BLOCK]
        pairing = partner_positions(self.seed, start // PARTNER_BLOCK, view.slot, len(rows))
        return batch.view(int(rows[pairing[self._places[view.position] - start]]), view.slot)

    def cache_images(self) -> None:
        """Decodes every image once, into memory that dataloader workers share and every epoch reads.

        Raises:
            ValueError: if the memory does not suffice, see `DecodedImages`.
            ImageError: if an image cannot be decoded.
        """
        self._decoded = self._decoded or DecodedImages(len(self), self.size, self.image)

    def encoded(self, position: int) -> images.Encoded:
        """The encoded image at a position."""
        return self.source.encoded(position)

    def row(self, position: int) -> int:
        """The row under which errors name the image at a position."""
        return position

    def size(self, position: int) -> tuple[int, int]:
        """Height and width of the decoded image at a position, in pixels."""
        if self._decoded is not None:
            return self._decoded.size(position)
        with self._naming(position):
            return images.image_size(self.encoded(position))

    def image(self, position: int) -> Tensor:
        """The decoded image at a position, uint8 [3, H, W]."""
        if self._decoded is not None:
            return self._decoded[position]
        with self._naming(position):
            return images.decode(self.encoded(position))

    def pixels(self, position: int, params: Mapping[str, Any]) -> Tensor:
        """The view of an image that parameters describe, uint8 [3, S, S]; only what it shows is decoded."""
        if self._decoded is not None:
            return self.policy.apply(self._decoded[position], params, self.image_size)
        with self._naming(position):
            return self.policy.render(self.encoded(position), params, self.image_size)

    def params(self, position: int, slot: int) -> dict[str, Any]:
        """Parameters of one reinforcement."""
        height, width = self.size(position)
        with self._naming(position):
            return self.policy.sample(self.seed, position, slot, height, width)

    @contextmanager
    def _naming(self, position: int) -> Iterator[None]:
        try:
            yield
        except images.ImageError as error:
            row = "" if str(error).startswith("Row ") else f"Row {self.row(position)}: "
            raise images.ImageError(f"{row}{error}") from error

    def collate(self, samples: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Batches samples; pass it to a `DataLoader` as `collate_fn`.

        Returns:
            `pixel_values` uint8 [B + E, 3, S, S] in channels-last memory, the B samples first, then partners that are
            in no sample; `labels` int64 [B]. With a policy that mixes: `partner` int64 [B], where each sample's
            partner is, `partner_labels` int64 [B], and one tensor for each mixing operation.
        """
        pixels = [sample["pixel_values"] for sample in samples]
        batch: dict[str, Any] = {}
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
        batch = {"pixel_values": images.stack(pixels), **batch}
        if "labels" in samples[0]:
            batch["labels"] = torch.tensor([sample["labels"] for sample in samples])
            if self.policy.mix_operations:
                batch["partner_labels"] = torch.tensor([s.get("partner_labels", s["labels"]) for s in samples])
        return batch


class BatchViews:
    """Views of one batch, each made once, although a sample and its partner may both ask for it.

    Args:
        dataset: where the images come from.
        positions: of the batch's images; those that come more than once are decoded as a whole, and once.
    """

    def __init__(self, dataset: AugmentedDataset, positions: NDArray[np.int64] | Sequence[int] = ()) -> None:
        self._dataset = dataset
        found, counts = np.unique(positions, return_counts=True)
        self._repeated = set(found[counts > 1].tolist())
        self._images: dict[int, Tensor] = {}
        self._views: dict[tuple[int, int], View] = {}

    def view(self, position: int, slot: int, params: dict[str, Any] | None = None) -> View:
        """The view of a reinforcement; with `params`, of an augmentation that is stored elsewhere."""
        key = (position, slot)
        if params is None and key in self._views:
            return self._views[key]
        drawn = self._dataset.params(position, slot) if params is None else params
        view = View(position, slot, drawn, self._pixels(position, drawn))
        if params is None:
            self._views[key] = view
        return view

    def _pixels(self, position: int, params: dict[str, Any]) -> Tensor:
        if position not in self._repeated:
            return self._dataset.pixels(position, params)
        if position not in self._images:
            self._images[position] = self._dataset.image(position)
        return self._dataset.policy.apply(self._images[position], params, self._dataset.image_size)
