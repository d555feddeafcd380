"""A zoo of datasets, good ones of odd kinds and bad ones: a recipe ends well, or in one sentence and exit code 1."""

import errno
import json
import os
import re
import sys
import zipfile
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import (
    ClassLabel,
    Dataset,
    DatasetDict,
    Features,
    Image,
    List,
    ReadInstruction,
    Split,
    Value,
    load_dataset,
)
from datasets.exceptions import DatasetGenerationError
from recipe_modules import RECIPES, load_recipe
from tiny import NAMES, encode_image, stored_rows, tiny_dataset, tiny_image

from hf_reinforce import ReinforcementConfig
from hf_reinforce.cards import preview
from hf_reinforce.sources.files import columns_of_paths

ROWS, C = 12, 5


def items(rows=ROWS):
    return [{"bytes": encode_image(tiny_image(row, label=row % C)), "path": None} for row in range(rows)]


def dataset(labels=None, feature=None, **columns):
    """Twelve images, with labels of a kind, and other columns as `name=(values, feature)`."""
    values, features = {"image": items()}, {"image": Image()}
    if feature is not None:
        values["label"], features["label"] = labels, feature
    for name, (column, kind) in columns.items():
        values[name], features[name] = column, kind
    return Dataset.from_dict(values, features=Features(features))


def parquet(rows, folder, train=True, test=True):
    for split in ["train"] * train + ["test"] * test:
        rows.to_parquet(folder / f"{split}-00000-of-00001.parquet")


def class_labels(*labels):
    return [*labels, *(row % C for row in range(len(labels), ROWS))], ClassLabel(names=list(NAMES[:C]))


def of_labels(labels, feature):
    return lambda folder: parquet(dataset(labels, feature), folder)


def file(name, content):
    def write(folder):
        parquet(tiny_dataset(ROWS), folder)
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)

    return write


def only(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def cut(share):
    def write(folder):
        parquet(tiny_dataset(ROWS), folder)
        for path in folder.glob("*.parquet"):
            path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])

    return write


def two_shards(second):
    def write(folder):
        for split in ("train", "test"):
            tiny_dataset(ROWS).to_parquet(folder / f"{split}-00000-of-00002.parquet")
            second(tiny_dataset(ROWS)).to_parquet(folder / f"{split}-00001-of-00002.parquet")

    return write


def archive(inside):
    def write(folder):
        for split in ("train", "test"):
            with zipfile.ZipFile(folder / f"{split}.zip", "w") as found:
                for row in range(ROWS):
                    found.writestr(inside.format(NAMES[row % C], row), encode_image(tiny_image(row)))

    return write


def image_folder(folder):
    for split in ("train", "test"):
        for row in range(ROWS):
            place = folder / split / NAMES[row % C]
            place.mkdir(parents=True, exist_ok=True)
            (place / f"{row}.png").write_bytes(encode_image(tiny_image(row)))


def without_split(folder):
    parquet(tiny_dataset(ROWS), folder, train=False, test=False)
    tiny_dataset(ROWS).to_parquet(folder / "validation-00000-of-00001.parquet")


def with_image(value):
    def write(folder):
        rows = dataset([row % C for row in range(ROWS)], class_labels()[1])
        column = [value if row == 3 else item for row, item in enumerate(items())]
        found = Dataset.from_dict({"image": column, "label": rows["label"]}, features=rows.features)
        for split in ("train", "test"):  # `to_parquet` would read the files
            pq.write_table(found.data.table, folder / f"{split}-00000-of-00001.parquet")

    return write


def saved_to_disk(kind):
    def write(folder):
        rows = tiny_dataset(ROWS)
        (rows if kind == "split" else DatasetDict(train=rows, test=rows)).save_to_disk(str(folder))

    return write


def masks(folder):
    """A mask for each image, as a file; nested ones in a list and in a record."""
    paths = []
    for row in range(ROWS):
        path = folder.parent / f"mask-{row}.png"
        path.write_bytes(encode_image(tiny_image(100 + row)))
        paths.append(str(path))
    rows = dataset(
        *class_labels(),
        mask=(paths, Image()),
        masks=([[path, path] for path in paths], List(Image())),
        record=([{"depth": path, "n": 1} for path in paths], {"depth": Image(), "n": Value("int64")}),
        place=(paths, Value("string")),
    )
    # `to_parquet` would embed the files
    for split in ("train", "test"):
        pq.write_table(rows.data.table, folder / f"{split}-00000-of-00001.parquet")


