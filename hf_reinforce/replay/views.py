"""Images under augmentations, as batches of uint8 views.

Item `epoch * len(dataset) + position` is the image at `position` as epoch `epoch` sees it, so a dataset has no state
that workers could disagree about, and a resumed run sees what it would have seen.
"""

import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm

from hf_reinforce import images
from hf_reinforce.augmentations.policies import AugmentationPolicy
from hf_reinforce.randomness import PARTNER_BLOCK, partner_positions, shuffled_rows
from hf_reinforce.sources.image_source import ImageSource
from hf_reinforce.sources.labels import NO_LABEL
from hf_reinforce.targets import Target

_TOGETHER = 2048  # decoded images in a piece of shared memory


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
        targets: what is stored of teachers' answers: nothing here.
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
        self.targets: tuple[Target, ...] = ()
        self.blocks: Blocks | None = None
        # Pieces of memory that hold decoded images; start in its piece, height and width of each.
        self._cache: tuple[list[Tensor], list[tuple[int, int, int]]] | None = None

    def __len__(self) -> int:
        return len(self.source)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """The samples of epoch 0. Python would go on with those of the next, since an index may be of any epoch."""
        return (self[position] for position in range(len(self)))

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        epochs, positions = np.divmod(np.asarray(indices, dtype=np.int64), len(self))
        chosen = zip(epochs.tolist(), positions.tolist(), self.slots(epochs, positions).tolist(), strict=True)
        batch = BatchViews(self, positions.tolist())
        return [self._sample(batch, *one) for one in chosen]

    def slots(self, epochs: NDArray[np.int64], positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Which reinforcement each position uses in each epoch."""
        return epochs

    def partners(self, epoch: int) -> NDArray[np.int64]:
        """Position of the image that each position is mixed with in an epoch, -1 where there is none."""
        if not self.policy.mix_operations:
            return np.full(len(self), -1)
        return _fresh_partners(self.seed, epoch, len(self))

    def _sample(self, batch: "BatchViews", epoch: int, position: int, slot: int) -> dict[str, Any]:
        params, pixels = batch.view(position, slot)
        sample = {"pixel_values": pixels, **self._label(position)}
        if self.policy.mix_operations:
            sample["mix_params"] = params
            if self.policy.mixes(params):
                partner, own_params = self._partner(position, slot, params)
                sample["partner_pixel_values"] = batch.view(partner, slot, own_params)[1]
                sample |= {f"partner_{name}": value for name, value in self._label(partner).items()}
        return sample

    def _label(self, position: int) -> dict[str, Any]:
        label = self.source.label(position)
        return {"labels": NO_LABEL if label is None else label} if self.source.has_labels else {}

    def _partner(self, position: int, slot: int, params: dict[str, Any]) -> tuple[int, dict[str, Any] | None]:
        """The position of a view's partner, and the partner's parameters unless they are those of the same slot."""
        return int(self.partners(slot)[position]), None

    def cache_images(self) -> None:
        """Decodes every image once, into memory that dataloader workers share and every epoch reads.

        Raises:
            ValueError: if the memory does not suffice for 3 bytes a pixel in each process, or the rows are streamed.
            ImageError: if an image cannot be decoded.
        """
        if self.blocks is not None:
            raise ValueError(
                "Images that are streamed are not kept; leave out cache_images (--cache_images False), or streaming."
            )
        if self._cache is not None:
            return
        pieces: list[Tensor] = []
        where: list[tuple[int, int, int]] = []
        progress = tqdm(total=len(self), desc="Decoding the images", unit="image")
        with ThreadPoolExecutor(os.cpu_count()) as pool, progress:
            for first in range(0, len(self), _TOGETHER):
                positions = range(first, min(first + _TOGETHER, len(self)))
                # Read here, one after the other: a dataset whose source was reordered looks for its images once.
                decoded = list(pool.map(self._decode, positions, map(self.encoded, positions)))
                starts = np.cumsum([0, *(image.numel() for image in decoded)]).tolist()
                _check_memory(starts[-1] * (len(self) - first) // len(decoded))
                piece = torch.cat([image.permute(1, 2, 0).flatten() for image in decoded])
                pieces.append(piece.share_memory_())  # type: ignore[no-untyped-call]
                where += [(start, *image.shape[1:]) for start, image in zip(starts, decoded, strict=False)]
                progress.update(len(decoded))
        self._cache = pieces, where

    def _cached(self, position: int) -> Tensor | None:
        """A decoded image that is kept, in channels-last memory; not to be changed."""
        if self._cache is None:
            return None
        pieces, where = self._cache
        start, height, width = where[position]
        pixels = pieces[position // _TOGETHER][start : start + 3 * height * width]
        return pixels.view(height, width, 3).permute(2, 0, 1)

    def encoded(self, position: int) -> images.Encoded:
        """The encoded image at a position."""
        return self.source.encoded(position)

    def row(self, position: int) -> int:
        """The row under which errors name the image at a position."""
        return position

    def image_source(self) -> ImageSource:
        """The images of this dataset, in its order, for fresh augmentations of the same rows."""
        return self.source

    def size(self, position: int) -> tuple[int, int]:
        """Height and width of the decoded image at a position, in pixels."""
        if self._cache is not None:
            return self._cache[1][position][1:]
        with self._naming(position):
            return images.image_size(self.encoded(position))

    def image(self, position: int) -> Tensor:
        """The decoded image at a position, uint8 [3, H, W]."""
        cached = self._cached(position)
        return self._decode(position, self.encoded(position)) if cached is None else cached

    def _decode(self, position: int, encoded: images.Encoded) -> Tensor:
        with self._naming(position):
            return images.decode(encoded)

    def pixels(self, position: int, params: Mapping[str, Any]) -> Tensor:
        """The view of an image that parameters describe, uint8 [3, S, S]; only what it shows is decoded."""
        cached = self._cached(position)
        if cached is not None:
            return self.policy.apply(cached, params, self.image_size)
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
            partner is, `partner_labels` int64 [B], and one tensor for each mixing operation. With stored targets
            also what `Target.collate` makes of them.
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
        for target in self.targets:
            batch |= target.collate(samples)
        return batch


def mixed_views(policy: AugmentationPolicy | None, batch: Mapping[str, Tensor]) -> Tensor:
    """The B views of a batch, mixed with their partners where its policy mixes: float, values 0 to 255."""
    views = batch["pixel_values"].float()
    if policy is None or "partner" not in batch:
        return views
    return policy.mix(views[: len(batch["partner"])], views[batch["partner"]], batch)


def partner_places(seed: int, slot: int, count: int) -> NDArray[np.int64]:
    """The place of each one's mixing partner, of `count` rows in the order in which a policy takes its blocks."""
    starts = range(0, count, PARTNER_BLOCK)
    pairings = (partner_positions(seed, s // PARTNER_BLOCK, slot, min(PARTNER_BLOCK, count - s)) for s in starts)
    return np.concatenate([start + pairing for start, pairing in zip(starts, pairings, strict=True)])


@lru_cache(maxsize=4)
def _fresh_partners(seed: int, epoch: int, count: int) -> NDArray[np.int64]:
    order, found = shuffled_rows(seed, count), np.empty(count, dtype=np.int64)
    found[order] = order[partner_places(seed, epoch, count)]
    return found


class BatchViews:
    """Views of one batch, each made once; images whose positions come more than once are decoded as a whole, once."""

    def __init__(self, dataset: AugmentedDataset, positions: Sequence[int] = ()) -> None:
        self._dataset = dataset
        self._repeated = {position for position, count in Counter(positions).items() if count > 1}
        self._images: dict[int, Tensor] = {}
        self._views: dict[tuple[int, int], tuple[dict[str, Any], Tensor]] = {}

    def view(self, position: int, slot: int, params: dict[str, Any] | None = None) -> tuple[dict[str, Any], Tensor]:
        """Parameters and pixels of a reinforcement; with `params`, of an augmentation that is stored elsewhere."""
        if params is not None:
            return params, self.pixels(position, params)
        if (position, slot) not in self._views:
            params = self._dataset.params(position, slot)
            self._views[position, slot] = params, self.pixels(position, params)
        return self._views[position, slot]

    def pixels(self, position: int, params: dict[str, Any]) -> Tensor:
        """As `AugmentedDataset.pixels`."""
        if position not in self._repeated:
            return self._dataset.pixels(position, params)
        if position not in self._images:
            self._images[position] = self._dataset.image(position)
        return self._dataset.policy.apply(self._images[position], params, self._dataset.image_size)


def _check_memory(needed: int) -> None:
    """Refuses what does not fit into the memory that is free, shared by the processes of this machine."""
    free, shared = psutil.virtual_memory().available, Path("/dev/shm")
    if shared.exists():
        free = min(free, shutil.disk_usage(shared).free)
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if needed * processes > free:
        raise ValueError(
            f"The decoded images take about {needed:,} bytes in each of {processes} processes, and {free:,} bytes of "
            "shared memory are free; leave out cache_images (--cache_images False)."
        )
