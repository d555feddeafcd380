"""The callable that `datasets.map` maps: N augmented views of every image, teachers' answers as columns.

Everything random is a function of (seed, source row, reinforcement index), and the rows that a teacher sees together
are fixed blocks, so shards, workers and processes do not change the result.
"""

import errno
from collections import defaultdict
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
from hf_reinforce.images import ImageError, UnreachableError
from hf_reinforce.randomness import PARTNER_BLOCK, partner_positions
from hf_reinforce.sources.labels import check_labels
from hf_reinforce.targets import AnyTeacher, Target

_TROUBLES = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.ESTALE, errno.ENOTCONN}  # not the data's

_Views = tuple[Tensor, tuple[Tensor, dict[str, Tensor]] | None]
"""Views uint8 [V, 3, S, S]; for a policy that mixes, each one's partner [V] and the mixing parameters."""


class Reinforcer:
    """The callable that `datasets.map` maps: it adds reinforcement columns to batches of a dataset.

    `reinforce` maps it, and shards, resumes and writes the result.

    Args:
        teacher: answers to the views; several teachers have a column each.
        policy: makes the views.
        num_samples: N, reinforcements per image, >= 1.
        seed: seed of the augmentation parameters.
        image_column: the image column.
        label_column: the integer label column, checked against the teacher's classes; None without labels.
        first_sample: index of the first reinforcement, for adding to existing ones.
        embed_images: keep the image column.
        on_error: `"raise"` or `"skip"` for an image that cannot be decoded.
        num_workers: threads that decode and augment.
        batch_size: views that the teacher sees at once, rounded down to whole blocks of `PARTNER_BLOCK`.
        device: the teacher's device.
        target_options: settings of the teachers' targets, such as K, the classes that are stored of a distribution.

    Attributes:
        targets: what is stored of each teacher's answers.
        skipped: row and error of each image that could not be decoded.

    Raises:
        ValueError: if N or a setting of a target is out of range, or two targets have the same column.

    Example:
        from hf_reinforce import Reinforcer, load_policy, load_source, load_teacher

        dataset = load_source("uoft-cs/cifar100").select(range(20)).remove_columns("fine_label")
        teacher = load_teacher("timm/tf_efficientnet_lite0.in1k")
        reinforcer = Reinforcer(teacher, load_policy("small_crop", 32), num_samples=2, image_column="img")
        reinforced = dataset.with_format("arrow").map(
            reinforcer,
            batched=True,
            batch_size=64,
            with_indices=True,
            remove_columns=["img"],
            features=reinforcer.features(dataset.features),
        )
    """

    version = schema.SCHEMA_VERSION  # part of the fingerprint that `datasets.map` caches by

    def __init__(
        self,
        teacher: AnyTeacher | Sequence[AnyTeacher],
        policy: AugmentationPolicy,
        num_samples: int,
        seed: int = 0,
        image_column: str = "image",
        label_column: str | None = None,
        first_sample: int = 0,
        embed_images: bool = False,
        on_error: str = "raise",
        num_workers: int = 2,
        batch_size: int = PARTNER_BLOCK,
        device: str | torch.device = "cpu",
        **target_options: Any,
    ) -> None:
        if num_samples <= first_sample:
            raise ValueError(f"num_samples must be at least {first_sample + 1}, not {num_samples}.")
        self.teachers = [*teacher] if isinstance(teacher, Sequence) else [teacher]
        self.targets = [each.target(**target_options) for each in self.teachers]
        columns = [target.column for target in self.targets]
        if len(set(columns)) < len(columns):
            raise ValueError(f"Each target needs a column of its own; the teachers' columns are {columns}.")
        if any(target.per == "text" for target in self.targets):
            raise ValueError("A target per text cannot be generated yet; leave out its teacher.")
        if on_error not in ("raise", "skip"):
            raise ValueError(f"on_error must be 'raise' or 'skip', not {on_error!r}.")
        self.policy, self.num_samples, self.seed = policy, num_samples, seed
        self.image_column, self.label_column, self.embed_images = image_column, label_column, embed_images
        self.first_sample, self.on_error, self.device = first_sample, on_error, torch.device(device)
        self.num_workers, self.slots_per_batch = max(1, num_workers), max(1, batch_size // PARTNER_BLOCK)
        self.skipped: list[tuple[int, str]] = []
        self.readable: dict[str, Any] | None = None  # the last image that could be read
        self.report: Callable[[int], object] = _silent  # told how many views were answered
        self._to_device()

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._to_device()  # a teacher that travels by name is loaded on the CPU

    def _to_device(self) -> None:
        for teacher in self.teachers:
            teacher.to(self.device)

    @property
    def _asked(self) -> list[tuple[AnyTeacher, Target]]:
        """The teachers that answer, with their targets: what is stored per row is there before N is raised."""
        pairs = zip(self.teachers, self.targets, strict=True)
        return [(teacher, target) for teacher, target in pairs if target.per == "view" or not self.first_sample]

    def features(self, source: Features) -> Features:
        """Features of the dataset that this reinforcer makes out of one with the features `source`."""
        kept = {name: f for name, f in source.items() if self.embed_images or name != self.image_column}
        if self.embed_images:
            kept[self.image_column] = Image()
        added = self.num_samples - self.first_sample
        columns = {target.column: target.column_feature(added) for _, target in self._asked}
        return schema.reinforced_features(kept, self.policy.feature, added, columns)

    def __call__(
        self, batch: pa.Table, indices: Sequence[int], order: Sequence[int] | None = None, offset: int = 0
    ) -> pa.Table:
        """Reinforces some blocks of rows; while the teacher answers, the next views are made.

        Args:
            batch: rows in arrow format, starting at a multiple of `PARTNER_BLOCK`.
            indices: their positions in the dataset that is mapped.
            order: source row at each of these positions, where they are not the same.
            offset: position of the mapped dataset in the whole, a multiple of `PARTNER_BLOCK`.

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
            self.check_labels(batch.column(self.label_column), source_rows)
        blocks: list[_Block] = []
        first = (offset + indices[0]) // PARTNER_BLOCK
        with ThreadPoolExecutor(self.num_workers) as pool, ThreadPoolExecutor(1) as stage:

            def questions() -> Iterator[Callable[[], None]]:
                for start in range(0, len(batch), PARTNER_BLOCK):
                    rows = source_rows[start : start + PARTNER_BLOCK]
                    part = batch.slice(start, PARTNER_BLOCK)
                    block = _Block(self, part, rows, first + start // PARTNER_BLOCK, pool)
                    blocks.append(block)
                    yield partial(self._ask_about_rows, block, block.images)
                    yield from (partial(self._ask_about_views, block, *item) for item in block.view_batches())

            for ask in _ahead(stage, questions()):
                ask()
        return pa.concat_tables([self._table(block) for block in blocks])

    def check_labels(self, values: pa.ChunkedArray, rows: Sequence[int] | None = None) -> None:
        """Refuses labels that are no class of the targets; null is none, and passes.

        Args:
            values: integers.
            rows: of the source, default positions.

        Raises:
            ValueError: if there is one; the message names the first.
        """
        remedy = "fix the label, or reinforce without a label column: label_column='' (--label_column_name '')"
        for target in (target for target in self.targets if target.class_count is not None):
            check_labels(values, target.class_count, "the teacher's", remedy, rows, nulls=True)

    def _ask_about_rows(self, block: "_Block", decoded: list[Tensor]) -> None:
        for teacher, target in self._asked:
            if target.per == "row" and decoded:
                block.answers[target.column].append(target.encode(teacher(decoded)))

    def _ask_about_views(
        self, block: "_Block", views: Tensor, mixing: tuple[Tensor, dict[str, Tensor]] | None
    ) -> None:
        pixels = views.to(self.device, non_blocking=True)
        if mixing is not None:
            partner, params = mixing
            pixels = pixels.float()
            params = {name: value.to(self.device) for name, value in params.items()}
            pixels = self.policy.mix(pixels, pixels[partner.to(self.device)], params)
        for teacher, target in self._asked:
            if target.per == "view":
                block.answers[target.column].append(target.encode(teacher(pixels)))
        self.report(len(views))

    def _table(self, block: "_Block") -> pa.Table:
        added, kept = self.num_samples - self.first_sample, len(block.rows)
        arrow = self.features(Features.from_arrow_schema(block.batch.schema)).arrow_schema
        params = [block.params[slot][i] for i in range(kept) for slot in range(added)]
        params_type = arrow.field(schema.AUGMENTATION_PARAMS).type
        columns: dict[str, pa.Array] = {
            schema.SOURCE_ROW: pa.array(block.rows, pa.int64()),
            schema.IMAGE_HASH: pa.array(block.hashes, pa.string()),
            schema.AUGMENTATION_PARAMS: pa.FixedSizeListArray.from_arrays(
                pa.array(params, params_type.value_type), type=params_type
            ),
        }
        slots = np.arange(added * kept).reshape(added, kept).T  # the teacher saw [slot, row]; a row stores [row, slot]
        for _, target in self._asked:
            records = pa.concat_arrays([pa.array([], target.arrow_type), *block.answers[target.column]])
            if target.per == "view":
                kind = arrow.field(target.column).type
                records = pa.FixedSizeListArray.from_arrays(records.take(pa.array(slots.reshape(-1))), type=kind)
            columns[target.column] = records
        if self.embed_images:
            columns[self.image_column] = pa.array(
                [{"bytes": data, "path": None} for data in block.encoded], Image().pa_type
            )
        table = block.batch.take(pa.array(block.kept, pa.int64()))
        arrays = [columns[name] if name in columns else table.column(name) for name in arrow.names]
        return pa.table(arrays, names=arrow.names).cast(arrow)


def _silent(views: int) -> None:
    pass


def _ahead(stage: ThreadPoolExecutor, items: Iterator[Any]) -> Iterator[Any]:
    """Iterates with the next item being made in the background while the current one is used."""
    done = object()
    future = stage.submit(next, items, done)
    while (item := future.result()) is not done:
        future = stage.submit(next, items, done)
        yield item


def _read_image(scalar: Any, row: int, policy: AugmentationPolicy) -> tuple[images.Encoded, Tensor] | ImageError:
    """The encoded and the decoded image (uint8 [3, H, W]) of a row, or the error that names the row.

    Args:
        scalar: Arrow value of an image column.
        row: of the source.
        policy: that will make views of it, which may refuse its size.
    """
    item = scalar.as_py()
    try:
        encoded = images.read_encoded(item)
        image = images.decode(encoded)
        policy.check_size(*image.shape[1:])
        return encoded, image
    except ImageError as error:
        found = type(error)(f"Row {row} (path {(item or {}).get('path')!r}): {error}")
        found.__cause__ = error.__cause__
        return found


def source_is_gone(failed: list[tuple[int, ImageError]], readable: dict[str, Any] | None) -> bool:
    """Whether files are missing because their disk or server is: then what could be read before cannot be read now.

    Args:
        failed: rows and their errors.
        readable: the value of an image column that could be read, None if none could.
    """
    missing = [error for _, error in failed if isinstance(error, UnreachableError)]
    if any(getattr(error.__cause__, "errno", None) in _TROUBLES for error in missing):
        return True
    if not missing or readable is None:  # then only a whole block says more than one row
        return len(missing) == PARTNER_BLOCK
    try:
        images.read_encoded(readable)
    except UnreachableError:
        return True
    return False


class _Block:
    """Decoded images of one block, and the parameters and views of their reinforcements.

    Attributes:
        batch: its rows of the source.
        answers: records of each target's column, as the teachers answered: per view [slot, image].
        images: the decoded images; gone after `view_batches`.
        kept: positions in the batch of the images that could be decoded.
        rows: their source rows.
        encoded: their encoded bytes.
        hashes: the hashes of these.
        params: [slot][image] parameters, from the reinforcer's first slot on.
    """

    def __init__(
        self, reinforcer: Reinforcer, batch: pa.Table, rows: list[int], index: int, pool: ThreadPoolExecutor
    ) -> None:
        self.batch, self.answers = batch, defaultdict[str, list[pa.Array]](list)
        self._reinforcer, self._index, self._pool, self._size = reinforcer, index, pool, len(rows)
        column = batch.column(reinforcer.image_column).combine_chunks()
        read = partial(_read_image, policy=reinforcer.policy)
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
        self.images = [image for _, _, image in good]
        self._partners: list[list[int]] = []
        self.params = [self._sample(slot) for slot in range(reinforcer.first_sample, reinforcer.num_samples)]

    def _sample(self, slot: int) -> list[dict[str, Any]]:
        """Parameters of every image at one slot; also notes the position of each image's partner among the kept."""
        policy, seed = self._reinforcer.policy, self._reinforcer.seed
        sizes = [image.shape[1:] for image in self.images]
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
        policy, step, count = self._reinforcer.policy, self._reinforcer.slots_per_batch, len(self.images)
        for start in range(0, len(self.params), step) if count else ():
            chunk = self.params[start : start + step]
            flat = [params for slot in chunk for params in slot]
            views = images.stack(list(self._pool.map(policy.apply, self.images * len(chunk), flat)))
            if not policy.mix_operations:
                yield views, None
                continue
            partners = [p + count * i for i in range(len(chunk)) for p in self._partners[start + i]]
            yield views, (torch.tensor(partners), policy.collate_mix(flat))
        self.images = []
