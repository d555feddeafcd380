"""Images under augmentations, as batches of uint8 views.

Item `epoch * len(dataset) + position` is the image at `position` as epoch `epoch` sees it, so a data set has no state
that workers could disagree about, and a resumed run sees what it would have seen.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hf_reinforce import images
from hf_reinforce.augmentations.policies import AugmentationPolicy
from hf_reinforce.randomness import PARTNER_BLOCK, partner_positions, shuffled_rows
from hf_reinforce.sources.image_source import ImageSource
from hf_reinforce.sources.labels import NO_LABEL

_PIECE = 2**16  # positions that the sampler turns into Python numbers at once


@dataclass(frozen=True)
class View:
    """One image as one epoch sees it."""

    position: int
    slot: int
    params: dict[str, Any]
    pixels: "Tensor | LaterView"


@dataclass(frozen=True, eq=False)
class LaterView:
    """A view whose pixels are made later, with those of its batch."""

    position: int
    params: dict[str, Any]


class AugmentedDataset(torch.utils.data.Dataset[dict[str, Any]]):
    """Images under fresh augmentations: what plain training, online distillation and evaluation look at.

    Epoch `e` uses the very augmentations that reinforcement `e` of a data set with the same seed would hold.

    Args:
        source: images and labels.
        policy: makes the views; see `evaluation_policy` for evaluation.
        image_size: side of the views in pixels, default the policy's.
        seed: seed of the augmentations.

    Each sample is a dict: `pixel_values` uint8 [3, S, S]; `labels`, where there are any (`NO_LABEL` for null); for
    policies that mix `mix_params`, `partner_pixel_values` and `partner_labels`. `collate` batches them.
    """

    def __init__(
        self, source: ImageSource, policy: AugmentationPolicy, image_size: int | None = None, seed: int = 0
    ) -> None:
        self.source, self.policy, self.image_size, self.seed = source, policy, image_size, seed
        self._makes_pixels = True
        self._order = shuffled_rows(seed, len(source)) if policy.mix_operations else np.arange(len(source))
        self._places = np.argsort(self._order)

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

    def without_pixels(self) -> "AugmentedDataset":
        """This data set without the pixels, which `resident.ResidentImages` then makes."""
        other = copy(self)
        other._makes_pixels = False
        return other

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

    def encoded(self, position: int) -> images.Encoded:
        """The encoded image at a position."""
        return self.source.encoded(position)

    def row(self, position: int) -> int:
        """The row under which errors name the image at a position."""
        return position

    def image(self, position: int) -> Tensor:
        """The decoded image at a position, uint8 [3, H, W]."""
        with self._naming(position):
            return images.decode(self.encoded(position))

    def pixels(self, position: int, params: Mapping[str, Any]) -> Tensor:
        """The view of an image that parameters describe, uint8 [3, S, S]; only what it shows is decoded."""
        with self._naming(position):
            return self.policy.render(self.encoded(position), params, self.image_size)

    def params(self, position: int, slot: int) -> dict[str, Any]:
        """Parameters of one reinforcement."""
        with self._naming(position):
            return self.policy.sample(self.seed, position, slot, *images.image_size(self.encoded(position)))

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
            in no sample, or without pixels `positions` [B + E] and `view_params` (`policy.collate_views`); `labels`
            int64 [B]. With a policy that mixes: `partner` int64 [B], where each sample's partner is, `partner_labels`
            int64 [B], and one tensor for each mixing operation.
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
        batch = {**_stacked(pixels, self.policy), **batch}
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

    def _pixels(self, position: int, params: dict[str, Any]) -> "Tensor | LaterView":
        if not self._dataset._makes_pixels:
            return LaterView(position, params)
        if position not in self._repeated:
            return self._dataset.pixels(position, params)
        if position not in self._images:
            self._images[position] = self._dataset.image(position)
        return self._dataset.policy.apply(self._images[position], params, self._dataset.image_size)


def _stacked(views: Sequence[Any], policy: AugmentationPolicy) -> dict[str, Any]:
    if not isinstance(views[0], LaterView):
        return {"pixel_values": images.stack(views)}
    params = policy.collate_views([view.params for view in views])
    return {"positions": torch.tensor([view.position for view in views]), "view_params": params}


class EpochSampler(torch.utils.data.Sampler[int]):
    """Shuffles every epoch, keyed by (seed, epoch); an image and its mixing partner come next to each other.

    With repeated augmentation (Hoffer et al., 2020) an epoch visits one of `repeats` parts of the images, each image
    `repeats` times in a row, under as many different augmentations. Over `repeats` epochs the samples are those that
    plain epochs have, in another order: an image is decoded once where it was decoded `repeats` times, and a batch
    holds fewer different images. What does not divide into equal parts is left out of the epochs, by turns.

    Args:
        dataset: what is sampled.
        seed: seed of the order.
        repeats: augmentations of an image in a row, >= 1; more than 1 only for policies that do not mix.

    Raises:
        ValueError: if `repeats` does not fit the data set.
    """

    def __init__(self, dataset: AugmentedDataset, seed: int = 0, repeats: int = 1) -> None:
        if not 1 <= repeats <= max(1, len(dataset)):
            raise ValueError(f"repeats must lie between 1 and the {len(dataset)} images, not {repeats}.")
        if repeats > 1 and dataset.policy.mix_operations:
            raise ValueError(
                f"Policy {dataset.policy.name!r} mixes images, so each is followed by its partner; repeated "
                "augmentation works with policies that do not mix, such as 'rrc' and 'randaug'."
            )
        self.dataset, self.seed, self.repeats, self.epoch = dataset, seed, repeats, 0

    def set_epoch(self, epoch: int) -> None:
        """The next iteration is that of epoch `epoch`, counted from 0."""
        self.epoch = int(epoch)

    def __len__(self) -> int:
        return len(self.dataset) // self.repeats * self.repeats

    def __iter__(self) -> Iterator[int]:
        order = self._paired() if self.repeats == 1 else self._repeated()
        for start in range(0, len(order), _PIECE):
            yield from order[start : start + _PIECE].tolist()

    def _shuffled(self, key: int) -> NDArray[np.int64]:
        return np.random.Generator(np.random.Philox(key=[self.seed, key])).permutation(len(self.dataset))

    def _paired(self) -> NDArray[np.int64]:
        size = len(self.dataset)
        place = self._shuffled(self.epoch)
        partners = self.dataset.partners(self.epoch)
        paired = (partners >= 0) & (partners != np.arange(size))
        pair = np.minimum(place, place[partners])
        # Two images without a partner count as a pair, so that every pair begins at an even place.
        alone = np.flatnonzero(~paired)
        alone = alone[np.argsort(place[alone])]
        pair[alone] = place[alone[np.arange(len(alone)) // 2 * 2]]
        if len(alone) % 2:
            pair[alone[-1]] = size
        return self.epoch * size + np.lexsort((place, pair))

    def _repeated(self) -> NDArray[np.int64]:
        size, part = len(self.dataset), len(self.dataset) // self.repeats
        first, turn = self.epoch // self.repeats * self.repeats, self.epoch % self.repeats
        positions = self._shuffled(first)[turn * part : (turn + 1) * part]
        return ((first + np.arange(self.repeats)) * size + positions[:, None]).reshape(-1)
