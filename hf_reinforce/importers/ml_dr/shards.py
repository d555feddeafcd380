"""Turns archives of the original implementation into shards, in bounded memory, and continues after an interruption.

An archive is read once, from front to back, and its images come in any order. So their rows are first put aside on
the disk, by the shard that they belong to; then shard after shard is sorted, completed with the source's columns and
written. What an archive holds is put aside in a folder that gets its name when the archive has been read: an import
that is interrupted reads only the archive at hand again.
"""

import gc
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial, reduce
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash
from datasets import Dataset
from numpy.typing import NDArray
from tqdm.auto import tqdm

from hf_reinforce import images, schema
from hf_reinforce.importers.ml_dr.config import policy_of, read_config
from hf_reinforce.importers.ml_dr.images import ImageFacts, Join
from hf_reinforce.importers.ml_dr.records import Columns, params_array, read_record, records_array
from hf_reinforce.importers.ml_dr.unpickling import Member, UnsafePickleError, read_members, safe_load
from hf_reinforce.sources.image_source import ImageSource
from hf_reinforce.store.atomic import write_whole
from hf_reinforce.store.config import CONFIG_FILE, ReferenceView, ReinforcementConfig, SkippedImage
from hf_reinforce.store.pixel_contract import view_checksum
from hf_reinforce.store.shards import append_reinforcements, file_checksum, shard_name, write_shard
from hf_reinforce.targets.class_distribution import FIELDS, ClassDistribution

BUFFERED_RECORDS = 2**18
"""Reinforcements held in memory before they are put aside, 400 bytes each at most."""
SHARD_RECORDS = 2**20
"""Reinforcements of a shard, unless a shard size is asked for. One shard at a time is built in memory."""
MAX_SHARD_SIZE = 4096

_REQUEST, _PARTS = "request.json", "parts.json"
_REFERENCE_VIEWS = 4


