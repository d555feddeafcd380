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
from datasets import Array2D, ClassLabel, Dataset, Features, Image, List, Sequence, Value, concatenate_datasets
from tiny import tiny_dataset, tiny_teacher

from hf_reinforce import schema
from hf_reinforce.augmentations.policies import POLICY_NAMES, named_policy
from hf_reinforce.generation.reinforcer import Reinforcer
from hf_reinforce.store import parquet as storage
from hf_reinforce.store.parquet import ColumnReader, append_reinforcements, explained_writes, shard_name, write_shard

TARGETS = [tiny_teacher().target()]


def reinforced(policy="mixing_randaug", rows=10, first_sample=0, num_samples=3, **options):
    """Rows of a reinforced dataset, as they go into a shard."""
    reinforcer = Reinforcer(
        tiny_teacher(), named_policy(policy, 16), num_samples, first_sample=first_sample, top_k=3, **options
    )
    dataset = tiny_dataset(rows).cast_column("image", Image(decode=False))
    features = reinforcer.features(dataset.features)
    return reinforcer(dataset.with_format("arrow")[:], range(rows)), features


# Shards


def test_names():
    assert shard_name("train", 3, 128) == "train-00003-of-00128.parquet"
    assert shard_name("validation", 0, 1) == "validation-00000-of-00001.parquet"
    assert shard_name("train", 12345, None) == "train-12345.parquet"


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
rows = dataset.with_format("arrow")[:].to_pylist()
with open(sys.argv[3], "wb") as file:
    pickle.dump((dataset.features, rows, list(dataset)), file)
assert not any(name.startswith("hf_reinforce.") for name in sys.modules)
"""


def test_shards_open_with_load_dataset_where_this_package_is_unknown(tmp_path):
    table, features = reinforced(embed_images=True)
    folder = tmp_path / "data"
    folder.mkdir()
    write_shard(folder / shard_name("train", 0, 2), table.slice(0, 6), TARGETS)
    write_shard(folder / shard_name("train", 1, 2), table.slice(6), TARGETS)
    command = [sys.executable, "-c", READ_ALONE, str(folder), str(tmp_path / "cache"), str(tmp_path / "read.pkl")]
    subprocess.run(command, check=True, cwd=tmp_path, env={**os.environ, "PYTHONPATH": ""})
    read_features, rows, decoded = pickle.loads((tmp_path / "read.pkl").read_bytes())
    assert read_features == features
    assert rows == table.to_pylist()
    sizes = [row["image"].size for row in decoded]
    assert sizes == [image.size for image in tiny_dataset(10)["image"]]
    for row, plain in zip(decoded, table.drop_columns("image").to_pylist(), strict=True):
        assert {name: row[name] for name in plain} == plain


def leaves(path):
    group = pq.ParquetFile(path).metadata.row_group(0)
    return {group.column(i).path_in_schema: group.column(i) for i in range(group.num_columns)}


def test_encodings(tmp_path):
    table, _ = reinforced("mixing_randaug")
    write_shard(tmp_path / "rows.parquet", table, TARGETS)
    columns = leaves(tmp_path / "rows.parquet")
    assert {column.compression for column in columns.values()} == {"ZSTD"}

    def of(*words):
        found = [column for path, column in columns.items() if all(word in path.split(".") for word in words)]
        assert found, words
        return found

    dictionary = {"RLE_DICTIONARY", "PLAIN_DICTIONARY"}
    for column in [*of("value"), *of("tail"), *of("op"), *of("magnitude")]:
        assert dictionary & set(column.encodings), column.path_in_schema
    for column in [*of("teacher_logits", "label"), *of("crop")]:
        assert not dictionary & set(column.encodings), column.path_in_schema
        assert "BYTE_STREAM_SPLIT" in column.encodings
    assert dictionary & set(columns["label"].encodings), "the source's own label is no teacher's label"
    assert not dictionary & set(columns[schema.SOURCE_ROW].encodings)
    assert not dictionary & set(columns[schema.IMAGE_HASH].encodings)


def test_values_cost_a_byte_each(tmp_path):
    """All values come from a codebook of 255, so the dictionary's indices take at most 8 bits."""
    table, _ = reinforced("rrc", rows=64, num_samples=20)
    write_shard(tmp_path / "rows.parquet", table, TARGETS)
    column = next(c for path, c in leaves(tmp_path / "rows.parquet").items() if "value" in path.split("."))
    assert column.num_values == 64 * 20 * 3
    assert column.total_uncompressed_size < column.num_values * 1.1 + 255 * 4 + 1500


