"""Streaming a reinforced data set: its rows and their images are read in step, and nothing is downloaded as a whole.

The rows of an epoch are a sequence: the shards in an order of the epoch's own, each from front to back. Every process
and every worker has a part of it, which follows from the number of rows alone, so that whoever resumes goes straight
to its place. A worker reads windows of a few hundred rows, each of which is a `ReinforcedDataset` to replay.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow.compute as pc
import torch
from datasets import Dataset, IterableDataset
from torch import Tensor
from torch.utils.data import get_worker_info

from hf_reinforce import schema
from hf_reinforce.randomness import PARTNER_BLOCK, hash_uniform
from hf_reinforce.replay.dataset import ReinforcedDataset, WrongImageError
from hf_reinforce.replay.streaming.partition import Block, Consumer, epoch_blocks, windows
from hf_reinforce.replay.streaming.windows import REMEDY, Window, WindowReader
from hf_reinforce.replay.views import EpochSampler
from hf_reinforce.sources.rows import DatasetRows, Rows, StreamRows
from hf_reinforce.store.config import ReinforcementConfig

_RUNS_AT_ONCE = 8
_WINDOW_STREAM = 3
_REPLAYED_AT_ONCE = 64


class ReinforcedStream(torch.utils.data.IterableDataset[dict[str, Any]]):
    """A reinforced data set and its images as a stream of the samples of `ReinforcedDataset`.

    An epoch has every row once, split over processes, see `split`, and over the workers of a `DataLoader`; call
    `set_epoch` before each. It is shuffled: the order of the shards, of which up to 8 are read at a time, and the rows
    in windows of 512. Shards whose images are in one row group stay together. A source that can only be read forward
    (no Parquet files, no `Dataset`) is shuffled in windows alone. `collate` batches samples.

    Args:
        files: the shards, paths or addresses that fsspec opens, in their order.
        config: contents of `reinforcement.json`.
        source: the images, in the order in which they were reinforced; None when they are embedded.
        max_rows: use the first so many rows; for a policy that mixes, rounded up to whole blocks of partners.
        allow_missing: put other rows in the place of those whose image is not in the source.
        accept_pixel_mismatch: go on although the reference views come out differently.
        seed: training seed, decides the order, and which reinforcement is used when.
        image_size: side of the views in pixels, default the policy's.
        options: `selection` and `plain_fraction` of `ReinforcedDataset`.

    Raises:
        ValueError: if the rows are in another order than the source's, or images are missing.
        PixelMismatchError: if a reference view has other pixels here.
        WrongImageError: if an image is another one, of the first rows at once, of others when they are read.
    """

    def __init__(
        self,
        files: Sequence[str],
        config: ReinforcementConfig,
        source: Rows | Dataset | IterableDataset | None = None,
        max_rows: int | None = None,
        allow_missing: bool = False,
        accept_pixel_mismatch: bool = False,
        seed: int = 0,
        image_size: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        if config.shuffled and not config.embed_images:
            raise ValueError(
                f"The policy {config.policy.name!r} mixes images, so the rows were reinforced in shuffled order and "
                "cannot be streamed in step with their source. Leave out streaming=True (--streaming True); whoever "
                "reinforces it can make it fit for streaming with --embed_images True, or from a source that is a "
                "stream (load_dataset(..., streaming=True))."
            )
        if source is None and not config.embed_images:
            raise ValueError(f"The images of this data set are not stored with it; pass {config.source.name}.")
        self.config, self.policy, self.seed, self.image_size = config, config.policy, seed, image_size
        self.targets = config.targets
        self._options = options
        columns = [config.source.image_column, *filter(None, [config.source.label_column])]
        if isinstance(source, Dataset):
            source = DatasetRows(source, columns)
        elif isinstance(source, IterableDataset):
            source = StreamRows(source, columns)
        source = None if config.embed_images else source
        self._reader = WindowReader(files, config, source, max_rows, allow_missing)
        self._consumer = Consumer()
        self._epoch = torch.tensor(0).share_memory_()  # type: ignore[no-untyped-call]  # persistent workers see it
        self._resume: dict[str, int] = {}
        self._resumed_in: int | None = None  # the worker, None in the process of the loader
        self._samples = 0
        self._check_first_rows(accept_pixel_mismatch)

    @property
    def num_rows(self) -> int:
        """Rows of an epoch, of all processes together."""
        return sum(block.size for block in self._reader.blocks)

    def __len__(self) -> int:
        """Samples of an epoch for this process."""
        return -(-self.num_rows // self._consumer.world_size)

    def split(self, rank: int, world_size: int, batch_size: int = 1) -> "ReinforcedStream":
        """The part of one process.

        All processes have the same number of samples: where the rows cannot be shared out evenly, up to
        `world_size - 1` come twice.

        Args:
            rank: index of the process.
            world_size: number of processes.
            batch_size: of the process's `DataLoader`, whose workers then have whole batches; one batch of an epoch may
                be smaller.
        """
        part = copy(self)
        part._epoch = self._epoch.clone().share_memory_()
        part._consumer = Consumer(rank, world_size, batch_size)
        return part

    def set_epoch(self, epoch: int) -> None:
        """The next iteration is that of epoch `epoch`, counted from 0."""
        self._epoch.fill_(epoch)
        self._samples = 0

    def state_dict(self) -> dict[str, int]:
        """Where the iteration is: its epoch, and how many samples of that it has given."""
        return {"epoch": int(self._epoch), "samples": self._samples}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """The next iteration begins where another was.

        Args:
            state: what `state_dict` returned. A loader with workers has a stream in each of them. Inside a worker, as
                torchdata's `StatefulDataLoader` calls this, it is what that worker's stream returned; before the
                workers start: `epoch`, and `batches`, the number of batches of that epoch that the loader has given.
        """
        worker = get_worker_info()
        self._resumed_in = None if worker is None else worker.id
        self.set_epoch(state["epoch"])
        self._resume, self._samples = dict(state), state.get("samples", 0)

    def collate(self, samples: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Batches samples, as `ReinforcedDataset.collate`."""
        return ReinforcedDataset.collate(self, samples)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        epoch, worker, consumer = int(self._epoch), get_worker_info(), self._consumer
        resume, self._resume = self._resume if self._resume.get("epoch") == epoch else {}, {}
        batches = resume.get("batches", 0)
        if worker is not None and resume.get("samples") and self._resumed_in != worker.id:
            raise ValueError(
                "A loader with workers resumes by batches: pass load_state_dict({'epoch': ..., 'batches': ...}), the "
                "number of batches of the epoch that it has given; or use torchdata's StatefulDataLoader, which keeps "
                "a state for each worker."
            )
        if worker is not None:  # a loader begins with its first worker, so that takes the place of whose turn it is
            place = (worker.id + batches) % worker.num_workers
            consumer = replace(consumer, worker=place, num_workers=worker.num_workers)
        given = len(range(consumer.worker, batches, consumer.num_workers))
        self._samples = resume.get("samples", given * consumer.batch_size)
        return self._counted(self.samples(epoch, consumer, self._samples))

    def _counted(self, samples: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        for sample in samples:
            self._samples += 1
            yield sample

    def samples(self, epoch: int, consumer: Consumer, first: int = 0) -> Iterator[dict[str, Any]]:
        """The samples of one consumer, whatever the state of this stream is.

        Args:
            epoch: counted from 0.
            consumer: whose part it is.
            first: number of samples that are left out; they are not read.
        """
        in_run = self._reader.shards_in_run
        blocks = epoch_blocks(self._reader.blocks, self.seed, epoch, consumer, in_run)
        remaining = windows(blocks, _RUNS_AT_ONCE, in_run)
        while remaining and first >= sum(block.size for block in remaining[0]):
            first -= sum(block.size for block in remaining.pop(0))
        for blocks, window in zip(remaining, self._reader.read_ahead(remaining), strict=True):
            used = window.used[window.source_rows >= 0]
            if not used.any():
                raise ValueError(f"The source has none of the images of {len(window.used)} rows in a row. {REMEDY}")
            dataset = self._replay(window)
            key = hash_uniform(self.seed, _WINDOW_STREAM, blocks[0].shard, blocks[0].first)[0]
            sampler = EpochSampler(dataset, int(key >> np.uint64(1)))
            sampler.set_epoch(epoch)
            order = [index for index in sampler if used[index % len(dataset)]]
            order = np.resize(order, sum(block.size for block in blocks)).tolist()  # fills up for missing rows
            for start in range(first, len(order), _REPLAYED_AT_ONCE):
                with _remedy():
                    samples = dataset.__getitems__(order[start : start + _REPLAYED_AT_ONCE])
                yield from samples
            first = 0

    def _replay(self, window: Window, accept_pixel_mismatch: bool = True) -> ReinforcedDataset:
        """A window as a data set of its own, without the rows whose image is missing."""
        return ReinforcedDataset(
            Dataset(window.table, fingerprint="rows"),
            self.config,
            None if window.images is None else Dataset(window.images, fingerprint="images"),
            image_size=self.image_size,
            seed=self.seed,
            accept_pixel_mismatch=accept_pixel_mismatch,
            source_rows=window.source_rows,
            **self._options,
        )

    def _check_first_rows(self, accept_pixel_mismatch: bool) -> None:
        """Fails at once where the source, its order or the pixels are not those that were reinforced."""
        rows = np.array([view.row for view in self.config.pixels.reference_views], dtype=np.int64)
        places = self._reader.places(rows).tolist()
        chosen: dict[Block, Block] = {}
        for block in self._reader.blocks:
            needed = [place - block.place for place in places if 0 <= place - block.place < PARTNER_BLOCK]
            if needed or not chosen:
                chosen[block] = replace(block, last=min(block.last, block.first + max(needed, default=0) + 1))
        window = self._reader.read(list(chosen.values()))
        if self.policy.mix_operations:
            params = pc.list_flatten(window.table.column(schema.AUGMENTATION_PARAMS))
            partners = set(pc.unique(pc.struct_field(params, schema.PARTNER_ROW)).to_pylist()) - {None}
            if not partners <= set(window.table.column(schema.SOURCE_ROW).to_pylist()):
                raise ValueError(
                    "The images of this data set are mixed with others from anywhere in it, as in those that the "
                    "original implementation published, so they cannot be streamed. Load it without streaming."
                )
        if (window.source_rows >= 0).any():
            with _remedy():
                self._replay(window, accept_pixel_mismatch).image(0)


@contextmanager
def _remedy() -> Iterator[None]:
    try:
        yield
    except WrongImageError as error:
        raise WrongImageError(f"{error} {REMEDY}") from error
