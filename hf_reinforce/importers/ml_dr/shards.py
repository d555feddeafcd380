"""Turns archives of the original implementation into shards, in bounded memory, and continues after an interruption.

An archive is read once, from front to back, and its images come in any order. So their rows are first put aside on
the disk, in an Arrow file for each archive; then they are sorted, completed with the source's columns and written,
shard after shard. A file gets its name when its archive has been read: an import that is interrupted reads only the
archive at hand again.
"""

import json
import shutil
from bisect import bisect_left
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash
from datasets import Dataset, Features, concatenate_datasets
from numpy.typing import NDArray
from tqdm.auto import tqdm

from hf_reinforce import images, schema
from hf_reinforce.augmentations import Crop, RandomResizedCrop
from hf_reinforce.importers.ml_dr.config import read_config
from hf_reinforce.importers.ml_dr.images import ImageFacts
from hf_reinforce.importers.ml_dr.records import read_record
from hf_reinforce.importers.ml_dr.unpickling import Member, UnsafePickleError, read_members, safe_load
from hf_reinforce.sources.image_source import ImageSource
from hf_reinforce.store.atomic import write_whole
from hf_reinforce.store.config import CONFIG_FILE, ReferenceView, ReinforcementConfig, SkippedImage
from hf_reinforce.store.pixel_contract import view_checksum
from hf_reinforce.store.shards import file_checksum, shard_name, write_shard
from hf_reinforce.targets.class_distribution import FIELDS, ClassDistribution, Targets, encode

BUFFERED_RECORDS = 2**18
"""Reinforcements of a folder held in memory before they are put aside, 400 bytes each at most."""
SHARD_RECORDS = 2**20
"""Reinforcements of a shard, unless a shard size is asked for. One shard at a time is built in memory."""
MAX_SHARD_SIZE = 4096

MIN_AGREEMENT = 0.25
"""Least share of unmixed views whose most likely class is the image's label. With wrong images it is about 1 / C."""

_REFERENCE_VIEWS = 4
_PART = "part"
"""Column of what was put aside: number of the archive, and folder inside it."""