FLOATS = [float(row % C) for row in range(ROWS)]
NO_CLASS = "not class indices"
SCRIPT = b"raise SystemExit(3)"


def of_rows(make):
    return lambda folder: parquet(make(), folder)


def nested(value, feature):
    return of_rows(
        lambda: Dataset.from_dict({"image": [value(item) for item in items()]}, Features({"image": feature}))
    )


def card(text):
    return file("README.md", f"---\n{text}\n---\n".encode())


def both(name, content):
    return lambda folder: [(folder / f"{split}.{name}").write_bytes(content) for split in ("train", "test")]


OTHERS = {"Image": ([1] * ROWS, Value("int64")), "Label": ([1] * ROWS, Value("int64"))}

# name: how it is made, and what each recipe says (reinforce, train, evaluate): None for a good end; a text for all.
ZOO = {
    "good": (of_labels(*class_labels()), (None, None, None)),
    "image folder": (image_folder, (None, None, None)),
    "nothing": (lambda folder: None, "holds no images or Parquet files"),
    "script beside the rows": (file("script/script.py", SCRIPT), (None, None, None)),
    "script": (only("source.py", SCRIPT), r"is a script \(source.py\)"),
    "labels -1": (
        of_labels(*class_labels(1, -1)),
        ("Row 1 has the label -1", "Row 1 has the label -1", "without a label"),
    ),
    "labels null": (of_labels(*class_labels(1, None)), (None, "Row 1 has the label None", "without a value")),
    "labels all null": (
        of_labels(*class_labels(*[None] * ROWS)),
        (None, "Row 0 has the label None", "without a value"),
    ),
    "labels of no type": (of_labels([None] * ROWS, Value("null")), (None, "no ClassLabel column", "no labels")),
    "integers": (of_labels([row % C for row in range(ROWS)], Value("int64")), (None, "no ClassLabel column", None)),
    "integers too large": (
        of_labels([9] * ROWS, Value("int64")),
        ("Row 0 has the label 9", "no ClassLabel column", "labels go up to 9"),
    ),
    "labels float": (of_labels(FLOATS, Value("float32")), f"holds Value.'float32'., {NO_CLASS}"),
    "labels bool": (of_labels([True, False] * 6, Value("bool")), f"holds Value.'bool'., {NO_CLASS}"),
    "labels lists": (of_labels([[1]] * ROWS, List(Value("int64"))), f"holds List.*{NO_CLASS}"),
    "labels lists of text": (of_labels([["a"]] * ROWS, List(Value("string"))), f"holds List.*{NO_CLASS}"),
    "labels records": (of_labels([{"a": 1}] * ROWS, {"a": Value("int64")}), f"holds {{.*{NO_CLASS}"),
    "labels text": (
        of_labels([NAMES[row % C] for row in range(ROWS)], Value("string")),
        "to use its texts as the names of classes",
    ),
    "no labels": (of_labels(None, None), (None, "no ClassLabel column", "no labels")),
    "image none": (with_image(None), "Row 3.*there is no image"),
    "image empty": (with_image({"bytes": b"", "path": None}), "Row 3.*decoded"),
    "image lost": (with_image({"bytes": None, "path": "/nowhere/a.png"}), "Row 3.*FileNotFoundError"),
    "no image column": (of_rows(lambda: tiny_dataset(ROWS).remove_columns("image")), "no image column"),
    "two image columns": (
        of_rows(lambda: dataset(*class_labels(), depth=(items(), Image()))),
        "several image columns.*--image_column_name",
    ),
    "image nested": (nested(lambda item: {"photo": item}, {"photo": Image()}), "no image column"),
    "images in a list": (nested(lambda item: [item, item], List(Image())), "no image column"),
    "same names by case": (of_rows(lambda: dataset(*class_labels(), **OTHERS)), (None, None, None)),
    "split missing": (without_split, r"no split '(train|test)'; its splits are \['validation'\]"),
    "no rows": (of_rows(lambda: tiny_dataset(0)), "no rows"),
    "save_to_disk": (saved_to_disk("split"), "was written by save_to_disk"),
    "save_to_disk of splits": (saved_to_disk("dict"), (None, None, None)),
    "csv": (both("csv", b"image,label\na.png,1\n"), "no image column"),
    "csv ragged": (both("csv", b"a,b\n1,2\n3,4,5,6\n"), "cannot be read .*Expected 2 fields in line 3"),
    "csv of noise": (both("csv", bytes(range(128, 256))), "cannot be read .*codec can't decode"),
    "json cut": (both("json", b'{"a": 1,'), "cannot be read .*JSON"),
    "zip of images": (archive("{1}.png"), (None, "no ClassLabel column", "no labels")),
    "zip of classes": (archive("{0}/{1}.png"), "Extract the archives"),
    "zip that is none": (both("zip", b"PK\3\4"), "cut short"),
    "parquet cut": (cut(0.6), r"cut short.*Replace \S+-00000-of-00001.parquet"),
    "parquet of 0 bytes": (cut(0), "cut short.*0 bytes.*Replace"),
    "shards differ": (
        two_shards(lambda rows: rows.add_column("extra", [1] * ROWS)),
        "not have the same columns .not expected: 'extra'",
    ),
    "a shard without labels": (
        two_shards(lambda rows: rows.remove_columns("label")),
        (None, "Row 12 has the label None", "without a value"),
    ),
    "card not YAML": (card("configs: [a: b: c"), "YAML at the top of README.md"),
    "card of another kind": (card("configs: 3"), "YAML at the top of README.md"),
    "card with features": (card("dataset_info:\n  features: 7"), "YAML at the top of README.md"),
    "card with other features": (
        card("dataset_info:\n  features:\n  - name: foo\n    dtype: string"),
        "not expected: 'image', 'label'; missing: 'foo'",
    ),
    "card names no files": (card("configs:\n- config_name: a\n  data_files: no/*"), "README.md"),
    "masks": (masks, "several image columns"),
}
FAST = (
    "good",
    "labels -1",
    "labels null",
    "labels float",
    "labels lists",
    "shards differ",
    "card not YAML",
    "image none",
)


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    monkeypatch.setattr(preview, "draw", lambda *args: None)  # they take longer than the rest


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    from hf_reinforce.models.students import create_student

    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    create_student("test_efficientnet", C, 32, NAMES[:C]).save_pretrained(folder / "teacher")
    return folder


