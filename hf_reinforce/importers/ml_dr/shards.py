"""Turns archives of the original implementation into shards, in bounded memory, and continues after an interruption.

An archive is read once, from front to back, and its images come in any order. So their rows are first put aside on
the disk, in an Arrow file for each folder of an archive; then they are sorted, completed with the source's columns and
written, shard after shard. A folder gets its name when its archive has been read: an import that is interrupted reads
only the archive at hand again.
"""

import json
import shutil
from bisect import bisect_left
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import lru_cache, partial, reduce
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash
from datasets import Dataset
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
from hf_reinforce.store.shards import append_reinforcements, file_checksum, shard_name, write_shard
from hf_reinforce.targets.class_distribution import ClassDistribution, Targets, encode

BUFFERED_RECORDS = 2**18
"""Reinforcements of a folder held in memory before they are put aside, 400 bytes each at most."""
SHARD_RECORDS = 2**20
"""Reinforcements of a shard, unless a shard size is asked for. One shard at a time is built in memory."""
MAX_SHARD_SIZE = 4096

MIN_AGREEMENT = 0.25
"""Least share of unmixed views whose most likely class is the image's label. With wrong images it is about 1 / C."""

_REFERENCE_VIEWS = 4


@dataclass
class Import:
    """One import. `read` puts the rows aside, `write` makes the shards.

    Attributes:
        paths: archives.
        dataset: the images, not decoded.
        rows: row of the dataset for each index of the archives, or -1.
        config: what the result will say of itself, but for what the archives say: N, K, shard size.
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
        self._schema = lru_cache(self._arrow_schema)

    def _start(self) -> None:
        if (self.folder / CONFIG_FILE).exists():
            raise ValueError(f"{self.folder} already holds a reinforced dataset; choose another output folder.")
        archives = [[str(path.resolve()), path.stat().st_size] for path in self.paths]
        settings = {key: value for key, value in self.config.to_dict().items() if key != "pixels"}
        request = json.dumps([archives, xxhash.xxh3_64_hexdigest(self.rows.tobytes()), settings])
        path = self.staging / "request.json"
        if path.exists() and path.read_text(encoding="utf-8") != request:
            raise ValueError(
                f"{self.folder} holds an unfinished import of other archives or with other settings. Ask for the same "
                "to continue it, or remove the folder."
            )
        self.staging.mkdir(parents=True, exist_ok=True)
        write_whole(path, request)

    def read(self) -> None:
        """Reads the archives, from where an interrupted import stopped."""
        total = int((self.rows >= 0).sum()) * len(self.paths)
        with tqdm(total=total, desc="Reading", unit="image", unit_scale=True) as progress:
            for number, path in enumerate(self.paths):
                finished = self.staging / f"{number:04d}"
                if not finished.exists():
                    unfinished = finished.with_suffix(".unfinished")
                    shutil.rmtree(unfinished, ignore_errors=True)
                    unfinished.mkdir()
                    self._put_aside(path, unfinished, progress)
                    unfinished.rename(finished)

    def _put_aside(self, path: Path, folder: Path, progress: Any) -> None:
        """Writes the rows of an archive to Arrow files, numbered as its folders are sorted."""
        files: dict[str, tuple[Path, pa.RecordBatchStreamWriter, pa.Schema, list[pa.Table]]] = {}
        with ExitStack() as stack:
            for member in read_members(path):
                if member.index is None:
                    self._check_policy(member)
                    continue
                progress.update()
                table = self._table(member)
                if member.folder not in files:
                    file = folder / f"{len(files)}.unsorted"
                    writer = stack.enter_context(pa.ipc.new_stream(str(file), table.schema))
                    files[member.folder] = file, writer, table.schema, []
                _, writer, arrow, pending = files[member.folder]
                if table.schema != arrow:
                    (n, k), (others_n, others_k) = _shape(table.schema), _shape(arrow)
                    raise ValueError(
                        f"{member.name} cannot be imported: it has {n} reinforcements of {k} classes, where others "
                        f"have {others_n} of {others_k}; all images must have the same number."
                    )
                pending.append(table)
                if len(pending) * _shape(arrow)[0] >= BUFFERED_RECORDS:
                    self._flush(writer, pending)
            for _, writer, _, pending in files.values():
                self._flush(writer, pending)
        for number, name in enumerate(sorted(files)):
            files[name][0].rename(folder / f"{number:04d}.arrow")

    def _flush(self, writer: pa.RecordBatchStreamWriter, pending: list[pa.Table]) -> None:
        if self._compared and self._agreeing < MIN_AGREEMENT * self._compared:
            raise ValueError(
                f"The teacher's most likely class is the label of the image for only {self._agreeing} of "
                f"{self._compared} views. Either the id map does not lead to the images that were reinforced, or the "
                "classes are in another order; with label_column='' this is not checked."
            )
        if pending:
            writer.write_table(pa.concat_tables(pending).combine_chunks())
            pending.clear()

    def _check_policy(self, member: Member) -> None:
        found = read_config(member).policy
        if found.operations != self.config.policy.operations:
            raise ValueError(
                f"{member.name} describes the policy {found.to_dict()}, not {self.config.policy.to_dict()}. Import "
                "archives of different policies into configurations of their own."
            )

    def _table(self, member: Member) -> pa.Table:
        """The row of an image; none if the image is not used."""
        try:
            index, params, targets = read_record(
                safe_load(member.data, member.name), self.config.policy, self.target.num_classes
            )
            if index != member.index:
                raise ValueError(f"it is the record of image {index}")
            if max(index, *(item.get(schema.PARTNER_ROW) or 0 for item in params)) >= len(self.rows):
                raise ValueError(f"it is about images beyond the {len(self.rows)} of the dataset or the id map")
            row = int(self.rows[index])
            used = self._uses(row)
            if used:
                params, targets = self._join(row, params, targets)
        except UnsafePickleError:
            raise
        except ValueError as error:
            raise ValueError(f"{member.name} cannot be imported: {error}.") from error
        target = self.target.storing(targets.label.shape[1])
        arrow = self._schema(*targets.label.shape)
        kinds = [arrow.field(name).type for name in (schema.AUGMENTATION_PARAMS, target.column)]
        lists = pa.array(params, kinds[0].value_type), target.records(encode(targets))
        arrays = [pa.FixedSizeListArray.from_arrays(v, type=kind) for v, kind in zip(lists, kinds, strict=True)]
        table = pa.table([pa.array([row]), pa.array([self.facts.hashes[row]]), *arrays], schema=arrow)
        return table if used else table.slice(0, 0)

    def _arrow_schema(self, num_samples: int, stored_classes: int, kept: tuple[str, ...] = ()) -> pa.Schema:
        target, source = self.target.storing(stored_classes), {name: self.dataset.features[name] for name in kept}
        columns = {target.column: target.column_feature(num_samples)}
        return schema.reinforced_features(source, self.config.policy.feature, num_samples, columns).arrow_schema

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
        parts = [self._sorted(path) for path in sorted(self.staging.glob("*/*.arrow"))]
        shapes = [_shape(part.features.arrow_schema) for part in parts]
        if len({stored_classes for _, stored_classes in shapes}) != 1:
            raise ValueError(
                f"{[path.name for path in self.paths]} must hold records, all with the same number of classes; found "
                f"records of {sorted({stored_classes for _, stored_classes in shapes})} classes."
            )
        num_samples, stored_classes = sum(count for count, _ in shapes), shapes[0][1]
        size = self.config.shard_size or min(max(1, SHARD_RECORDS // num_samples), MAX_SHARD_SIZE)
        unused = np.setdiff1d(np.arange(len(self.dataset)), self.used).tolist()
        self.config = replace(
            self.config,
            num_samples=num_samples,
            targets=(self.target.storing(stored_classes),),
            shard_size=size,
            skipped=tuple(SkippedImage(row, self.facts.errors.get(row, "left out by the id map")) for row in unused),
        )
        count = -(-len(self.dataset) // size)
        shards = [self.folder / shard_name(self.config.split, index, count) for index in range(count)]
        for index, path in enumerate(tqdm(shards, desc="Writing", unit="shard")):
            if not path.exists():
                self._write_shard(path, parts, *np.searchsorted(self.used, [index * size, (index + 1) * size]))
        views = [self._reference_view(item) for item in parts[0].take(_REFERENCE_VIEWS)]
        pixels = replace(self.config.pixels, reference_views=tuple(views))
        checksums = {path.name: file_checksum(path) for path in shards}
        replace(self.config, pixels=pixels, checksums=checksums, complete=True).save(self.folder)
        shutil.rmtree(self.staging)

    def _sorted(self, path: Path) -> Dataset:
        """The rows of one folder of an archive, in the order of the source; refuses missing and repeated ones."""
        part = Dataset.from_file(str(path))
        rows = part.data.column(schema.SOURCE_ROW).to_numpy()
        order = np.argsort(rows, kind="stable")
        found = rows[order]
        if not np.array_equal(found, self.used):
            index = {int(row): i for i, row in enumerate(self.rows)}
            twice = sorted({index[int(row)] for row in found[1:][found[1:] == found[:-1]]})
            missing = sorted(index[int(row)] for row in np.setdiff1d(self.used, found))
            raise ValueError(
                f"{self.paths[int(path.parent.name)]} has no records of the images {missing[:8]} and several of "
                f"{twice[:8]}. Download it again; or leave images out with -1 in the id map."
            )
        return part.select(order)

    def _write_shard(self, path: Path, parts: list[Dataset], first: int, last: int) -> None:
        append = partial(append_reinforcements, targets=self.config.targets)
        whole = reduce(append, (part.select(range(first, last)).with_format("arrow")[:] for part in parts))
        kept = self.config.source.columns
        source = self.dataset.select_columns(list(kept)).select(self.used[first:last]).with_format("arrow")[:]
        arrow = self._schema(self.config.num_samples, _shape(parts[0].features.arrow_schema)[1], kept)
        arrays = [(source if name in kept else whole).column(name) for name in arrow.names]
        write_shard(path, pa.table(arrays, names=arrow.names).cast(arrow), self.config.targets)

    def _reference_view(self, item: dict[str, Any]) -> ReferenceView:
        """The checksum of an image's first view, as it comes out here."""
        row, params = item[schema.SOURCE_ROW], item[schema.AUGMENTATION_PARAMS][0]
        view = self.config.policy.apply(images.decode(self.source.encoded(row)), params)
        return ReferenceView(row, 0, view_checksum(view))


def _shape(arrow: pa.Schema) -> tuple[int, int]:
    """Reinforcements of an image, and stored classes of each."""
    lists = arrow.field(-1).type
    return lists.list_size, lists.value_type.field("label").type.list_size