@dataclass
class Import:
    """One import. `read` puts the rows aside, `write` makes the shards.

    Attributes:
        paths: archives.
        dataset: the images, not decoded.
        rows: row of the dataset for each index of the archives, or -1.
        config: what the result will say of itself, but for N and K.
        target: the target of the archives, but for K.
        folder: folder of the configuration; a ValueError if it holds something else.
    """

    paths: Sequence[Path]
    dataset: Dataset
    rows: NDArray[np.int64]
    config: ReinforcementConfig
    target: ClassDistribution
    folder: Path

    def __post_init__(self) -> None:
        self.staging, label = self.folder / ".import", self.config.source.label_column
        self._start()
        self.source = ImageSource(self.dataset, self.config.source.image_column, label)
        self.facts = ImageFacts.of(self.source, self.rows[self.rows >= 0])
        self.labels = np.asarray(self.dataset.with_format("numpy")[label]) if label else None
        self.used = np.flatnonzero([size is not None for size in self.facts.sizes])
        self._agreeing = self._compared = 0
        self._params_type = Features({"params": self.config.policy.feature}).arrow_schema.field("params").type

    def _start(self) -> None:
        if (self.folder / CONFIG_FILE).exists():
            raise ValueError(f"{self.folder} already holds a reinforced dataset; choose another output folder.")
        archives = [[str(path.resolve()), path.stat().st_size] for path in self.paths]
        settings = {key: value for key, value in self.config.to_dict().items() if key != "pixels"}
        request = json.dumps([archives, xxhash.xxh3_64_hexdigest(self.rows.tobytes()), settings])
        path = self.staging / "request.json"
        if path.exists() and path.read_text(encoding="utf-8") != request:
            raise ValueError(
                f"{self.folder} holds an unfinished import of other archives or settings; ask for those, or remove it."
            )
        self.staging.mkdir(parents=True, exist_ok=True)
        write_whole(path, request)

    def read(self) -> None:
        """Reads the archives, from where an interrupted import stopped."""
        total = int((self.rows >= 0).sum()) * len(self.paths)
        with tqdm(total=total, desc="Reading", unit="image", unit_scale=True) as progress:
            for number, path in enumerate(self.paths):
                finished = self.staging / f"{number:04d}.arrow"
                if not finished.exists():
                    self._put_aside(f"{number:04d}", path, finished.with_suffix(".unfinished"), progress)
                    finished.with_suffix(".unfinished").rename(finished)

    def _put_aside(self, number: str, path: Path, file: Path, progress: Any) -> None:
        """Writes the rows of an archive to an Arrow file, in the archive's order."""
        pending: list[pa.Table] = []
        shapes: dict[str, tuple[int, int]] = {}  # N and K of each folder
        with ExitStack() as stack:
            writer = None
            for member in read_members(path):
                if member.index is None:
                    self._check_policy(member)
                    continue
                progress.update()
                table, (n, k) = self._row(member, f"{number} {member.folder}")
                others_n, others_k = shapes.setdefault(member.folder, (n, k))
                if (n, k) != (others_n, others_k):
                    raise ValueError(
                        f"{member.name} cannot be imported: it has {n} reinforcements of {k} classes, where others "
                        f"have {others_n} of {others_k}; all images must have the same number."
                    )
                writer = writer or stack.enter_context(pa.ipc.new_stream(str(file), table.schema))
                pending.append(table)
                if len(pending) * n >= BUFFERED_RECORDS:
                    self._flush(writer, pending)
            if writer is None:
                raise ValueError(f"{path} holds no records; records are named 0.pth.tar etc.")
            self._flush(writer, pending)

    def _flush(self, writer: pa.RecordBatchStreamWriter, pending: list[pa.Table]) -> None:
        if self._compared and self._agreeing < MIN_AGREEMENT * self._compared:
            raise ValueError(
                f"The teacher's most likely class is the label of the image for only {self._agreeing} of "
                f"{self._compared} views: the id map leads to other images, or the classes are in another order; with "
                "label_column='' this is not checked."
            )
        if pending:
            writer.write_table(pa.concat_tables(pending).combine_chunks())
            pending.clear()

    def _check_policy(self, member: Member) -> None:
        found = read_config(member).policy
        if found.operations != self.config.policy.operations:
            raise ValueError(
                f"{member.name} describes the policy {found.to_dict()}, not {self.config.policy.to_dict()}; import it "
                "by itself."
            )

    def _row(self, member: Member, part: str) -> tuple[pa.Table, tuple[int, int]]:
        """The row of an image, none if the image is not used; and its N and K."""
        try:
            content = safe_load(member.data, member.name)
            index, params, targets = read_record(content, self.config.policy, self.target.num_classes)
            if index != member.index:
                raise ValueError(f"it is the record of image {index}")
            if max(index, *(item.get(schema.PARTNER_ROW) or 0 for item in params)) >= len(self.rows):
                raise ValueError(f"it is about images beyond the {len(self.rows)} of the dataset or the id map")
            row = int(self.rows[index])
            if self._uses(row):
                params, targets = self._join(row, params, targets)
        except UnsafePickleError:
            raise
        except ValueError as error:
            raise ValueError(f"{member.name} cannot be imported: {error}.") from error
        count, stored_classes = targets.label.shape
        target = self.target.storing(stored_classes)
        columns = {
            _PART: pa.array([part]),
            schema.SOURCE_ROW: pa.array([row]),
            schema.AUGMENTATION_PARAMS: _one_list(pa.array(params, self._params_type)),
            target.column: _one_list(target.records(encode(targets))),
        }
        return pa.table(columns).slice(0, int(self._uses(row))), (count, stored_classes)

    def _uses(self, row: int) -> bool:
        return row >= 0 and self.facts.sizes[row] is not None

    def _join(self, row: int, params: list[dict[str, Any]], targets: Targets) -> tuple[list[dict[str, Any]], Targets]:
        """The reinforcements of an image with their partners' rows, checked to belong to the images.

        One whose partner is not used is replaced by the next one of the same image that can be replayed.
        """
        kept = []
        for number, item in enumerate(params):
            index = item.get(schema.PARTNER_ROW)
            partner = None if index is None else int(self.rows[index])
            if partner is None or self._uses(partner):
                kept.append(number)
            if partner is not None:
                item[schema.PARTNER_ROW] = partner
        if not kept:
            raise ValueError(f"all reinforcements of row {row} are mixed with images that are not used")
        if len(kept) < len(params):
            chosen = [kept[bisect_left(kept, number) % len(kept)] for number in range(len(params))]
            params, targets = [params[number] for number in chosen], Targets(*(part[chosen] for part in targets))
        unmixed = [number for number, item in enumerate(params) if item.get(schema.PARTNER_ROW) is None]
        if any(isinstance(operation, RandomResizedCrop) for operation in self.config.policy.view_operations):
            for item in params:
                self._check_crop(row, item)
                if item.get(schema.PARTNER_ROW) is not None:
                    self._check_crop(item[schema.PARTNER_ROW], item[schema.PARTNER_PARAMS])
        if self.labels is not None:
            self._compared += len(unmixed)
            self._agreeing += int((targets.label.numpy()[unmixed, 0] == self.labels[row]).sum())
        return params, targets

    def _check_crop(self, row: int, params: dict[str, Any]) -> None:
        box, (height, width) = params[Crop.field], self.facts.sizes[row] or (0, 0)
        if box["top"] + box["height"] > height or box["left"] + box["width"] > width:
            raise ValueError(
                f"a crop reaches beyond the image of row {row}: either the id map does not lead to the images that "
                "were reinforced, or they have been resized since"
            )

    def write(self) -> None:
        """Makes the shards out of what was put aside."""
        staged, parts = self._sorted()
        target = self.target.storing(staged.features[self.target.column].feature[FIELDS[0]].length)
        num_samples = sum(len(params) for params in staged[:parts][schema.AUGMENTATION_PARAMS])
        size = self.config.shard_size or min(max(1, SHARD_RECORDS // num_samples), MAX_SHARD_SIZE)
        unused = np.setdiff1d(np.arange(len(self.dataset)), self.used).tolist()
        self.config = replace(
            self.config,
            num_samples=num_samples,
            targets=(target,),
            shard_size=size,
            skipped=tuple(SkippedImage(row, self.facts.errors.get(row, "left out by the id map")) for row in unused),
        )
        count = -(-len(self.dataset) // size)
        shards = [self.folder / shard_name(self.config.split, index, count) for index in range(count)]
        for index, path in enumerate(tqdm(shards, desc="Writing", unit="shard")):
            first, last = np.searchsorted(self.used, [index * size, (index + 1) * size])
            if not path.exists():
                table = staged.select(range(first * parts, last * parts)).with_format("arrow")[:]
                self._write_shard(path, table, self.used[first:last])
        heads = staged.select(range(0, min(_REFERENCE_VIEWS * parts, len(staged)), parts))
        views = [self._reference_view(item) for item in heads]
        pixels = replace(self.config.pixels, reference_views=tuple(views))
        checksums = {path.name: file_checksum(path) for path in shards}
        replace(self.config, pixels=pixels, checksums=checksums, complete=True).save(self.folder)
        shutil.rmtree(self.staging)

    def _sorted(self) -> tuple[Dataset, int]:
        """The rows of all folders of all archives in the order of the source, and the number of these folders.

        Refuses missing and repeated ones.
        """
        archives = [Dataset.from_file(str(path)) for path in sorted(self.staging.glob("*.arrow"))]
        if any(archive.features != archives[0].features for archive in archives):
            raise ValueError(f"{[path.name for path in self.paths]} store different numbers of classes of each view.")
        staged = concatenate_datasets(archives)
        names, part = np.unique(staged.data.column(_PART).to_numpy(), return_inverse=True)
        rows = staged.data.column(schema.SOURCE_ROW).to_numpy()
        for number, name in enumerate(names):
            found = np.sort(rows[part == number])
            if not np.array_equal(found, self.used):
                index = {int(row): i for i, row in enumerate(self.rows)}
                twice = sorted({index[int(row)] for row in found[1:][found[1:] == found[:-1]]})
                missing = sorted(index[int(row)] for row in np.setdiff1d(self.used, found))
                raise ValueError(
                    f"{self.paths[int(name[:4])]} ({name[5:]}) has no records of the images {missing[:8]} and several "
                    f"of {twice[:8]}. Download it again; or leave images out with -1 in the id map."
                )
        return staged.select(np.lexsort((part, rows))), len(names)

    def _write_shard(self, path: Path, staged: pa.Table, rows: NDArray[np.int64]) -> None:
        (target,), kept, count = self.config.targets, list(self.config.source.columns), self.config.num_samples
        source = self.dataset.select_columns(kept).select(rows)
        columns = {target.column: target.column_feature(count)}
        arrow = schema.reinforced_features(
            dict(source.features), self.config.policy.feature, count, columns
        ).arrow_schema
        arrays = dict(zip(kept, source.with_format("arrow")[:].columns, strict=True)) if kept else {}
        arrays[schema.SOURCE_ROW] = pa.array(rows)
        arrays[schema.IMAGE_HASH] = pa.array([self.facts.hashes[row] for row in rows], pa.string())
        for name in (schema.AUGMENTATION_PARAMS, target.column):
            values = staged.column(name).combine_chunks().flatten()
            arrays[name] = pa.FixedSizeListArray.from_arrays(values, type=arrow.field(name).type)
        write_shard(path, pa.table(arrays).select(arrow.names).cast(arrow), self.config.targets)

    def _reference_view(self, item: dict[str, Any]) -> ReferenceView:
        row, params = item[schema.SOURCE_ROW], item[schema.AUGMENTATION_PARAMS][0]
        view = self.config.policy.apply(images.decode(self.source.encoded(row)), params)
        return ReferenceView(row, 0, view_checksum(view))


def _one_list(values: pa.Array) -> pa.ListArray:
    return pa.ListArray.from_arrays([0, len(values)], values)