@pytest.fixture
def recipe(monkeypatch, capsys):
    """`recipe(name, **flags)`: what it says when it ends in one sentence and exit code 1; None if it ends well."""
    monkeypatch.syspath_prepend(str(RECIPES))

    def recipe(name, **flags):
        words = [part for key, value in flags.items() for part in (f"--{key}", str(value))]
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *words])
        try:
            load_recipe(name).main()
        except SystemExit as stop:
            if not stop.code:
                return None
            said = str(stop.code)
            assert said.startswith("error: ") and "\n" not in said.strip() and len(said) < 1500, said
            return said
        return None

    return recipe


def run_recipe(recipe, kind, source, models, folder, **further):
    flags = {"dataset_name": source, **further}
    if kind == "reinforce":
        flags |= {"teacher_name_or_path": models / "teacher", "policy": "rrc", "image_size": 32}
        return recipe("reinforce", output_dir=folder, num_samples=1, top_k=3, num_workers=1, **flags)
    if kind == "train":
        flags |= {
            "policy": "rrc",
            "image_size": 32,
            "model_name_or_path": "test_efficientnet",
            "method": "plain",
        }
        flags |= {"eval_split": "test", "max_steps": 1, "per_device_train_batch_size": ROWS, "report_to": "none"}
        return recipe("train_kd", output_dir=folder, use_cpu=True, **flags)
    flags |= {"model_name_or_path": models / "teacher", "num_workers": 0, "device": "cpu"}
    return recipe("evaluate", output_json=folder / "found.json", **flags)


@pytest.mark.parametrize("kind", ["reinforce", "train", "evaluate"])
@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in FAST else pytest.mark.slow) for n in ZOO])
def test_a_recipe_ends_well_or_in_one_sentence(recipe, models, tmp_path, name, kind):
    make, said = ZOO[name]
    said = [said] * 3 if isinstance(said, str) else said
    source, folder = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    make(source)
    found = run_recipe(recipe, kind, source, models, folder)
    expected = said[("reinforce", "train", "evaluate").index(kind)]
    if expected is None:
        assert found is None
        return
    assert re.search(expected, found or ""), found
    assert (
        not list(folder.rglob("*.parquet"))
        and not list(folder.rglob("*.safetensors"))
        and not list(folder.rglob("*.tmp*"))
    )


def test_there_are_enough_bad_ones():
    assert sum(any(said) for _, said in ZOO.values()) >= 25


# -- labels -----------------------------------------------------------------------------------------------------------