@contextmanager
def _frozen_objects() -> Iterator[None]:
    """Lets the garbage collector look at new objects only; else a record's make it walk all loaded libraries again."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


class Import:
    """One import. `read` puts the records aside, `write` makes the shards.

    Args:
        paths: archives.
        dataset: the images, not decoded.
        rows: row of the dataset for each index of the archives, or -1.
        config: what the result will say of itself, but for what the archives say: N, K, shard size.
        folder: folder of the configuration.

    Raises:
        ValueError: if the folder holds something else.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        dataset: Dataset,
        rows: NDArray[np.int64],
        config: ReinforcementConfig,
        folder: Path,
    ) -> None:
        self.paths, self.dataset, self.rows, self.config, self.folder = paths, dataset, rows, config, folder
        self.staging, record = folder / ".import", config.source
        self._parts: dict[str, dict[str, int]] = {}  # N and K of each folder of each archive, in their order
        self._resume()
        self.source = ImageSource(dataset, record.image_column, record.label_column)
        label = record.label_column
        labels = np.asarray(dataset.with_format("numpy")[label]) if label else None
        self.facts = ImageFacts.of(self.source, rows[rows >= 0], self.staging / "images.npz")
        self.join = Join(rows, self.facts, labels, config.policy)
        self._buffer: dict[str, list[tuple[int, Columns]]] = {}
        self._buffered = 0

    def _resume(self) -> None:
        path = self.staging / _REQUEST
        if (self.folder / CONFIG_FILE).exists() and (
            not path.exists() or ReinforcementConfig.load(self.folder).complete
        ):
            raise ValueError(f"{self.folder} already holds a reinforced dataset; choose another output folder.")
        request = {
            "archives": [[str(path.resolve()), path.stat().st_size] for path in self.paths],
            "id_map": xxhash.xxh3_64_hexdigest(self.rows.tobytes()),
            "config": {key: value for key, value in self.config.to_dict().items() if key != "pixels"},
        }
        if path.exists() and json.loads(path.read_text(encoding="utf-8")) != json.loads(json.dumps(request)):
            raise ValueError(
                f"{self.folder} holds an unfinished import of other archives or with other settings. Ask for the same "
                "to continue it, or remove the folder."
            )
        self.staging.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(request))

    @property
    def shard_size(self) -> int:
        """Rows of a shard, known when the first record has been read."""
        part = next(iter(self._parts.values()))
        return self.config.shard_size or min(
            max(1, SHARD_RECORDS // (part["num_samples"] * len(self.paths))), MAX_SHARD_SIZE
        )

    def read(self) -> None:
        """Reads the archives, from where an interrupted import stopped.

        Raises:
            UnsafePickleError: if a record asks for any class or function but NumPy's numbers.
            ValueError: if a record is damaged or does not fit the policy, the classes, the images or the others.
        """
        total = int((self.rows >= 0).sum()) * len(self.paths)
        with _frozen_objects(), tqdm(total=total, desc="Reading", unit="image", unit_scale=True) as progress:
            for archive, path in enumerate(self.paths):
                finished = self.staging / f"{archive:04d}"
                if not finished.exists():
                    self._read_archive(archive, path, finished.with_suffix(".unfinished"), progress)
                    finished.with_suffix(".unfinished").rename(finished)
                self._parts |= json.loads((finished / _PARTS).read_text(encoding="utf-8"))

    def _read_archive(self, archive: int, path: Path, folder: Path, progress: Any) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for member in read_members(path):
            if member.index is None:
                self._check_config(member)
                continue
            progress.update()
            self._add(archive, member)
            if self._buffered >= BUFFERED_RECORDS:
                self._put_aside(folder)
        self._put_aside(folder)
        own = {key: part for key, part in self._parts.items() if key.startswith(f"{archive:04d} ")}
        write_whole(folder / _PARTS, json.dumps(own))

    def _check_config(self, member: Member) -> None:
        found = policy_of(read_config(member)["reinforce"]["image_augmentation"])
        if found.operations != self.config.policy.operations:
            raise ValueError(
                f"{member.name} describes the policy {found.to_dict()}, not {self.config.policy.to_dict()}. Import "
                "archives of different policies into configurations of their own."
            )

    def _add(self, archive: int, member: Member) -> None:
        try:
            index, columns = read_record(
                safe_load(member.data, member.name), self.config.policy, self.config.num_classes
            )
            found = dict(zip(("num_samples", "stored_classes"), columns[FIELDS[0]].shape, strict=True))
            if index != member.index:
                raise ValueError(f"it is the record of image {index}")
            if index >= len(self.rows) or columns[schema.PARTNER_ROW].max() >= len(self.rows):
                raise ValueError(f"it is about images beyond the {len(self.rows)} of the dataset or the id map")
            key = f"{archive:04d} {member.folder}"
            part = self._parts.setdefault(key, found)
            stored = next(iter(self._parts.values()))["stored_classes"]
            if found != part or found["stored_classes"] != stored:
                raise ValueError(
                    f"it has {found['num_samples']} reinforcements of {found['stored_classes']} classes, where others "
                    f"have {part['num_samples']} of {stored}; all images must have the same number"
                )
            row = int(self.rows[index])
            if row >= 0 and self.facts.usable[row]:
                self._buffer.setdefault(key, []).append((row, self.join(row, columns)))
                self._buffered += found["num_samples"]
        except UnsafePickleError:
            raise
        except ValueError as error:
            raise ValueError(f"{member.name} cannot be imported: {error}.") from error

    def _put_aside(self, folder: Path) -> None:
        self.join.check_labels()
        for key, items in self._buffer.items():
            items.sort(key=lambda item: item[0])
            rows = np.array([row for row, _ in items])
            table = self._table(rows, [columns for _, columns in items], self._parts[key])
            starts = np.flatnonzero(np.diff(rows // self.shard_size, prepend=-1))
            for start, stop in zip(starts, [*starts[1:], len(rows)], strict=True):
                options = pa.ipc.IpcWriteOptions(compression=pa.Codec("zstd", compression_level=1))
                path = folder / self._file_name(key, int(rows[start]) // self.shard_size)
                with open(path, "ab") as file, pa.ipc.new_stream(file, table.schema, options=options) as writer:
                    writer.write_table(table.slice(start, stop - start))
        self._buffer, self._buffered = {}, 0

    def _file_name(self, key: str, shard: int) -> str:
        return f"{list(self._parts).index(key):04d}-{shard:05d}.arrows"

    def _table(self, rows: NDArray[np.int64], items: Sequence[Columns], part: dict[str, int]) -> pa.Table:
        columns = {name: np.concatenate([item[name] for item in items]) for name in items[0]}
        arrow = self._schema(part)
        target = self._target(part)
        params, records = (arrow.field(name).type for name in (schema.AUGMENTATION_PARAMS, target.column))
        arrays = [
            pa.array(rows),
            pa.array(self.facts.hashes[rows].astype(str).tolist(), pa.string()),
            pa.FixedSizeListArray.from_arrays(params_array(columns, params.value_type), type=params),
            pa.FixedSizeListArray.from_arrays(records_array(columns, target), type=records),
        ]
        return pa.Table.from_arrays(arrays, schema=arrow)

    def _schema(self, part: dict[str, Any], source: dict[str, Any] | None = None) -> pa.Schema:
        target, num_samples = self._target(part), part["num_samples"]
        columns = {target.column: target.column_feature(num_samples)}
        return schema.reinforced_features(source or {}, self.config.policy.feature, num_samples, columns).arrow_schema

    def _target(self, part: dict[str, Any]) -> ClassDistribution:
        (target,) = self.config.targets
        assert isinstance(target, ClassDistribution)
        return target.storing(part["stored_classes"])

    def write(self) -> tuple[ReinforcementConfig, list[Path]]:
        """Makes the shards out of what was put aside.

        Raises:
            ValueError: if an image of the id map is missing in an archive, or is there twice.
        """
        parts = self._parts
        if not parts:
            raise ValueError(f"{[path.name for path in self.paths]} hold no records; records are named 0.pth.tar etc.")
        size = self.shard_size
        missing = np.flatnonzero(~self.facts.usable).tolist()
        self.config = replace(
            self.config,
            num_samples=sum(part["num_samples"] for part in parts.values()),
            targets=(self._target(next(iter(parts.values()))),),
            shard_size=size,
            skipped=tuple(SkippedImage(row, self.facts.errors.get(row, "left out by the id map")) for row in missing),
        )
        self.config.save(self.folder)
        rows = np.flatnonzero(self.facts.usable)
        count = -(-len(self.dataset) // size)
        shards = [self.folder / shard_name(self.config.split, index, count) for index in range(count)]
        for index, path in enumerate(tqdm(shards, desc="Writing", unit="shard")):
            if not path.exists():
                first, last = np.searchsorted(rows, [index * size, (index + 1) * size])
                self._write_shard(path, index, rows[first:last])
        pixels = replace(self.config.pixels, reference_views=self._reference_views(shards))
        checksums = {path.name: file_checksum(path) for path in shards}
        self.config = replace(self.config, pixels=pixels, checksums=checksums, complete=True)
        self.config.save(self.folder)
        shutil.rmtree(self.staging)
        return self.config, shards

    def _write_shard(self, path: Path, index: int, rows: NDArray[np.int64]) -> None:
        append = partial(append_reinforcements, targets=self.config.targets)
        whole = reduce(append, (self._part(key, index, rows) for key in sorted(self._parts)))
        columns = list(self.config.source.columns)
        kept = self.dataset.select_columns(columns).select(rows).with_format("arrow")[:] if columns else whole
        part = {**next(iter(self._parts.values())), "num_samples": self.config.num_samples}
        arrow = self._schema(part, {name: self.dataset.features[name] for name in columns})
        arrays = [(kept if name in columns else whole).column(name) for name in arrow.names]
        write_shard(path, pa.table(arrays, names=arrow.names).cast(arrow), self.config.targets)

    def _part(self, key: str, shard: int, rows: NDArray[np.int64]) -> pa.Table:
        """What one folder of an archive says about the rows of a shard."""
        path = self.staging / key.split(" ")[0] / self._file_name(key, shard)
        pieces = [self._schema(self._parts[key]).empty_table()]
        if path.exists():
            with open(path, "rb") as file:
                while file.tell() < path.stat().st_size:
                    pieces.append(pa.ipc.open_stream(file).read_all())
        table = pa.concat_tables(pieces).combine_chunks()
        order = np.argsort(table.column(schema.SOURCE_ROW).to_numpy(), kind="stable")
        found = table.column(schema.SOURCE_ROW).to_numpy()[order]
        if not np.array_equal(found, rows):
            index = {int(row): i for i, row in enumerate(self.rows)}
            twice = sorted({index[int(row)] for row in found[1:][found[1:] == found[:-1]]})
            missing = sorted(index[int(row)] for row in np.setdiff1d(rows, found))
            raise ValueError(
                f"{self.paths[int(key.split()[0])]} ({key.split(' ', 1)[1]}) has no records of the images "
                f"{missing[:8]} and several of {twice[:8]} (of the first shard that is not right). Download it again; "
                "or leave images out with -1 in the id map."
            )
        return table.take(pa.array(order))

    def _reference_views(self, shards: Sequence[Path]) -> tuple[ReferenceView, ...]:
        """Checksums of the first view of a few images, as they come out here."""
        views: list[ReferenceView] = []
        for shard in shards:
            head = next(pq.ParquetFile(shard).iter_batches(_REFERENCE_VIEWS - len(views)), None)
            for item in [] if head is None else head.to_pylist():
                row, params = item[schema.SOURCE_ROW], item[schema.AUGMENTATION_PARAMS][0]
                view = self.config.policy.apply(images.decode(self.source.encoded(row)), params)
                views.append(ReferenceView(row, 0, view_checksum(view)))
            if len(views) == _REFERENCE_VIEWS:
                break
        return tuple(views)
