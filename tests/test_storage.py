"""Shards: what is written is read back, whole or not at all; single values of any column; appended reinforcements."""

import datetime
import errno
import os
import pickle
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Array2D, ClassLabel, Dataset, Features, Image, List, Value, concatenate_datasets
from tiny import tiny_dataset, tiny_teacher

from hf_reinforce import schema
from hf_reinforce.augmentations.policies import POLICY_NAMES, named_policy
from hf_reinforce.generation.reinforcer import Reinforcer
from hf_reinforce.store import rows
from hf_reinforce.store.atomic import explained_writes
from hf_reinforce.store.rows import ColumnReader
from hf_reinforce.store.shards import append_reinforcements, shard_name, write_shard

TARGETS = [tiny_teacher().target()]


def reinforced(policy="mixing_randaug", rows=10, first_sample=0, num_samples=3, **options):
    """Rows of a reinforced dataset, as they go into a shard."""
    reinforcer = Reinforcer(
        tiny_teacher(), named_policy(policy, 16), num_samples, first_sample=first_sample, top_k=3, **options
    )
    dataset = tiny_dataset(rows).cast_column("image", Image(decode=False))
    return reinforcer(dataset.with_format("arrow")[:], range(rows)), reinforcer.features(dataset.features)


# Writing


@pytest.mark.parametrize("policy", POLICY_NAMES)
def test_a_shard_reads_back_exactly(tmp_path, policy):
    table, features = reinforced(policy)
    write_shard(tmp_path / "rows.parquet", table, TARGETS)
    read = pq.read_table(tmp_path / "rows.parquet")
    assert Features.from_arrow_schema(read.schema) == features
    assert read.cast(table.schema).equals(table)  # Parquet has its own name for the items of a list
    assert [path.name for path in tmp_path.iterdir()] == ["rows.parquet"]


READ_ALONE = """
import pickle, sys
sys.modules["hf_reinforce"] = None  # importing it would raise
import datasets
datasets.disable_progress_bars()
dataset = datasets.load_dataset(sys.argv[1], split="train", cache_dir=sys.argv[2])
with open(sys.argv[3], "wb") as file:
    pickle.dump((dataset.features, dataset.with_format("arrow")[:].to_pylist(), list(dataset)), file)
"""


def test_shards_open_with_load_dataset_where_this_package_is_unknown(tmp_path):
    table, features = reinforced(embed_images=True)
    (tmp_path / "data").mkdir()
    for index, part in enumerate((table.slice(0, 6), table.slice(6))):
        write_shard(tmp_path / "data" / shard_name("train", index, 2), part, TARGETS)
    command = [sys.executable, "-c", READ_ALONE, *(str(tmp_path / name) for name in ("data", "cache", "read.pkl"))]
    subprocess.run(command, check=True, cwd=tmp_path, env={**os.environ, "PYTHONPATH": ""})
    read_features, stored, decoded = pickle.loads((tmp_path / "read.pkl").read_bytes())
    assert read_features == features and stored == table.to_pylist()
    assert [row["image"].size for row in decoded] == [image.size for image in tiny_dataset(10)["image"]]
    for row, plain in zip(decoded, table.drop_columns("image").to_pylist(), strict=True):
        assert {name: row[name] for name in plain} == plain