def test_null_labels_pass_through_reinforcing_and_training(recipe, models, tmp_path):
    labels, feature = class_labels(1, None, None)
    (tmp_path / "pets").mkdir()
    parquet(dataset(labels, feature), tmp_path / "pets", test=False)
    tiny_dataset(ROWS).to_parquet(tmp_path / "pets" / "test-00000-of-00001.parquet")
    assert run_recipe(recipe, "reinforce", tmp_path / "pets", models, tmp_path / "plus") is None
    assert load_dataset(str(tmp_path / "plus"), "rrc", split="train")["label"][:4] == [1, None, None, 3]
    flags = {"model_name_or_path": "test_efficientnet", "max_steps": 1, "use_cpu": True, "eval_split": "test"}
    flags |= {"dataset_name": tmp_path / "plus", "per_device_train_batch_size": ROWS, "report_to": "none"}
    assert recipe("train_kd", output_dir=tmp_path / "reinforced", method="reinforced", **flags) is None
    online = {"method": "online", "teacher_name_or_path": models / "teacher"}
    assert recipe("train_kd", output_dir=tmp_path / "online", **online, **flags) is None
    for name, refused in {"hard": {"hard_label_weight": 0.5}, "fresh": {"plain_fraction": 0.5}}.items():
        said = recipe("train_kd", output_dir=tmp_path / name, method="reinforced", **refused, **flags)
        assert re.search("Row 1 has the label None, but .* classes are 0 to 4 .2 such rows", said)
        assert not list((tmp_path / name).rglob("*.safetensors"))
    assert "Row 1 has the label None" in recipe("train_kd", output_dir=tmp_path / "plain", method="plain", **flags)


@pytest.mark.parametrize("label", [-1, None, 7])
def test_labels_of_the_evaluation_set_are_checked_before_the_training(recipe, models, tmp_path, label):
    (tmp_path / "pets").mkdir()
    parquet(tiny_dataset(ROWS), tmp_path / "pets", test=False)
    rows = dataset([0, 1, label, *[3] * (ROWS - 3)], Value("int64"))
    rows.to_parquet(tmp_path / "pets" / "test-00000-of-00001.parquet")
    said = run_recipe(recipe, "train", tmp_path / "pets", models, tmp_path / "out")
    assert re.search(f"split 'test', column 'label': Row 2 has the label {label}, but .* are 0 to 4", said or "")
    assert not list((tmp_path / "out").rglob("*.safetensors"))


def test_a_label_beyond_the_names_is_not_evaluated(recipe, models, tmp_path):
    (tmp_path / "pets").mkdir()
    file = tmp_path / "pets" / "test-00000-of-00001.parquet"
    tiny_dataset(ROWS).to_parquet(file)
    table = pq.read_table(file)
    place = table.column_names.index("label")
    pq.write_table(table.set_column(place, table.field(place), pa.array([5, *[0] * (ROWS - 1)], pa.int64())), file)
    said = recipe("evaluate", model_name_or_path=models / "teacher", dataset_name=tmp_path / "pets")
    assert re.search("split 'test', has the label 5, but the 5 classes .* are 0 to 4; mend", said or "")


def test_unsigned_labels_are_counted_in_the_card(recipe, models, tmp_path):
    (tmp_path / "pets").mkdir()
    parquet(dataset([row % 5 for row in range(ROWS)], Value("uint8")), tmp_path / "pets", test=False)
    assert run_recipe(recipe, "reinforce", tmp_path / "pets", models, tmp_path / "plus") is None
    assert load_dataset(str(tmp_path / "plus"), "rrc", split="train")["label"][:4] == [0, 1, 2, 3]
    assert (tmp_path / "plus" / "README.md").exists()
    assert recipe("inspect_dataset", dataset_name=tmp_path / "plus", output_dir=tmp_path / "report") is None


def test_texts_that_are_files_of_this_machine_anywhere_are_left_out(tmp_path):
    (tmp_path / "mask.png").write_bytes(b"")
    rows = Dataset.from_dict({"file": ["", str(tmp_path / "mask.png")], "web": ["/about", "/cats"]})
    with patch("hf_reinforce.sources.files._LOCAL", "^/never/"):  # as under a folder whose name says nothing
        assert columns_of_paths(rows) == {"file": str(tmp_path / "mask.png")}


