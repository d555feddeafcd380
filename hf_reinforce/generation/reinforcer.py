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
from numpy.typing import NDArray
from torch import Tensor

from hf_reinforce import images, schema
from hf_reinforce.augmentations.policies import AugmentationPolicy
from hf_reinforce.images import ImageError, UnreachableError
from hf_reinforce.randomness import PARTNER_BLOCK, partner_positions
from hf_reinforce.sources.labels import check_labels
from hf_reinforce.store.config import check_counts
from hf_reinforce.targets import AnyTeacher, Per, Target

_TROUBLES = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.ESTALE, errno.ENOTCONN}  # not the data's


class Reinforcer:
    """The callable that `datasets.map` maps: it adds reinforcement columns to batches of a dataset.

    `reinforce` uses it, and shards, resumes and writes the result.

    Args:
        teacher: answers to the views; several teachers have a column each.
        policy: makes the views.
        num_samples: N, reinforcements per image, >= 1.
        seed: seed of the augmentation parameters.
        image_column: the image column.
        label_column: the integer label column, checked against the teacher's classes; None without labels.
        first_sample: index of the first reinforcement, for adding to existing ones.
        embed_images: keep the image column.
        on_error: `"raise"` stops at an image that cannot be decoded, `"skip"` records it and goes on.
        num_workers: threads that decode and augment.
        batch_size: views that the teacher sees at once, rounded down to whole blocks of `PARTNER_BLOCK`.
        device: the teacher's device.
        target_options: settings of the targets: of a distribution over classes `top_k`, how many are stored of each
            view, default 10, or all where there are fewer.

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
        check_counts(batch_size=batch_size)
        if num_samples <= first_sample:
            raise ValueError(f"num_samples must be at least {first_sample + 1}, not {num_samples}.")
        if on_error not in ("raise", "skip"):
            raise ValueError(f"on_error must be 'raise' or 'skip', not {on_error!r}.")
        self.teachers = as_list(teacher, policy)
        self.targets = [each.target(**target_options) for each in self.teachers]
        columns = [target.column for target in self.targets]
        if len(set(columns)) < len(columns):
            raise ValueError(f"Each target needs a column of its own; the teachers' columns are {columns}.")
        self.policy, self.num_samples, self.seed = policy, num_samples, seed
        self.image_column, self.label_column, self.embed_images = image_column, label_column, embed_images
        self.first_sample, self.on_error, self.device = first_sample, on_error, torch.device(device)
        self.num_workers, self.slots_per_batch = max(1, num_workers), max(1, batch_size // PARTNER_BLOCK)
        self.skipped: list[tuple[int, str]] = []
        self.readable: dict[str, Any] | None = None  # the last image that could be read
        self.report: Callable[[int], object] = lambda views: None  # told how many are answered, or never will be

    @property
    def asked(self) -> list[tuple[AnyTeacher, Target]]:
        """The teachers that answer, with their targets: what is stored per row is there before N is raised."""
        pairs = zip(self.teachers, self.targets, strict=True)
        return [(teacher, target) for teacher, target in pairs if target.per == "view" or not self.first_sample]

    def features(self, source: Features) -> Features:
        """Features of the dataset that this reinforcer makes out of one with the features `source`."""
        kept = {name: f for name, f in source.items() if self.embed_images or name != self.image_column}
        if self.embed_images:
            kept[self.image_column] = Image()
        added = self.num_samples - self.first_sample
        columns = {target.column: target.column_feature(added) for _, target in self.asked}
        return schema.reinforced_features(kept, self.policy.feature, added, columns)

    def __call__(self, batch: pa.Table, indices: Sequence[int], order: Sequence[int] | None = None) -> pa.Table:
        """Reinforces some blocks of rows; while the teacher answers, the next views are made.

        Args:
            batch: rows in arrow format, starting at a multiple of `PARTNER_BLOCK`.
            indices: their positions in the dataset that is mapped.
            order: source row at each position of the whole dataset, where they are not the same.

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
        rows = [index if order is None else int(order[index]) for index in indices]
        if self.label_column is not None:
            self.check_labels(batch.column(self.label_column), rows)
        for teacher in self.teachers:  # one that travelled to another process by name was loaded on the CPU
            teacher.to(self.device)
        blocks: list[_Block] = []

        def questions() -> Iterator[tuple[_Block, Any]]:
            for start in range(0, len(batch), PARTNER_BLOCK):
                index = (indices[0] + start) // PARTNER_BLOCK
                part = batch.slice(start, PARTNER_BLOCK)
                blocks.append(_Block(self, part, rows[start : start + PARTNER_BLOCK], index, pool))
                yield from ((blocks[-1], question) for question in blocks[-1].questions(pool))

        with ThreadPoolExecutor(self.num_workers) as pool, ThreadPoolExecutor(1) as stage:
            for block, question in _ahead(stage, questions()):
                self._ask(block, *question)
        return pa.concat_tables([block.table() for block in blocks])

    def check_labels(self, values: pa.ChunkedArray, rows: Sequence[int] | None = None) -> None:
        """Raises ValueError for labels of some rows that are no class of the targets; null is none, and passes."""
        remedy = "fix the label, or reinforce without a label column: label_column='' (--label_column_name '')"
        for target in self.targets:
            if target.class_count is not None:
                check_labels(values, target.class_count, "the teacher's", remedy, rows, nulls=True)

    def _ask(self, block: "_Block", per: Per, seen: Any, mixing: tuple[Tensor, dict[str, Tensor]] | None) -> None:
        if per == "view":
            seen = seen.to(self.device, non_blocking=True)
        if mixing is not None:
            partner, params = mixing
            seen = seen.float()
            params = {name: value.to(self.device) for name, value in params.items()}
            seen = self.policy.mix(seen, seen[partner.to(self.device)], params)
        for teacher, target in self.asked:
            if target.per == per:
                block.answers[target.column].append(target.encode(teacher(seen)))
        if per == "view":
            self.report(len(seen))


