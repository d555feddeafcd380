"""The callable that `datasets.map` maps: N augmented views of every image, the teacher's answers as columns.

Everything random is a function of (seed, source row, reinforcement index), and the rows that a teacher sees together
are fixed blocks, so shards, workers and processes do not change the result.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from datasets import Features, Image
from torch import Tensor

from hf_reinforce import images, schema
from hf_reinforce.augmentations.policies import AugmentationPolicy
from hf_reinforce.generation.reading import read_image, source_is_gone
from hf_reinforce.images import ImageError
from hf_reinforce.models.teachers import Teacher
from hf_reinforce.randomness import PARTNER_BLOCK, partner_positions
from hf_reinforce.sources.labels import check_labels
from hf_reinforce.targets.class_distribution import Targets, encode, top_k_targets

_Views = tuple[Tensor, tuple[Tensor, dict[str, Tensor]] | None]
"""Views uint8 [V, 3, S, S]; for a policy that mixes, each one's partner [V] and the mixing parameters."""


class Reinforcer:
    """Adds reinforcement columns to batches of a data set.

        dataset.with_format("arrow").map(
            reinforcer, batched=True, batch_size=8 * PARTNER_BLOCK, with_indices=True,
            remove_columns=["image"], features=reinforcer.features(dataset.features),
        )

    `reinforce` does this, and shards, resumes and writes the result.

    Args:
        teacher: answers to the views.
        policy: makes the views.
        num_samples: N, reinforcements per image, >= 1.
        top_k: K, classes stored per reinforcement, 1 <= K <= C, the teacher's classes; default min(10, C).
        seed: seed of the augmentation parameters.
        image_column: the image column.
        label_column: the integer label column, checked against the teacher's classes; None without labels.
        first_sample: index of the first reinforcement, for adding to existing ones.
        embed_images: keep the image column.
        on_error: `"raise"` or `"skip"` for an image that cannot be decoded.
        num_workers: threads that decode and augment.
        batch_size: views that the teacher sees at once, rounded down to whole blocks of `PARTNER_BLOCK`.
        device: the teacher's device.

    Raises:
        ValueError: if N or K is out of range.
    """

    version = schema.SCHEMA_VERSION  # part of the fingerprint that `datasets.map` caches by

    def __init__(
        self,
        teacher: Teacher,
        policy: AugmentationPolicy,
        num_samples: int,
        top_k: int | None = None,
        seed: int = 0,
        image_column: str = "image",
        label_column: str | None = None,
        first_sample: int = 0,
        embed_images: bool = False,
        on_error: str = "raise",
        num_workers: int = 2,
        batch_size: int = PARTNER_BLOCK,
        device: str | torch.device = "cpu",
    ) -> None:
        if num_samples <= first_sample:
            raise ValueError(f"num_samples must be at least {first_sample + 1}, not {num_samples}.")
        top_k = min(10, teacher.num_classes) if top_k is None else top_k
        if not 1 <= top_k <= teacher.num_classes:
            raise ValueError(f"top_k must lie between 1 and the {teacher.num_classes} classes, not {top_k}.")
        if on_error not in ("raise", "skip"):
            raise ValueError(f"on_error must be 'raise' or 'skip', not {on_error!r}.")
        teacher.to(device)
        self.teacher, self.policy, self.num_samples, self.top_k, self.seed = teacher, policy, num_samples, top_k, seed
        self.image_column, self.label_column, self.embed_images = image_column, label_column, embed_images
        self.first_sample, self.on_error, self.device = first_sample, on_error, torch.device(device)
        self.num_workers, self.slots_per_batch = max(1, num_workers), max(1, batch_size // PARTNER_BLOCK)
        self.skipped: list[tuple[int, str]] = []
        self.readable: dict[str, Any] | None = None  # the last image that could be read
        self.report: Callable[[int], object] = _silent  # told how many views were answered

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.teacher.to(self.device)  # a teacher that travels by name is loaded on the CPU

    def features(self, source: Features) -> Features:
        """Features of the data set that this reinforcer makes out of one with the features `source`."""
        kept = {name: f for name, f in source.items() if self.embed_images or name != self.image_column}
        if self.embed_images:
            kept[self.image_column] = Image()
        added = self.num_samples - self.first_sample
        return schema.reinforced_features(kept, self.policy.feature, added, self.top_k, self.teacher.num_classes)

    def __call__(
        self, batch: pa.Table, indices: Sequence[int], order: Sequence[int] | None = None, offset: int = 0
    ) -> pa.Table:
        """Reinforces some blocks of rows; while the teacher answers, the next views are made.

        Args:
            batch: rows in arrow format, starting at a multiple of `PARTNER_BLOCK`.
            indices: their positions in the data set that is mapped.
            order: source row at each of these positions, where they are not the same.
            offset: position of the mapped data set in the whole, a multiple of `PARTNER_BLOCK`.

        Returns:
            Table of the kept source columns and the reinforcement columns.

        Raises:
            ImageError: for an image that cannot be decoded, unless `on_error="skip"`.
            ValueError: for a label out of range, or a batch that does not start with a block.
        """
        if not isinstance(batch, pa.Table):
            raise ValueError('Reinforcer reads arrow tables; map it over dataset.with_format("arrow").')
        if self.policy.mix_operations and indices[0] % PARTNER_BLOCK:
            raise ValueError(
                f"Policy {self.policy.name!r} mixes images inside blocks of {PARTNER_BLOCK} rows; "
                f"map with batch_size={PARTNER_BLOCK}, or a multiple of it."
            )
        source_rows = [offset + index if order is None else int(order[index]) for index in indices]
        if self.label_column is not None:
            self.check_labels(batch.column(self.label_column), self.teacher, source_rows)
        blocks: list[_Block] = []
        first = (offset + indices[0]) // PARTNER_BLOCK
        with ThreadPoolExecutor(self.num_workers) as pool, ThreadPoolExecutor(1) as stage:

            def views() -> Iterator[tuple[_Block, _Views]]:
                for start in range(0, len(batch), PARTNER_BLOCK):
                    rows = source_rows[start : start + PARTNER_BLOCK]
                    part = batch.slice(start, PARTNER_BLOCK)
                    blocks.append(_Block(self, part, rows, first + start // PARTNER_BLOCK, pool))
                    yield from ((blocks[-1], item) for item in blocks[-1].view_batches())

            for block, item in _ahead(stage, views()):
                block.answers.append(self._targets(*item))
                self.report(len(item[0]))
        return pa.concat_tables([self._table(block) for block in blocks])

    @staticmethod
    def check_labels(values: pa.ChunkedArray, teacher: Teacher, rows: Sequence[int] | None = None) -> None:
        """Refuses labels that are no class of the teacher; null is none, and passes.

        Args:
            values: integers.
            teacher: whose classes they are.
            rows: of the source, default positions.

        Raises:
            ValueError: if there is one; the message names the first.
        """
        remedy = "fix the label, or reinforce without a label column: label_column='' (--label_column_name '')"
        check_labels(values, teacher.num_classes, "the teacher's", remedy, rows, nulls=True)

    def _targets(self, views: Tensor, mixing: tuple[Tensor, dict[str, Tensor]] | None) -> Targets:
        pixels = views.to(self.device, non_blocking=True)
        if mixing is not None:
            partner, params = mixing
            pixels = pixels.float()
            params = {name: value.to(self.device) for name, value in params.items()}
            pixels = self.policy.mix(pixels, pixels[partner.to(self.device)], params)
        return encode(top_k_targets(self.teacher(pixels), self.top_k)).to("cpu")

    def _table(self, block: "_Block") -> pa.Table:
        added, kept = self.num_samples - self.first_sample, len(block.rows)
        arrow = self.features(Features.from_arrow_schema(block.batch.schema)).arrow_schema
        params = [block.params[slot][i] for i in range(kept) for slot in range(added)]
        params_type = arrow.field(schema.AUGMENTATION_PARAMS).type
        logits_type = arrow.field(schema.TEACHER_LOGITS).type
        columns: dict[str, pa.Array] = {
            schema.SOURCE_ROW: pa.array(block.rows, pa.int64()),
            schema.IMAGE_HASH: pa.array(block.hashes, pa.string()),
            schema.AUGMENTATION_PARAMS: pa.FixedSizeListArray.from_arrays(
                pa.array(params, params_type.value_type), type=params_type
            ),
            schema.TEACHER_LOGITS: _logits_array(block.answers, kept, added, logits_type),
        }
        if self.embed_images:
            columns[self.image_column] = pa.array(
                [{"bytes": data, "path": None} for data in block.encoded], Image().pa_type
            )
        table = block.batch.take(pa.array(block.kept, pa.int64()))
        arrays = [columns[name] if name in columns else table.column(name) for name in arrow.names]
        return pa.table(arrays, names=arrow.names).cast(arrow)


def _silent(views: int) -> None:
    pass


def _logits_array(answers: list[Targets], kept: int, added: int, kind: Any) -> pa.Array:
    def rows_first(parts: list[Tensor], width: int) -> np.ndarray[Any, Any]:
        # The teacher saw [slot, row]; a row stores [row, slot].
        joined = torch.cat(parts) if parts else torch.empty(0)
        return joined.reshape(added, kept, width).transpose(0, 1).reshape(-1).numpy()

    item = kind.value_type
    label_type, value_type = item.field(schema.LABEL).type, item.field(schema.VALUE).type
    label = rows_first([a.label for a in answers], label_type.list_size).astype(
        label_type.value_type.to_pandas_dtype()
    )
    value = rows_first([a.value for a in answers], value_type.list_size).astype(np.float32)
    tail = rows_first([a.tail.unsqueeze(-1) for a in answers], 1).astype(np.float32)
    lists = [
        pa.FixedSizeListArray.from_arrays(pa.array(label), type=label_type),
        pa.FixedSizeListArray.from_arrays(pa.array(value), type=value_type),
        pa.array(tail),
    ]
    return pa.FixedSizeListArray.from_arrays(pa.StructArray.from_arrays(lists, fields=list(item)), type=kind)


def _ahead(stage: ThreadPoolExecutor, items: Iterator[Any]) -> Iterator[Any]:
    """Iterates with the next item being made in the background while the current one is used."""
    done = object()
    future = stage.submit(next, items, done)
    while (item := future.result()) is not done:
        future = stage.submit(next, items, done)
        yield item


class _Block:
    """Decoded images of one block, and the parameters and views of their reinforcements.

    Attributes:
        batch: its rows of the source.
        answers: the teacher's, one item for each item of `view_batches`.
        kept: positions in the batch of the images that could be decoded.
        rows: their source rows.
        encoded: their encoded bytes.
        hashes: the hashes of these.
        params: [slot][image] parameters, from the reinforcer's first slot on.
    """

    def __init__(
        self, reinforcer: Reinforcer, batch: pa.Table, rows: list[int], index: int, pool: ThreadPoolExecutor
    ) -> None:
        self.batch, self.answers = batch, list[Targets]()
        self._reinforcer, self._index, self._pool, self._size = reinforcer, index, pool, len(rows)
        column = batch.column(reinforcer.image_column).combine_chunks()
        read = partial(read_image, policy=reinforcer.policy)
        decoded = list(pool.map(read, column, rows))
        failed = [(row, item) for row, item in zip(rows, decoded, strict=True) if isinstance(item, ImageError)]
        good = [(i, *item) for i, item in enumerate(decoded) if not isinstance(item, ImageError)]
        self.kept = [position for position, _, _ in good]
        if good:
            reinforcer.readable = column[self.kept[-1]].as_py()
        if failed and (reinforcer.on_error == "raise" or source_is_gone(failed, reinforcer.readable)):
            raise failed[0][1]
        reinforcer.skipped.extend((row, str(error)) for row, error in failed)
        self.rows = [rows[position] for position in self.kept]
        self.encoded = [encoded for _, encoded, _ in good]
        self.hashes = [images.image_hash(encoded) for encoded in self.encoded]
        self._images = [image for _, _, image in good]
        self._partners: list[list[int]] = []
        self.params = [self._sample(slot) for slot in range(reinforcer.first_sample, reinforcer.num_samples)]

    def _sample(self, slot: int) -> list[dict[str, Any]]:
        """Parameters of every image at one slot; also notes the position of each image's partner among the kept."""
        policy, seed = self._reinforcer.policy, self._reinforcer.seed
        sizes = [image.shape[1:] for image in self._images]
        params = [policy.sample(seed, row, slot, *size) for row, size in zip(self.rows, sizes, strict=True)]
        if not policy.mix_operations:
            return params
        pairing = partner_positions(seed, self._index, slot, self._size)
        where = {position: i for i, position in enumerate(self.kept)}
        partners = [where.get(int(pairing[position]), -1) for position in self.kept]
        for i, item in enumerate(params):
            if partners[i] < 0:  # the partner could not be decoded, so this view stays unmixed
                item |= {operation.field: None for operation in policy.mix_operations}
            item[schema.PARTNER_ROW] = self.rows[partners[i]] if policy.mixes(item) else None
            item[schema.PARTNER_PARAMS] = None
        self._partners.append([max(partner, 0) for partner in partners])
        return params

    def view_batches(self) -> Iterator[_Views]:
        """Views of all images, a few slots at a time; afterwards the decoded images are gone."""
        policy, step, count = self._reinforcer.policy, self._reinforcer.slots_per_batch, len(self._images)
        for start in range(0, len(self.params), step) if count else ():
            chunk = self.params[start : start + step]
            flat = [params for slot in chunk for params in slot]
            views = images.stack(list(self._pool.map(policy.apply, self._images * len(chunk), flat)))
            if not policy.mix_operations:
                yield views, None
                continue
            partners = [p + count * i for i in range(len(chunk)) for p in self._partners[start + i]]
            yield views, (torch.tensor(partners), policy.collate_mix(flat))
        self._images = []