def test_texts_are_classes_when_their_column_is_named(recipe, models, tmp_path):
    (tmp_path / "pets").mkdir()
    names = [NAMES[row % C] for row in range(ROWS)]
    rows = dataset(breed=(names, Value("string")))
    rows.to_parquet(tmp_path / "pets" / "train-00000-of-00001.parquet")
    rows.select([4, 0]).to_parquet(tmp_path / "pets" / "test-00000-of-00001.parquet")  # of two classes alone
    named = {"label_column_name": "breed"}
    assert run_recipe(recipe, "reinforce", tmp_path / "pets", models, tmp_path / "plus", **named) is None
    config = ReinforcementConfig.load(tmp_path / "plus" / "rrc")
    assert config.class_names == tuple(sorted(NAMES[:C])) and config.source.label_column == "breed"
    stored = load_dataset(str(tmp_path / "plus"), "rrc", split="train")
    assert stored.features["breed"].names == sorted(NAMES[:C])
    assert [stored.features["breed"].int2str(code) for code in stored["breed"]] == names
    assert run_recipe(recipe, "train", tmp_path / "pets", models, tmp_path / "plain", **named) is None
    assert run_recipe(recipe, "evaluate", tmp_path / "pets", models, tmp_path, **named) is None
    assert json.loads((tmp_path / "found.json").read_text())["num_samples"] == 2
    flags = {"model_name_or_path": "test_efficientnet", "max_steps": 1, "use_cpu": True, "eval_split": "test"}
    flags |= {"dataset_name": tmp_path / "plus", "per_device_train_batch_size": ROWS, "report_to": "none"}
    teacher = {"teacher_name_or_path": models / "teacher"}
    for method, more in {"reinforced": {"hard_label_weight": 0.5}, "online": teacher, "plain": {}}.items():
        folder = tmp_path / f"student-{method}"
        assert recipe("train_kd", output_dir=folder, method=method, **more, **flags) is None
        assert "eval_accuracy" in json.loads((folder / "all_results.json").read_text())
    rows.select([0]).map(lambda row: {"breed": "wolf"}).to_parquet(tmp_path / "pets" / "test-00000-of-00001.parquet")
    said = recipe("train_kd", output_dir=tmp_path / "student-wolf", method="reinforced", **flags)
    assert "1 texts that are none of the 5 classes" in said and "wolf" in said


# -- splits -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("split", "rows"),
    [
        ("train[:50%]", range(6)),
        pytest.param("train[5:15]", range(5, 12), marks=pytest.mark.slow),
        pytest.param("train[-3:]", range(9, 12), marks=pytest.mark.slow),
        pytest.param("train[25%:75%]", range(3, 9), marks=pytest.mark.slow),
        pytest.param("train+test", [*range(12), *range(4)], marks=pytest.mark.slow),
        pytest.param("train[:2] + test[2:]", [0, 1, 2, 3], marks=pytest.mark.slow),
        pytest.param("all", [*range(12), *range(4)], marks=pytest.mark.slow),
    ],
)
def test_a_part_of_splits_is_reinforced_continued_joined_and_checked(recipe, models, tmp_path, capsys, split, rows):
    from hf_reinforce import load_reinforced, push_to_hub

    (tmp_path / "pets").mkdir()
    tiny_dataset(ROWS).to_parquet(tmp_path / "pets" / "train-00000-of-00001.parquet")
    tiny_dataset(4).to_parquet(tmp_path / "pets" / "test-00000-of-00001.parquet")
    plus = tmp_path / "plus"
    said = run_recipe(recipe, "reinforce", tmp_path / "pets", models, plus, split=split, estimate=True)
    assert said is None and f"{len(rows)} images, policy rrc" in capsys.readouterr().out
    assert run_recipe(recipe, "reinforce", tmp_path / "pets", models, plus, split=split) is None
    config = ReinforcementConfig.load(plus / "rrc")
    split = split.replace(" ", "")
    assert config.source.split == split and config.split == "train" and config.source.num_rows == len(rows)
    assert [path.name for path in (plus / "rrc").glob("*.parquet")] == ["train-00000-of-00001.parquet"]
    for samples in (1, 2):  # again, and more of them
        flags = {"teacher_name_or_path": models / "teacher", "policy": "rrc", "image_size": 32, "split": split}
        flags |= {"dataset_name": tmp_path / "pets", "num_samples": samples, "top_k": 3, "num_workers": 1}
        assert recipe("reinforce", output_dir=plus, **flags) is None
    stored = load_dataset(str(plus), "rrc", split="train")
    assert len(stored) == len(rows) and len(stored[0]["teacher_logits"]) == 2
    joined = load_reinforced(str(plus))
    labels = [joined[position]["labels"] for position in range(len(joined))]
    assert labels == [row % C for row in rows] and joined.config.num_samples == 2
    assert recipe("verify", dataset_name=plus, device="cpu") is None
    assert {change.reason for change in push_to_hub(plus, "me/plus", dry_run=True).changes} == {"new"}
    assert recipe("inspect_dataset", dataset_name=plus, output_dir=tmp_path / "inspection") is None
    flags = {"model_name_or_path": "test_efficientnet", "max_steps": 1, "use_cpu": True, "report_to": "none"}
    flags |= {"dataset_name": plus, "per_device_train_batch_size": 4, "eval_split": "train[90%:]"}
    assert recipe("train_kd", output_dir=tmp_path / "student", method="reinforced", **flags) is None
    said = recipe("train_kd", output_dir=tmp_path / "stream", method="reinforced", streaming=True, **flags)
    assert "a stream of the images cannot find. Leave out streaming=True (--streaming True)" in said
    other = recipe(
        "reinforce",
        output_dir=plus,
        **{**TEACH, "dataset_name": tmp_path / "pets"},
        teacher_name_or_path=models / "teacher",
    )
    assert f"source.split: 'train', not {split!r}" in other