def as_list(teacher: AnyTeacher | Sequence[AnyTeacher], policy: AugmentationPolicy) -> list[AnyTeacher]:
    """The teachers, one or several; a TypeError where they or the policy are only named."""
    teachers = [*teacher] if isinstance(teacher, Sequence) else [teacher]
    if any(isinstance(each, str) for each in (*teachers, policy)):
        raise TypeError("Pass what load_teacher(NAME) and load_policy(NAME, SIZE) return, not the names.")
    return teachers


def _ahead(stage: ThreadPoolExecutor, items: Iterator[Any]) -> Iterator[Any]:
    """Iterates with the next item being made in the background while the current one is used."""
    done = object()
    future = stage.submit(next, items, done)
    while (item := future.result()) is not done:
        future = stage.submit(next, items, done)
        yield item


def source_is_gone(failed: list[tuple[int, ImageError]], readable: dict[str, Any] | None) -> bool:
    """Whether files are missing because their disk or server is: then what could be read before cannot be read now.

    `readable` is the value of an image column that could be read, None if none could.
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


def _read_image(scalar: Any, row: int, policy: AugmentationPolicy) -> tuple[images.Encoded, Tensor] | ImageError:
    """The encoded and the decoded image (uint8 [3, H, W]) of a row, or the error that names the row."""
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


class _Block:
    """One block of rows: its images, the parameters of their reinforcements, and the teachers' answers.

    Attributes:
        answers: records of each target's column, as the teachers answered: per view [slot, image].
    """

    def __init__(
        self, reinforcer: Reinforcer, batch: pa.Table, rows: list[int], index: int, pool: ThreadPoolExecutor
    ) -> None:
        self.answers = defaultdict[str, list[pa.Array]](list)
        self._reinforcer = reinforcer
        column = batch.column(reinforcer.image_column).combine_chunks()
        read = list(pool.map(partial(_read_image, policy=reinforcer.policy), column, rows))
        failed = [(row, item) for row, item in zip(rows, read, strict=True) if isinstance(item, ImageError)]
        good = {place: item for place, item in enumerate(read) if not isinstance(item, ImageError)}
        if good:
            reinforcer.readable = column[max(good)].as_py()
        if failed and (reinforcer.on_error == "raise" or source_is_gone(failed, reinforcer.readable)):
            raise failed[0][1]
        slots = range(reinforcer.first_sample, reinforcer.num_samples)
        reinforcer.skipped.extend((row, str(error)) for row, error in failed)
        reinforcer.report(len(failed) * len(slots))
        self._batch, self._rows = batch.take(pa.array(good, pa.int64())), [rows[place] for place in good]
        self._encoded = [encoded for encoded, _ in good.values()]
        self._images = [image for _, image in good.values()]
        images_of = list(zip(self._rows, self._images, strict=True))
        policy, seed = reinforcer.policy, reinforcer.seed
        self._params = [
            [policy.sample(seed, row, slot, *image.shape[1:]) for row, image in images_of] for slot in slots
        ]
        self._partners: list[list[int]] = []  # [slot][image], as the parameters: position among the images
        for slot, params in zip(slots, self._params if policy.mix_operations else (), strict=False):
            self._pair(params, list(good), partner_positions(seed, index, slot, len(rows)))

    def _pair(self, params: list[dict[str, Any]], kept: list[int], pairing: NDArray[np.int64]) -> None:
        """Adds to the parameters of one slot who is mixed with whom; the images are those `kept` of a block."""
        policy, where = self._reinforcer.policy, {place: i for i, place in enumerate(kept)}
        partners = [where.get(int(pairing[place])) for place in kept]
        for item, partner in zip(params, partners, strict=True):
            if partner is None:  # it could not be decoded, so this view stays unmixed
                item |= {operation.field: None for operation in policy.mix_operations}
            item[schema.PARTNER_ROW] = None if partner is None or not policy.mixes(item) else self._rows[partner]
            item[schema.PARTNER_PARAMS] = None
        self._partners.append([partner or 0 for partner in partners])

    def questions(self, pool: ThreadPoolExecutor) -> Iterator[tuple[Any, ...]]:
        """What teachers are asked about: the images, for targets per row, then their views, a few slots at a time.

        Views are uint8 [V, 3, S, S]; a policy that mixes adds each one's partner [V] and the mixing parameters.
        """
        policy, step, count = self._reinforcer.policy, self._reinforcer.slots_per_batch, len(self._images)
        if count:
            yield "row", self._images, None
        for start in range(0, len(self._params) if count else 0, step):
            flat = [params for slot in self._params[start : start + step] for params in slot]
            views = images.stack(list(pool.map(policy.apply, self._images * (len(flat) // count), flat)))
            mixing = None
            if policy.mix_operations:
                pairs = enumerate(self._partners[start : start + step])
                partners = torch.tensor([partner + count * i for i, slot in pairs for partner in slot])
                mixing = partners, policy.collate_mix(flat)
            yield "view", views, mixing
        self._images = []

    def table(self) -> pa.Table:
        """The rows whose images could be decoded, with the kept source columns and the reinforcement columns."""
        reinforcer, kept, added = self._reinforcer, len(self._rows), len(self._params)
        arrow = reinforcer.features(Features.from_arrow_schema(self._batch.schema)).arrow_schema
        params = [[slot[i] for slot in self._params] for i in range(kept)]
        columns: dict[str, Any] = {
            schema.SOURCE_ROW: pa.array(self._rows, pa.int64()),
            schema.IMAGE_HASH: pa.array([images.image_hash(encoded) for encoded in self._encoded], pa.string()),
            schema.AUGMENTATION_PARAMS: pa.array(params, arrow.field(schema.AUGMENTATION_PARAMS).type),
        }
        slots = np.arange(added * kept).reshape(added, kept).T  # the teacher saw [slot, row]; a row stores [row, slot]
        for _, target in reinforcer.asked:
            records = pa.concat_arrays([pa.array([], target.arrow_type), *self.answers[target.column]])
            if target.per == "view":
                items = records.take(pa.array(slots.reshape(-1)))
                records = pa.FixedSizeListArray.from_arrays(items, type=arrow.field(target.column).type)
            columns[target.column] = records
        if reinforcer.embed_images:
            encoded = [{"bytes": data, "path": None} for data in self._encoded]
            columns[reinforcer.image_column] = pa.array(encoded, Image().pa_type)
        arrays = [columns[name] if name in columns else self._batch.column(name) for name in arrow.names]
        return pa.table(arrays, names=arrow.names).cast(arrow)