def test_encodings(tmp_path):
    table, _ = reinforced("mixing_randaug", rows=64, num_samples=8)
    write_shard(tmp_path / "rows.parquet", table, TARGETS)
    group = pq.ParquetFile(tmp_path / "rows.parquet").metadata.row_group(0)
    columns = {group.column(i).path_in_schema: group.column(i) for i in range(group.num_columns)}
    assert {column.compression for column in columns.values()} == {"ZSTD"}
    kinds = {path: {"RLE_DICTIONARY", "PLAIN_DICTIONARY"} & set(c.encodings) for path, c in columns.items()}

    def of(word, root=""):
        return [path for path in columns if word in path.split(".") and path.startswith(root)]

    for path in [*of("value"), *of("tail"), *of("op"), *of("magnitude"), "label"]:
        assert kinds[path], path
    for path in [*of("label", "teacher_logits"), *of("crop")]:
        assert not kinds[path] and "BYTE_STREAM_SPLIT" in columns[path].encodings, path
    assert not kinds[schema.SOURCE_ROW] and not kinds[schema.IMAGE_HASH]
    (value,) = (columns[path] for path in of("value"))  # of a codebook of 255, whose indices take at most 8 bits
    assert value.num_values == 64 * 8 * 3 and value.total_uncompressed_size < value.num_values * 1.1 + 255 * 4 + 1500


@pytest.mark.parametrize("moment", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_write_leaves_finished_shards_and_nothing_else(tmp_path, monkeypatch, moment, error):
    table, _ = reinforced("rrc")
    first, second = tmp_path / shard_name("train", 0, 2), tmp_path / shard_name("train", 1, 2)
    write_shard(first, table, TARGETS)
    before = first.read_bytes()

    def fail(*arguments):
        raise error

    monkeypatch.setattr(os, moment, fail)
    said = f"{tmp_path} cannot be written: the disk is full.*again" if isinstance(error, OSError) else None
    with pytest.raises(type(error), match=said):
        write_shard(second, table, TARGETS)
    assert os.listdir(tmp_path) == [first.name] and first.read_bytes() == before
    monkeypatch.undo()
    write_shard(second, table, TARGETS)
    assert second.read_bytes() == before


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (errno.ENOSPC, "the disk is full. Make room there and run the same command again"),
        (errno.EROFS, "it may not be written to. Make it writable"),
        (errno.ESTALE, "it is gone. Bring it back"),
        (errno.EIO, "Input/output error. Mend that and run the same command again"),
        (None, "the server hung up$"),
    ],
)
def test_errors_of_the_disk_name_the_folder_and_say_what_to_do(code, message):
    error = OSError("the server hung up") if code is None else OSError(code, os.strerror(code))
    with pytest.raises(OSError, match=message) as caught, explained_writes(Path("outputs/pets")):
        raise error
    assert caught.value.errno == code and (code is None or str(caught.value).startswith("outputs/pets cannot"))


# Reading