@pytest.mark.parametrize(
    ("split", "rows", "recorded"),
    [
        (ReadInstruction("train", to=50, unit="%"), 55, "train[:50%]"),
        (ReadInstruction("train", to=50, unit="%", rounding="pct1_dropremainder"), 50, None),
        ("train[:50%](pct1_dropremainder)", 50, "train[:50%](pct1_dropremainder)"),
        (ReadInstruction("train", from_=3, to=5) + ReadInstruction("test"), 6, "train[3:5]+test"),
        (Split.TEST, 4, "test"),
    ],
)
def test_read_instructions_are_parts_too(tmp_path, split, rows, recorded):
    from tiny import tiny_teacher

    from hf_reinforce import load_policy, load_reinforced, reinforce
    from hf_reinforce.sources.loading import load_source
    from hf_reinforce.splits import count_rows, split_text

    source = str(tmp_path / "pets")
    (tmp_path / "pets").mkdir()
    tiny_dataset(110, formats=["PNG"]).to_parquet(tmp_path / "pets" / "train-00000-of-00001.parquet")
    tiny_dataset(4).to_parquet(tmp_path / "pets" / "test-00000-of-00001.parquet")
    part = load_source(source, split=split)
    assert len(part) == rows == count_rows(split_text(split), {"train": 110, "test": 4})
    options = {"num_samples": 1, "top_k": 2, "num_workers": 1, "source_name": source, "split": split}
    folder = reinforce(part, tiny_teacher(), load_policy("rrc", 16), tmp_path / "plus", **options)
    config = ReinforcementConfig.load(folder)
    assert recorded in (None, config.source.split) and config.source.num_rows == rows
    assert config.split == ("test" if recorded == "test" else "train")
    assert len(stored_rows(folder)) == len(load_reinforced(str(tmp_path / "plus"))) == rows


TEACH = {"policy": "rrc", "image_size": 32, "num_samples": 2, "top_k": 3, "num_workers": 1}


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        ("valid", "has no split 'valid'; its splits are \\['train', 'test'\\]"),
        ("train+valid[:5]", "has no split 'valid'"),
        ("train[:x]", "The split 'train\\[:x\\]' cannot be read .*; name a split, such as 'train', or a part"),
        ("train[50:60]", "has no rows in that split"),
        ("train[:200%]", "Percent slice boundaries"),
        ("train[:50%](pct1_dropremainder)", "less than 100 elements"),
        ("", "--split is empty"),
    ],
)
def test_splits_that_are_none_are_refused_with_those_there_are(recipe, models, tmp_path, split, expected):
    (tmp_path / "pets").mkdir()
    parquet(tiny_dataset(ROWS), tmp_path / "pets")
    said = run_recipe(recipe, "reinforce", tmp_path / "pets", models, tmp_path / "out", split=split)
    assert re.search(expected, said or ""), said
    assert not (tmp_path / "out").exists()


