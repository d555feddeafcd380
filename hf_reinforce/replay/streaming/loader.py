"""What `Trainer` iterates over when it trains on a stream: batches by their numbers."""

from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch
from accelerate.data_loader import prepare_data_loader
from torch.utils.data import DataLoader
from transformers import TrainingArguments

from hf_reinforce.replay.streaming.partition import Consumer
from hf_reinforce.replay.streaming.stream import ReinforcedStream


class StreamBatches(torch.utils.data.Dataset[Any]):
    """The batches of a process's part of a stream, by their numbers: whoever skips some does not read them.

    Batch `b` of a loader with W workers belongs to the part of worker `b % W`. Asked for the batches of a part in
    their order, as a worker is, this reads on; asked for any other, it goes there.

    Args:
        stream: the stream.
        consumer: the process, and its batch size.
        num_workers: of the loader; without workers 1.
    """

    def __init__(self, stream: ReinforcedStream, consumer: Consumer, num_workers: int) -> None:
        self.stream = stream
        self._consumers = [
            Consumer(consumer.rank, consumer.world_size, consumer.batch_size, worker, num_workers)
            for worker in range(num_workers)
        ]
        self._rows = [stop - start for start, stop in (part.part(stream.num_rows) for part in self._consumers)]
        self._samples: Iterator[dict[str, Any]] = iter(())
        self._following: int | None = None  # the number of the batch that comes next

    @property
    def num_rows(self) -> int:
        """Rows of an epoch, of all processes together."""
        return self.stream.num_rows

    def __len__(self) -> int:
        """Batches of an epoch."""
        return sum(-(-rows // self._consumers[0].batch_size) for rows in self._rows)

    def size(self, batch: int) -> int:
        """Samples of a batch of an epoch: all have as many but one, which may have fewer."""
        turn, worker = divmod(batch, len(self._rows))
        size = self._consumers[worker].batch_size
        return min(size, self._rows[worker] - turn * size)

    def __getitems__(self, numbers: list[int]) -> list[dict[str, Any]]:
        """The samples of one batch, `numbers` is `[epoch * len(self) + batch]`."""
        (number,) = numbers
        epoch, batch = divmod(number, len(self))
        turn, worker = divmod(batch, len(self._rows))
        if number != self._following:
            consumer = self._consumers[worker]
            self._samples = self.stream.samples(epoch, consumer, turn * consumer.batch_size)
        found = list(islice(self._samples, self.size(batch)))
        following = batch + len(self._rows)
        self._following = epoch * len(self) + following
        if following >= len(self):
            self._samples, self._following = iter(()), None
        return found


class BatchNumbers(torch.utils.data.Sampler[list[int]]):
    """The batches of an epoch, in their order.

    Args:
        batches: of which stream.
        batch_size: samples of a batch.
        drop_last: leave out a batch that has fewer.
    """

    def __init__(self, batches: StreamBatches, batch_size: int, drop_last: bool) -> None:
        self.batches, self.batch_size, self.drop_last, self.epoch = batches, batch_size, drop_last, 0

    def set_epoch(self, epoch: int) -> None:
        """The next iteration is that of epoch `epoch`, counted from 0."""
        self.epoch = int(epoch)

    def _used(self) -> list[int]:
        return [b for b in range(len(self.batches)) if not self.drop_last or self.batches.size(b) == self.batch_size]

    def __len__(self) -> int:
        return len(self._used())

    def __iter__(self) -> Iterator[list[int]]:
        return iter([[self.epoch * len(self.batches) + batch] for batch in self._used()])


def training_loader(stream: ReinforcedStream, args: TrainingArguments, batch_size: int, collate_fn: Any) -> Any:
    """What `Trainer` iterates over: the batches of this process, on its device.

    Of a data set without an order, accelerate would have the first process read for all others, or each process read
    everything, and a resumed run would make all batches that it skips.

    Args:
        stream: the stream, not split.
        args: arguments of the trainer.
        batch_size: samples of a batch of one process.
        collate_fn: batches samples.
    """
    consumer = Consumer(args.process_index, args.world_size, batch_size)
    batches = StreamBatches(stream, consumer, max(args.dataloader_num_workers, 1))
    loader = DataLoader(
        batches,
        batch_sampler=BatchNumbers(batches, batch_size, args.dataloader_drop_last),
        collate_fn=collate_fn,
        num_workers=args.dataloader_num_workers,
        pin_memory=args.dataloader_pin_memory,
        persistent_workers=args.dataloader_persistent_workers,
        multiprocessing_context=args.dataloader_multiprocessing_context,
        prefetch_factor=args.dataloader_prefetch_factor,
    )
    return prepare_data_loader(loader, args.device, 1, 0, put_on_device=True, dispatch_batches=False)