class FullDisk:
    """An open file on a disk that runs full after some bytes."""

    def __init__(self, file, room):
        self.file, self.room = file, room

    def __enter__(self):
        return self

    def __exit__(self, *details):
        self.file.close()

    def __getattr__(self, name):
        return getattr(self.file, name)

    def write(self, data):
        self.room -= len(data)
        if self.room < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return self.file.write(data)


@pytest.mark.parametrize("moment", ["open", "header", "middle", "fsync", "rename"])
def test_a_full_disk_leaves_finished_shards_and_nothing_else(tmp_path, monkeypatch, moment):
    table, _ = reinforced("rrc")
    first, second = tmp_path / shard_name("train", 0, 2), tmp_path / shard_name("train", 1, 2)
    write_shard(first, table, TARGETS)
    before = first.read_bytes()

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    if moment in ("fsync", "rename"):
        monkeypatch.setattr(os, {"fsync": "fsync", "rename": "replace"}[moment], full)
    elif moment == "open":
        monkeypatch.setattr(storage, "open", full, raising=False)
    else:
        room = {"header": 2, "middle": len(before) // 2}[moment]
        monkeypatch.setattr(storage, "open", lambda *a: FullDisk(open(*a), room), raising=False)  # noqa: SIM115
    with pytest.raises(OSError, match=f"{tmp_path} cannot be written: the disk is full.*again") as caught:
        write_shard(second, table, TARGETS)
    assert caught.value.errno == errno.ENOSPC
    assert os.listdir(tmp_path) == [first.name]
    assert first.read_bytes() == before
    monkeypatch.undo()
    write_shard(second, table, TARGETS)
    assert second.read_bytes() == before


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
def test_a_device_without_space(tmp_path, monkeypatch):
    table, _ = reinforced("rrc")
    monkeypatch.setattr(storage, "open", lambda path, mode: open("/dev/full", mode), raising=False)  # noqa: SIM115
    with pytest.raises(OSError, match="the disk is full"):
        write_shard(tmp_path / "rows.parquet", table, TARGETS)
    assert os.listdir(tmp_path) == []


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


def test_an_interrupted_write_leaves_no_file(tmp_path, monkeypatch):
    table, _ = reinforced("rrc")

    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_shard(tmp_path / "rows.parquet", table, TARGETS)
    assert os.listdir(tmp_path) == []


# Reading


def some_columns():
    """Feature -> values with nulls, for every type that a dataset may bring."""
    box = {"top": Value("int16"), "deep": {"flag": Value("bool"), "text": Value("string")}}
    boxes = [{"top": i, "deep": {"flag": i % 2 == 0, "text": str(i)}} for i in range(7)]
    boxes[2], boxes[3]["top"], boxes[4]["deep"] = None, None, {"flag": None, "text": None}
    columns = {
        f"{kind}{bits}": (Value(f"{kind}{bits}"), [1, 2**bits // 2 - 1, None, 0, 5, None, 9])
        for kind in ("int", "uint")
        for bits in (8, 16, 32, 64)
    }
    columns |= {
        "float16": (Value("float16"), [0.5, -1.25, None, float("inf"), -0.0, 3.0, None]),
        "float32": (Value("float32"), [0.5, -1.25, None, float("inf"), -0.0, 3.0, None]),
        "float64": (Value("float64"), [0.1, -1e300, None, float("-inf"), 1.0, 3.0, None]),
        "bool": (Value("bool"), [True, False, None, True, True, None, False]),
        "string": (Value("string"), ["a", "", None, "ü\U0001f600", "b" * 50, None, "c"]),
        "large_string": (Value("large_string"), ["a", "", None, "ü", "b", None, "c"]),
        "binary": (Value("binary"), [b"a", b"", None, b"\x00\xff", b"d", None, b"e"]),
        "large_binary": (Value("large_binary"), [b"a", b"", None, b"\x00\xff", b"d", None, b"e"]),
        "null": (Value("null"), [None] * 7),
        "date": (Value("date32"), [datetime.date(2023, 1, 1 + i) if i % 3 else None for i in range(7)]),
        "time": (Value("timestamp[us]"), [datetime.datetime(2023, 1, 1 + i) if i % 3 else None for i in range(7)]),
        "decimal": (Value("decimal128(5, 2)"), [Decimal("1.25"), None, *[Decimal(i) for i in range(5)]]),
        "class": (ClassLabel(names=["a", "b", "c"]), [0, 1, 2, None, 1, 0, 2]),
        "list": (List(Value("int32")), [[], [1], None, [1, None, 3], [4], [5, 6], []]),
        "fixed": (
            List(Value("int16"), length=2),
            [[0, 1], [2, None], None, [4, 5], [None, None], [7, 8], [9, 10]],
        ),
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
        "sequence": (Sequence(Value("string")), [["a"], [], None, ["b", None], ["c"], [], ["d"]]),
    }
    return columns


COLUMNS = some_columns()


def whole():
    features = Features({name: feature for name, (feature, _) in COLUMNS.items()})
    return Dataset.from_dict({name: values for name, (_, values) in COLUMNS.items()}, features=features)


def on_disk(tmp_path):
    dataset = whole()
    dataset.save_to_disk(str(tmp_path / "saved"))
    return Dataset.load_from_disk(str(tmp_path / "saved"))


SELECTIONS = {
    "all": lambda d: d,
    "slice": lambda d: d.select(range(2, 6)),
    "odd slice": lambda d: d.select(range(1, 7)),
    "rows": lambda d: d.select([5, 0, 5, 3]),
    "shuffled": lambda d: d.shuffle(seed=3),
    "rows of a slice": lambda d: d.select(range(1, 7)).select([4, 0, 2]),
    "shard": lambda d: d.shard(2, 1, contiguous=True),
    "concatenated": lambda d: concatenate_datasets([d, d.select(range(3, 7)), d.select(range(1, 4))]),
    "shuffled concatenation": lambda d: concatenate_datasets([d.select(range(3, 7)), d]).shuffle(seed=1),
    "nulls alone": lambda d: d.select([2]),
    "filtered": lambda d: d.filter(lambda row: row["bool"] is not False, keep_in_memory=True),
}


def plain(value):
    if isinstance(value, memoryview):
        return bytes(value)
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize("selection", SELECTIONS)
@pytest.mark.parametrize("place", ["memory", "disk"])
def test_a_reader_gives_what_the_data_set_gives(tmp_path, selection, place):
    dataset = SELECTIONS[selection](whole() if place == "memory" else on_disk(tmp_path))
    expected = dataset.with_format("arrow")[:].to_pylist()
    for name in COLUMNS:
        reader = ColumnReader(dataset, name)
        for moved in (reader, pickle.loads(pickle.dumps(reader))):
            assert [plain(moved(row)) for row in range(len(dataset))] == [row[name] for row in expected], name


def test_readers_give_plain_python_numbers():
    dataset = whole()
    assert type(ColumnReader(dataset, "int16")(0)) is int
    assert type(ColumnReader(dataset, "float32")(0)) is float
    assert type(ColumnReader(dataset, "bool")(0)) is bool
    assert isinstance(ColumnReader(dataset, "image")(1)["bytes"], memoryview)


@pytest.mark.parametrize("policy", ["rrc", "randaug", "mixing_randaug"])
@pytest.mark.parametrize("selection", ["all", "slice", "shuffled", "concatenated"])
def test_a_reader_gives_single_reinforcements(tmp_path, policy, selection):
    table, features = reinforced(policy)
    write_shard(tmp_path / "rows.parquet", table, TARGETS)
    dataset = Dataset.from_parquet(str(tmp_path / "rows.parquet"), cache_dir=str(tmp_path / "cache"))
    assert dataset.features == features
    dataset = SELECTIONS[selection](dataset)
    rows = list(dataset)
    for name in (schema.AUGMENTATION_PARAMS, "teacher_logits"):
        reader = ColumnReader(dataset, name, 3)
        for moved in (reader, pickle.loads(pickle.dumps(reader))):
            found = [[without_arrays(moved(i, slot)) for slot in range(3)] for i in range(len(rows))]
            assert found == [row[name] for row in rows]


def without_arrays(item):
    """A record with its arrays as lists."""
    return {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in item.items()}


def test_a_reader_of_a_saved_data_set_travels_without_its_data(tmp_path):
    Dataset.from_dict({"payload": [os.urandom(1000) for _ in range(100)]}).save_to_disk(str(tmp_path / "saved"))
    dataset = Dataset.load_from_disk(str(tmp_path / "saved"))
    reader = ColumnReader(dataset, "payload")
    assert bytes(reader(7)) == dataset[7]["payload"]
    packed = pickle.dumps(reader)
    assert len(packed) < 20_000
    assert bytes(pickle.loads(packed)(7)) == dataset[7]["payload"]


HOSTILE = [
    "'",
    '"',
    '"""',
    "{v0}",
    "__import__('os').abort()",
    "\\",
    "\\'",
    "a\nb",
    "\0",
    "\u2028",
    "v0",
    "i",
    "",
    "#",
]


def test_hostile_field_names_are_plain_keys():
    values = [{name: row * 100 + i for i, name in enumerate(HOSTILE)} for row in range(3)]
    array = pa.array(values, pa.struct([(name, pa.int64()) for name in HOSTILE]))
    view = storage._view(array)  # a dataset itself loses names with a NUL
    assert [view(row) for row in range(3)] == values
    harmless = [name for name in HOSTILE if name and "\0" not in name]
    dataset = Dataset(pa.table({"'": pa.StructArray.from_arrays([array.field(name) for name in harmless], harmless)}))
    assert [ColumnReader(dataset, "'")(row) for row in range(3)] == [
        {name: value[name] for name in harmless} for value in values
    ]


FIELDS = [f"field {index}" for index in range(999)]
DEEP = {
    "300 structs": (300, lambda value, kind: ({"a": value}, pa.struct([("a", kind)]))),
    "300 lists of 1": (300, lambda value, kind: ([value], pa.list_(kind, 1))),
    "8 lists of 4": (8, lambda value, kind: ([value] * 4, pa.list_(kind, 4))),
    "5 lists of 5": (5, lambda value, kind: ([value] * 5, pa.list_(kind, 5))),
    "999 fields": (
        1,
        lambda value, kind: (dict.fromkeys(FIELDS, value), pa.struct([(name, kind) for name in FIELDS])),
    ),
}


@pytest.mark.parametrize("name", DEEP)
def test_values_of_any_depth_and_width(name):
    value, kind = {"x": 7}, pa.struct([("x", pa.int32())])
    levels, wrap = DEEP[name]
    for _ in range(levels):
        value, kind = wrap(value, kind)
    view = storage._view(pa.array([value, None, value], kind))
    assert [view(row) for row in range(3)] == [value, None, value]


def test_an_unknown_column():
    with pytest.raises(KeyError, match="nowhere"):
        ColumnReader(whole(), "nowhere")


# Appending


@pytest.mark.parametrize("policy", ["randaug", "mixing"])
def test_appended_reinforcements_come_after_the_existing_ones(policy):
    old, _ = reinforced(policy, num_samples=2)
    new, _ = reinforced(policy, num_samples=5, first_sample=2)
    fresh, features = reinforced(policy, num_samples=5)
    joined = append_reinforcements(old, new, TARGETS)
    assert joined.num_rows == 10 and joined.column_names == fresh.column_names
    assert joined.cast(features.arrow_schema).to_pylist() == fresh.to_pylist()
    assert old.column("teacher_logits").type.list_size == 2, "the tables themselves do not change"


def test_tables_in_chunks_and_slices_are_appended():
    old, _ = reinforced("rrc", num_samples=2)
    new, _ = reinforced("rrc", num_samples=3, first_sample=2)
    fresh, features = reinforced("rrc", num_samples=3)
    chunks = pa.concat_tables([old.slice(2, 3), old.slice(5, 4)])
    joined = append_reinforcements(chunks, pa.concat_tables([new.slice(2, 6), new.slice(8, 1)]), TARGETS)
    assert joined.cast(features.arrow_schema).to_pylist() == fresh.slice(2, 7).to_pylist()


@pytest.mark.parametrize("column", [schema.SOURCE_ROW, schema.IMAGE_HASH])
def test_reinforcements_of_other_images_are_refused(column):
    old, _ = reinforced("rrc", num_samples=2)
    new, _ = reinforced("rrc", num_samples=3, first_sample=2)
    other = new.column(column).to_pylist()
    other[4] = 99 if column == schema.SOURCE_ROW else "0" * 16
    index = new.column_names.index(column)
    new = new.set_column(index, new.schema.field(index), pa.array(other, new.schema.field(index).type))
    with pytest.raises(ValueError, match="not those that the existing reinforcements belong to"):
        append_reinforcements(old, new, TARGETS)
    with pytest.raises(ValueError, match="another output folder"):
        append_reinforcements(old.slice(0, 5), new, TARGETS)


def test_large_int64_rows_are_exact():
    values = [2**62 + 1, -(2**62) - 1, 0]
    reader = ColumnReader(Dataset.from_dict({"row": np.array(values)}), "row")
    assert [reader(i) for i in range(3)] == values