# -- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("embed_images", [False, True])
def test_files_of_other_columns_are_stored_and_paths_are_not(recipe, models, tmp_path, embed_images):
    from hf_reinforce import push_to_hub

    (tmp_path / "pets").mkdir()
    masks(tmp_path / "pets")
    plus = tmp_path / "plus"
    flags = {"image_column_name": "image", "embed_images": embed_images}
    assert run_recipe(recipe, "reinforce", tmp_path / "pets", models, plus, **flags) is None
    shard = plus / "rrc" / "train-00000-of-00001.parquet"
    assert str(tmp_path).encode() not in shard.read_bytes()
    for path in tmp_path.glob("mask-*.png"):
        path.unlink()
    stored = load_dataset(str(plus), "rrc", split="train")
    assert "place" not in stored.column_names and ("image" in stored.column_names) == embed_images
    for row in (0, 7):
        expected = np.asarray(tiny_image(100 + row))
        found = [stored[row]["mask"], *stored[row]["masks"], stored[row]["record"]["depth"]]
        assert len(found) == 4 and all(np.array_equal(np.asarray(mask), expected) for mask in found)
    assert push_to_hub(plus, "me/plus", dry_run=True).changes


@pytest.mark.parametrize("column", ["mask", "masks", "record", "place"])
def test_publishing_refuses_paths_of_this_machine(recipe, models, tmp_path, column):
    from hf_reinforce import push_to_hub

    (tmp_path / "pets").mkdir()
    parquet(tiny_dataset(ROWS), tmp_path / "pets")
    plus = tmp_path / "plus"
    assert run_recipe(recipe, "reinforce", tmp_path / "pets", models, plus) is None
    shard = plus / "rrc" / "train-00000-of-00001.parquet"
    path = {"bytes": None, "path": "/srv/images/mask.png"}
    value = {"mask": path, "masks": [path], "record": {"depth": path}, "place": "/media/me/mask.png"}[column]
    table = pq.read_table(shard)
    rows = Dataset.from_dict({column: [None] * 5 + [value] * (ROWS - 5)}).data.table
    pq.write_table(table.append_column(column, rows.column(0)), shard)
    config = json.loads((shard.parent / "reinforcement.json").read_text())
    (shard.parent / "reinforcement.json").write_text(json.dumps({k: v for k, v in config.items() if k != "checksums"}))
    with pytest.raises(
        ValueError, match=f"row 5 of the column '{column}' holds '/(srv|media)/.*mask.png', a path of this"
    ):
        push_to_hub(plus, "me/plus", dry_run=True)


def test_a_mask_that_is_gone_is_named(recipe, models, tmp_path):
    (tmp_path / "pets").mkdir()
    masks(tmp_path / "pets")
    os.unlink(tmp_path / "mask-3.png")
    said = run_recipe(recipe, "reinforce", tmp_path / "pets", models, tmp_path / "plus", image_column_name="image")
    assert "A file of the column 'mask' cannot be embedded (FileNotFoundError" in said
    assert not list((tmp_path / "plus").rglob("*.parquet"))


# -- the API ----------------------------------------------------------------------------------------------------------


def test_one_split_is_meant(tmp_path):
    from tiny import tiny_teacher

    from hf_reinforce import ImageSource, KDTrainer, KDTrainingArguments, load_policy, load_reinforced, reinforce
    from hf_reinforce.generation.estimate import estimate

    splits, policy = DatasetDict(train=tiny_dataset(4), test=tiny_dataset(2)), load_policy("rrc", 16)
    streams = splits.to_iterable_dataset() if hasattr(splits, "to_iterable_dataset") else splits
    reinforce(splits["train"], tiny_teacher(), policy, tmp_path / "plus", num_samples=1, top_k=2)
    args = KDTrainingArguments(str(tmp_path / "student"), report_to="none", use_cpu=True)
    for several in (splits, streams):
        for call in (
            lambda several=several: reinforce(
                several, tiny_teacher(), policy, tmp_path / "no", num_samples=1, top_k=2
            ),
            lambda several=several: estimate(several, tiny_teacher(), policy, num_samples=1, top_k=2),
            lambda several=several: ImageSource.of(several),
            lambda several=several: ImageSource(several, "image"),
            lambda several=several: load_reinforced(str(tmp_path / "plus"), source=several),
        ):
            with pytest.raises(TypeError, match="has the splits .'train', 'test'.; pass one of them"):
                call()
        with pytest.raises(TypeError, match="train_dataset is a (Iterable)?DatasetDict; pass what load_reinforced"):
            KDTrainer(torch.nn.Linear(2, 2), args, several)
    with pytest.raises(TypeError, match="must be a Dataset .* not a builtins.list"):
        ImageSource.of([1, 2])