def some_columns():
    """Feature -> seven values with nulls, for every type that a dataset may bring."""
    box = {"top": Value("int16"), "deep": {"flag": Value("bool"), "text": Value("string")}}
    boxes = [{"top": i, "deep": {"flag": i % 2 == 0, "text": str(i)}} for i in range(7)]
    boxes[2], boxes[3]["top"], boxes[4]["deep"] = None, None, {"flag": None, "text": None}
    columns = {
        f"{kind}{bits}": (Value(f"{kind}{bits}"), [1, 2**bits // 2 - 1, None, 0, 5, None, 9])
        for kind in ("int", "uint")
        for bits in (8, 16, 32, 64)
    }
    numbers = [0.5, -1.25, None, float("inf"), -0.0, 3.0, None]
    columns |= {f"float{bits}": (Value(f"float{bits}"), numbers) for bits in (16, 32, 64)}
    texts, data = ["a", "", None, "ü\U0001f600", "b" * 50, None, "c"], [b"a", b"", None, b"\x00\xff", b"d", None, b"e"]
    columns |= {kind: (Value(kind), texts) for kind in ("string", "large_string")}
    columns |= {kind: (Value(kind), data) for kind in ("binary", "large_binary")}
    days = [datetime.datetime(2023, 1, 1 + i) if i % 3 else None for i in range(7)]
    return columns | {
        "bool": (Value("bool"), [True, False, None, True, True, None, False]),
        "null": (Value("null"), [None] * 7),
        "date": (Value("date32"), [day and day.date() for day in days]),
        "time": (Value("timestamp[us]"), days),
        "decimal": (Value("decimal128(5, 2)"), [Decimal("1.25"), None, *[Decimal(i) for i in range(5)]]),
        "class": (ClassLabel(names=["a", "b", "c"]), [0, 1, 2, None, 1, 0, 2]),
        "list": (List(Value("int32")), [[], [1], None, [1, None, 3], [4], [5, 6], []]),
        "fixed": (List(Value("int16"), length=2), [[0, 1], [2, None], None, [4, 5], [None, None], [7, 8], [9, 10]]),
        "fixed of structs": (
            List({"a": Value("int8"), "b": List(Value("float32"), length=2)}, length=2),
            [[{"a": i, "b": [i, None]}, {"a": None, "b": [0.5, i]}] for i in range(7)],
        ),
        "struct": (box, boxes),
        "image": (
            Image(decode=False),
            [{"bytes": b"x%d" % i, "path": None} if i % 3 else {"bytes": None, "path": __file__} for i in range(7)],
        ),
        "array": (Array2D((2, 2), "int32"), [[[i, 1], [2, 3]] for i in range(7)]),
    }


COLUMNS = some_columns()


def on_disk(tmp_path):
    features = Features({name: feature for name, (feature, _) in COLUMNS.items()})
    dataset = Dataset.from_dict({name: values for name, (_, values) in COLUMNS.items()}, features=features)
    dataset.save_to_disk(str(tmp_path / "saved"))
    return Dataset.load_from_disk(str(tmp_path / "saved"))


SELECTIONS = {
    "all": lambda d: d,
    "slice": lambda d: d.select(range(1, 7)),
    "shuffled": lambda d: d.shuffle(seed=3),
    "rows of a slice": lambda d: d.select(range(1, 7)).select([4, 0, 4, 2]),
    "concatenated": lambda d: concatenate_datasets([d, d.select(range(3, 7)), d.select(range(1, 4))]),
    "shuffled concatenation": lambda d: concatenate_datasets([d.select(range(3, 7)), d]).shuffle(seed=1),
    "nulls alone": lambda d: d.select([2]),
}


def plain(value):
    if isinstance(value, memoryview):
        return bytes(value)
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, (list, np.ndarray)) else value


@pytest.mark.parametrize("selection", SELECTIONS)
def test_a_reader_gives_what_the_dataset_gives(tmp_path, selection):
    dataset = SELECTIONS[selection](on_disk(tmp_path))
    expected = dataset.with_format("arrow")[:].to_pylist()
    for name in COLUMNS:
        reader = ColumnReader(dataset, name)
        for moved in (reader, pickle.loads(pickle.dumps(reader))):
            assert [plain(moved(row)) for row in range(len(dataset))] == [row[name] for row in expected], name
    if selection == "all":
        types = {name: type(ColumnReader(dataset, name)(0)) for name in ("int16", "float32", "bool")}
        assert types == {"int16": int, "float32": float, "bool": bool}
        assert isinstance(ColumnReader(dataset, "image")(1)["bytes"], memoryview)


@pytest.mark.parametrize("policy", ["randaug", "mixing_randaug"])
@pytest.mark.parametrize("selection", ["slice", "shuffled", "concatenated"])
def test_a_reader_gives_single_reinforcements(tmp_path, policy, selection):
    table, features = reinforced(policy)
    write_shard(tmp_path / "rows.parquet", table, TARGETS)
    dataset = Dataset.from_parquet(str(tmp_path / "rows.parquet"), cache_dir=str(tmp_path / "cache"))
    assert dataset.features == features
    dataset = SELECTIONS[selection](dataset)
    for name in (schema.AUGMENTATION_PARAMS, "teacher_logits"):
        reader = ColumnReader(dataset, name, 3)
        for moved in (reader, pickle.loads(pickle.dumps(reader))):
            found = [[plain(moved(i, slot)) for slot in range(3)] for i in range(len(dataset))]
            assert found == [row[name] for row in dataset]


def test_a_reader_of_a_saved_dataset_travels_without_its_data(tmp_path):
    Dataset.from_dict({"payload": [os.urandom(1000) for _ in range(100)]}).save_to_disk(str(tmp_path / "saved"))
    dataset = Dataset.load_from_disk(str(tmp_path / "saved"))
    packed = pickle.dumps(ColumnReader(dataset, "payload"))
    assert len(packed) < 20_000 and bytes(pickle.loads(packed)(7)) == dataset[7]["payload"]


HOSTILE = ["'", '"', '"""', "{v0}", "__import__('os').abort()", "\\", "a\nb", "\0", "\u2028", "v0", "i", "", "#"]


def test_hostile_field_names_are_plain_keys():
    values = [{name: row * 100 + i for i, name in enumerate(HOSTILE)} for row in range(3)]
    array = pa.array(values, pa.struct([(name, pa.int64()) for name in HOSTILE]))
    view = rows._view(array)  # a dataset itself loses names with a NUL
    assert [view(row) for row in range(3)] == values
    harmless = [name for name in HOSTILE if name and "\0" not in name]
    dataset = Dataset(pa.table({"'": pa.StructArray.from_arrays([array.field(name) for name in harmless], harmless)}))
    expected = [{name: value[name] for name in harmless} for value in values]
    assert [ColumnReader(dataset, "'")(row) for row in range(3)] == expected


FIELDS = [f"field {index}" for index in range(999)]
DEEP = {
    "structs": (300, lambda value, kind: ({"a": value}, pa.struct([("a", kind)]))),
    "lists of 1": (300, lambda value, kind: ([value], pa.list_(kind, 1))),
    "lists of 4": (8, lambda value, kind: ([value] * 4, pa.list_(kind, 4))),
    "fields": (1, lambda value, kind: (dict.fromkeys(FIELDS, value), pa.struct([(name, kind) for name in FIELDS]))),
}


@pytest.mark.parametrize("name", DEEP)
def test_values_of_any_depth_and_width(name):
    value, kind = {"x": 7}, pa.struct([("x", pa.int32())])
    levels, wrap = DEEP[name]
    for _ in range(levels):
        value, kind = wrap(value, kind)
    view = rows._view(pa.array([value, None, value], kind))
    assert [view(row) for row in range(3)] == [value, None, value]


# Appending


@pytest.mark.parametrize("policy", ["randaug", "mixing"])
@pytest.mark.parametrize("pieces", [[(0, 10)], [(2, 3), (5, 4)]])
def test_appended_reinforcements_come_after_the_existing_ones(policy, pieces):
    old, _ = reinforced(policy, num_samples=2)
    new, _ = reinforced(policy, num_samples=5, first_sample=2)
    fresh, features = reinforced(policy, num_samples=5)
    chunks = [pa.concat_tables([table.slice(*piece) for piece in pieces]) for table in (old, new, fresh)]
    joined = append_reinforcements(*chunks[:2], TARGETS)
    assert joined.column_names == fresh.column_names
    assert joined.cast(features.arrow_schema).to_pylist() == chunks[2].to_pylist()


@pytest.mark.parametrize("column", [schema.SOURCE_ROW, schema.IMAGE_HASH, "fewer rows"])
def test_reinforcements_of_other_images_are_refused(column):
    old, _ = reinforced("rrc", num_samples=2)
    new, _ = reinforced("rrc", num_samples=3, first_sample=2)
    if column == "fewer rows":
        old = old.slice(0, 5)
    else:
        other = new.column(column).to_pylist()
        other[4] = 99 if column == schema.SOURCE_ROW else "0" * 16
        place = new.column_names.index(column)
        new = new.set_column(place, new.schema.field(place), pa.array(other, new.schema.field(place).type))
    with pytest.raises(
        ValueError, match="not those that the existing reinforcements belong to.*another output folder"
    ):
        append_reinforcements(old, new, TARGETS)