@pytest.mark.parametrize("how", ["transform", "format", "numpy", "stream"])
def test_formats_are_dropped_with_a_word(tmp_path, caplog, how):
    from tiny import tiny_teacher

    from hf_reinforce import ImageSource, load_policy, load_reinforced, reinforce

    rows = tiny_dataset(6)
    formatted = {
        "transform": lambda: rows.with_transform(lambda batch: {"pixel_values": [0] * len(batch["image"])}),
        "format": lambda: rows.with_format("torch", columns=["label"]),
        "numpy": lambda: rows.with_format("numpy"),
        "stream": lambda: rows.to_iterable_dataset().with_format("torch"),
    }[how]()
    caplog.set_level("INFO", "hf_reinforce")
    policy, teacher = load_policy("rrc", 16), tiny_teacher()
    for source, name in ((rows, "plain"), (formatted, "formatted")):
        reinforce(source, teacher, policy, tmp_path / name, num_samples=1, top_k=2, num_workers=1)
    assert "has a format or transform (with_format, with_transform); it is dropped here" in caplog.text
    assert "Images from the column 'image' of the dataset, labels from 'label' (5 classes)" in caplog.text
    plain, other = (stored_rows(tmp_path / name / "rrc") for name in ("plain", "formatted"))
    assert plain["teacher_logits"][:] == other["teacher_logits"][:] and plain["image_hash"] == other["image_hash"]
    if how != "stream":
        assert len(load_reinforced(str(tmp_path / "plain"), source=formatted)) == 6
        assert ImageSource.of(formatted).label(3) == 3


def test_a_local_copy_may_call_its_configuration_otherwise(tmp_path, caplog):
    from hf_reinforce.sources.loading import load_source

    (tmp_path / "copy" / "german").mkdir(parents=True)
    parquet(tiny_dataset(3), tmp_path / "copy" / "german")
    assert len(load_source(str(tmp_path / "copy"), "german")) == 3  # by its folder
    (tmp_path / "plain").mkdir()
    parquet(tiny_dataset(4), tmp_path / "plain")
    assert len(load_source(str(tmp_path / "plain"), "german")) == 4
    assert "has no configuration 'german'; its only one, 'default', is used" in caplog.text
    (tmp_path / "plain" / "README.md").write_text("---\nconfigs:\n- config_name: a\n  data_files: train*\n---\n")
    assert len(load_source(str(tmp_path / "plain"), "default")) == 4
    text = "---\nconfigs:\n- config_name: a\n  data_files: train*\n- config_name: b\n  data_files: test*\n---\n"
    (tmp_path / "plain" / "README.md").write_text(text)
    with pytest.raises(ValueError, match="BuilderConfig 'german' not found. Available: .'a', 'b'"):
        load_source(str(tmp_path / "plain"), "german")


def test_a_cache_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    from hf_reinforce.sources import errors as loading_errors

    monkeypatch.setattr(loading_errors, "_CACHES", (tmp_path / "hf" / "datasets", tmp_path / "hf" / "hub"))
    for error in (
        PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "hf")),
        PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "hf" / "datasets" / "a")),
        OSError(errno.ENOSPC, "No space left on device"),
    ):
        with (
            pytest.raises(ValueError, match="The cache folder .*/hf/datasets cannot be written") as caught,
            loading_errors.explained(str(tmp_path)),
        ):
            raise error
        assert error.strerror in str(caught.value) and "set HF_HOME" in str(caught.value)
        with (
            pytest.raises(ValueError, match="The cache folder .* cannot be written"),
            loading_errors.explained(str(tmp_path)),
        ):
            raise DatasetGenerationError("An error occurred") from error


@pytest.mark.slow
def test_a_cache_that_cannot_be_made_is_named(tmp_path):
    import subprocess

    (tmp_path / "file").touch()
    (tmp_path / "pets").mkdir()
    parquet(tiny_dataset(3), tmp_path / "pets")
    program = f"from hf_reinforce.sources.loading import load_source; load_source({str(tmp_path / 'pets')!r})"
    environment = {key: value for key, value in os.environ.items() if key not in ("HF_DATASETS_CACHE", "HF_HUB_CACHE")}
    environment |= {"HF_HOME": str(tmp_path / "file" / "hf"), "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert f"The cache folder {tmp_path}/file/hf/datasets cannot be written (Not a directory)" in done.stderr
    assert "set HF_HOME to another folder" in done.stderr
