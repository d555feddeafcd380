"""A zoo of datasets, good ones of odd kinds and bad ones: a recipe ends well, or in one sentence and exit code 1."""

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
from recipe_modules import RECIPES, load_recipe
from tiny import NAMES, encode_image, stored_rows, tiny_dataset, tiny_image, tiny_teacher

from hf_reinforce import (
    ImageSource,
    KDTrainer,
    KDTrainingArguments,
    ReinforcementConfig,
    create_student,
    load_policy,
    load_reinforced,
    load_source,
    push_to_hub,
    reinforce,
)
from hf_reinforce.cards import preview
from hf_reinforce.generation.estimate import estimate
from hf_reinforce.sources.files import columns_of_paths
from hf_reinforce.splits import count_rows, split_text

ROWS, C = 12, 5
SPLITS = ("train", "test")
LABELS = [row % C for row in range(ROWS)]
CLASSES, NUMBER, TEXT = ClassLabel(names=list(NAMES[:C])), Value("int64"), Value("string")


def items(rows=ROWS):
    return [{"bytes": encode_image(tiny_image(row, label=row % C)), "path": None} for row in range(rows)]


def dataset(labels=LABELS, feature=CLASSES, **columns):
    """Twelve images, with labels of a kind, and other columns as `name=(values, feature)`."""
    values, features = {"image": items()}, {"image": Image()}
    for name, (column, kind) in {"label": (labels, feature), **columns}.items():
        if kind is not None:
            values[name], features[name] = column, kind
    return Dataset.from_dict(values, features=Features(features))


def parquet(rows, folder, splits=SPLITS):
    folder.mkdir(exist_ok=True)
    for split in splits:
        rows.to_parquet(folder / f"{split}-00000-of-00001.parquet")


def unread(rows, folder):
    """Writes the table as it is, where `to_parquet` would read the files that it names."""
    for split in SPLITS:
        pq.write_table(rows.data.table, folder / f"{split}-00000-of-00001.parquet")


def of_labels(labels, feature=CLASSES):
    return lambda folder: parquet(dataset(labels, feature), folder)


def of_rows(make):
    return lambda folder: parquet(make(), folder)


def file(name, content, beside_rows=True):
    def write(folder):
        if beside_rows:
            parquet(tiny_dataset(ROWS), folder)
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)

    return write


def card(text):
    return file("README.md", f"---\n{text}\n---\n".encode())


def both(name, content):
    return lambda folder: [(folder / f"{split}.{name}").write_bytes(content) for split in SPLITS]


def cut(share):
    def write(folder):
        parquet(tiny_dataset(ROWS), folder)
        for path in folder.glob("*.parquet"):
            path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])

    return write


def two_shards(second):
    def write(folder):
        for split in SPLITS:
            tiny_dataset(ROWS).to_parquet(folder / f"{split}-00000-of-00002.parquet")
            second(tiny_dataset(ROWS)).to_parquet(folder / f"{split}-00001-of-00002.parquet")

    return write


def archive(inside):
    def write(folder):
        for split in SPLITS:
            with zipfile.ZipFile(folder / f"{split}.zip", "w") as found:
                for row in range(ROWS):
                    found.writestr(inside.format(NAMES[row % C], row), encode_image(tiny_image(row)))

    return write


def image_folder(folder):
    for split in SPLITS:
        for row in range(ROWS):
            place = folder / split / NAMES[row % C]
            place.mkdir(parents=True, exist_ok=True)
            (place / f"{row}.png").write_bytes(encode_image(tiny_image(row)))


def with_image(value):
    rows = dataset()
    column = [value if row == 3 else item for row, item in enumerate(items())]
    return lambda folder: unread(Dataset.from_dict({"image": column, "label": LABELS}, rows.features), folder)


def nested(value, feature):
    return of_rows(
        lambda: Dataset.from_dict({"image": [value(item) for item in items()]}, Features({"image": feature}))
    )


def saved_to_disk(of_splits):
    rows = tiny_dataset(ROWS)
    return lambda folder: (DatasetDict(train=rows, test=rows) if of_splits else rows).save_to_disk(str(folder))


def masks(folder):
    """A mask for each image, as a file; nested ones in a list and in a record."""
    paths = []
    for row in range(ROWS):
        path = folder.parent / f"mask-{row}.png"
        path.write_bytes(encode_image(tiny_image(100 + row)))
        paths.append(str(path))
    rows = dataset(
        mask=(paths, Image()),
        masks=([[path, path] for path in paths], List(Image())),
        record=([{"depth": path, "n": 1} for path in paths], {"depth": Image(), "n": NUMBER}),
        place=(paths, TEXT),
    )
    unread(rows, folder)


NO_CLASS, SCRIPT = "not class indices", b"raise SystemExit(3)"
NO_NAMES = (None, "no ClassLabel column", "no labels")
NO_FIT = "YAML at the top of README.md"
FEATURES = "dataset_info:\n  features:\n  - name: foo\n    dtype: string"
OTHERS = {"Image": ([1] * ROWS, NUMBER), "Label": ([1] * ROWS, NUMBER)}

# name: how it is made, and what each recipe says (reinforce, train, evaluate): None for a good end; a text for all.
ZOO = {
    "good": (of_labels(LABELS), None),
    "image folder": (image_folder, None),
    "nothing": (lambda folder: None, "holds no images or Parquet files"),
    "script beside the rows": (file("script/script.py", SCRIPT), None),
    "script": (file("pets.py", SCRIPT, False), "scripts are no longer supported, but found pets.py"),
    "labels -1": (of_labels([1, -1, *LABELS[2:]]), "Row 1 has the label -1"),
    "labels null": (of_labels([1, None, *LABELS[2:]]), (None, *["Row 1 has the label None"] * 2)),
    "labels all null": (of_labels([None] * ROWS), (None, *["Row 0 has the label None"] * 2)),
    "labels of no type": (of_labels([None] * ROWS, Value("null")), NO_NAMES),
    "integers": (of_labels(LABELS, NUMBER), (None, "no ClassLabel column", None)),
    "integers too large": (of_labels([9] * ROWS, NUMBER), ("the label 9", NO_NAMES[1], "labels go up to 9")),
    "labels float": (of_labels(list(map(float, LABELS)), Value("float32")), f"holds Value.'float32'., {NO_CLASS}"),
    "labels bool": (of_labels([True, False] * 6, Value("bool")), f"holds Value.'bool'., {NO_CLASS}"),
    "labels lists": (of_labels([[1]] * ROWS, List(NUMBER)), f"holds List.*{NO_CLASS}"),
    "labels lists of text": (of_labels([["a"]] * ROWS, List(TEXT)), f"holds List.*{NO_CLASS}"),
    "labels records": (of_labels([{"a": 1}] * ROWS, {"a": NUMBER}), f"holds {{.*{NO_CLASS}"),
    "labels text": (of_labels([NAMES[label] for label in LABELS], TEXT), "to use its texts as the names of classes"),
    "no labels": (of_labels(None, None), NO_NAMES),
    "image none": (with_image(None), "Row 3.*there is no image"),
    "image empty": (with_image({"bytes": b"", "path": None}), "Row 3.*decoded"),
    "image lost": (with_image({"bytes": None, "path": "/nowhere/a.png"}), "Row 3.*FileNotFoundError"),
    "no image column": (of_rows(lambda: tiny_dataset(ROWS).remove_columns("image")), "no image column"),
    "two image columns": (
        of_rows(lambda: dataset(depth=(items(), Image()))),
        "several image columns.*--image_column_",
    ),
    "image nested": (nested(lambda item: {"photo": item}, {"photo": Image()}), "no image column"),
    "images in a list": (nested(lambda item: [item, item], List(Image())), "no image column"),
    "same names by case": (of_rows(lambda: dataset(**OTHERS)), None),
    "split missing": (
        lambda folder: parquet(tiny_dataset(2), folder, ["dev"]),  # a name of the validation split
        r"no split '(train|test)'; its splits are \['validation'\]",
    ),
    "no rows": (of_rows(lambda: tiny_dataset(0)), "no rows"),
    "save_to_disk": (saved_to_disk(False), "was written by save_to_disk"),
    "save_to_disk of splits": (saved_to_disk(True), None),
    "csv": (both("csv", b"image,label\na.png,1\n"), "no image column"),
    "csv ragged": (both("csv", b"a,b\n1,2\n3,4,5,6\n"), "cannot be read .*Expected 2 fields in line 3"),
    "csv of noise": (both("csv", bytes(range(128, 256))), "cannot be read .*codec can't decode"),
    "json cut": (both("json", b'{"a": 1,'), "cannot be read .*JSON"),
    "zip of images": (archive("{1}.png"), NO_NAMES),
    "zip of classes": (archive("{0}/{1}.png"), "Extract the archives"),
    "zip that is none": (both("zip", b"PK\3\4"), "not a zip file"),
    "parquet cut": (cut(0.6), r"cut short.*Delete \S+-00000-of-00001.parquet"),
    "parquet of 0 bytes": (cut(0), "cut short.*0 bytes"),
    "shards differ": (two_shards(lambda rows: rows.add_column("extra", [1] * ROWS)), "not expected: .'extra'"),
    "a shard without labels": (
        two_shards(lambda rows: rows.remove_columns("label")),
        (None, *["Row 12 has the label None"] * 2),
    ),
    "card not YAML": (card("configs: [a: b: c"), NO_FIT),
    "card of another kind": (card("configs: 3"), "config"),
    "card with features": (card("dataset_info:\n  features: 7"), NO_FIT),
    "card with other features": (card(FEATURES), "not expected: .'image', 'label'., missing: .'foo'"),
    "card names no files": (card("configs:\n- config_name: a\n  data_files: no/*"), "README.md"),
    "masks": (masks, "several image columns"),
}
FAST = ("good", "labels -1", "labels null", "labels float", "shards differ", "card not YAML", "image none")


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    monkeypatch.setattr(preview, "draw", lambda *args: None)  # they take longer than the rest


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "teacher"
    torch.manual_seed(0)
    create_student("test_efficientnet", C, 32, NAMES[:C]).save_pretrained(folder)
    return folder


@pytest.fixture
def recipe(monkeypatch, teacher, tmp_path):
    """`recipe(name, **flags)`: what it says when it ends in one sentence and exit code 1; None if it ends well.

    A recipe has what it needs for a short run; the data are the folder `pets`, the results go to `out`.
    """
    monkeypatch.syspath_prepend(str(RECIPES))
    defaults = {
        "reinforce": {"policy": "rrc", "image_size": 32, "num_samples": 1, "top_k": 3, "num_workers": 1}
        | {"teacher_name_or_path": teacher, "output_dir": tmp_path / "out"},
        "train_kd": {"model_name_or_path": "test_efficientnet", "max_steps": 1, "use_cpu": True, "eval_split": "test"}
        | {"per_device_train_batch_size": ROWS, "report_to": "none", "output_dir": tmp_path / "out"},
        "evaluate": {"model_name_or_path": teacher, "num_workers": 0, "device": "cpu"}
        | {"output_json": tmp_path / "found.json"},
    }

    def recipe(name, **flags):
        flags = {"dataset_name": tmp_path / "pets", **defaults.get(name, {}), **flags}
        words = [part for key, value in flags.items() for part in (f"--{key}", str(value))]
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *words])
        try:
            load_recipe(name).main()
        except SystemExit as stop:
            if stop.code:
                said = str(stop.code)
                assert said.startswith("error: ") and "\n" not in said.strip() and len(said) < 1500, said
                return said
        return None

    return recipe


PLAIN = {"method": "plain", "policy": "rrc", "image_size": 32}


@pytest.mark.parametrize("kind", ["reinforce", "train_kd", "evaluate"])
@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in FAST else pytest.mark.slow) for n in ZOO])
def test_a_recipe_ends_well_or_in_one_sentence(recipe, tmp_path, name, kind):
    make, said = ZOO[name]
    expected = said[("reinforce", "train_kd", "evaluate").index(kind)] if isinstance(said, tuple) else said
    (tmp_path / "pets").mkdir()
    make(tmp_path / "pets")
    found = recipe(kind, **(PLAIN if kind == "train_kd" else {}))
    if expected is None:
        assert found is None
        return
    assert re.search(expected, found or ""), found
    left = [path for pattern in ("*.parquet", "*.safetensors", "*.tmp*") for path in (tmp_path / "out").rglob(pattern)]
    assert not left


# -- labels -----------------------------------------------------------------------------------------------------------


def test_null_labels_pass_through_reinforcing_and_training(recipe, teacher, tmp_path):
    parquet(dataset([1, None, None, *LABELS[3:]]), tmp_path / "pets", ["train"])
    parquet(tiny_dataset(ROWS), tmp_path / "pets", ["test"])
    plus = {"dataset_name": tmp_path / "plus"}
    assert recipe("reinforce", output_dir=tmp_path / "plus") is None
    assert load_dataset(str(tmp_path / "plus"), "rrc", split="train")["label"][:4] == [1, None, None, 3]
    assert recipe("train_kd", method="reinforced", **plus) is None
    online = {"method": "online", "teacher_name_or_path": teacher, "output_dir": tmp_path / "online"}
    assert recipe("train_kd", **online, **plus) is None
    for refused in ({"hard_label_weight": 0.5}, {"plain_fraction": 0.5}):
        said = recipe("train_kd", method="reinforced", output_dir=tmp_path / "no", **refused, **plus)
        assert re.search("Row 1 has the label None, but .* classes are 0 to 4 .2 such rows", said)
    assert "Row 1 has the label None" in recipe("train_kd", method="plain", output_dir=tmp_path / "no", **plus)
    assert not list((tmp_path / "no").rglob("*.safetensors"))


def test_a_folder_reinforced_without_labels_has_targets_alone(recipe, tmp_path):
    parquet(dataset(), tmp_path / "pets")
    assert recipe("reinforce", output_dir=tmp_path / "plus", label_column_name="") is None
    said = recipe("train_kd", method="plain", dataset_name=tmp_path / "plus")
    assert "was reinforced without labels, so --method plain has no classes" in said


@pytest.mark.parametrize("label", [-1, None, 7])
def test_labels_of_the_evaluation_set_are_checked_before_the_training(recipe, tmp_path, label):
    parquet(tiny_dataset(ROWS), tmp_path / "pets", ["train"])
    parquet(dataset([0, 1, label, *[3] * (ROWS - 3)], NUMBER), tmp_path / "pets", ["test"])
    said = recipe("train_kd", **PLAIN)
    assert re.search(f"split 'test', column 'label': Row 2 has the label {label}, but .* are 0 to 4", said or "")
    assert not list((tmp_path / "out").rglob("*.safetensors"))


def test_a_label_beyond_the_names_is_not_evaluated(recipe, tmp_path):
    parquet(tiny_dataset(ROWS), tmp_path / "pets", ["test"])
    (path,) = (tmp_path / "pets").iterdir()
    table = pq.read_table(path)
    place = table.column_names.index("label")
    pq.write_table(table.set_column(place, table.field(place), pa.array([5, *[0] * (ROWS - 1)], pa.int64())), path)
    said = recipe("evaluate")
    assert re.search("Row 0 has the label 5, but .*pets's classes are 0 to 4; mend", said or "")


def test_unsigned_labels_are_counted_in_the_card(recipe, tmp_path):
    parquet(dataset(LABELS, Value("uint8")), tmp_path / "pets", ["train"])
    assert recipe("reinforce", output_dir=tmp_path / "plus") is None
    assert load_dataset(str(tmp_path / "plus"), "rrc", split="train")["label"][:4] == [0, 1, 2, 3]
    assert (tmp_path / "plus" / "README.md").exists()
    assert recipe("inspect_dataset", dataset_name=tmp_path / "plus", output_dir=tmp_path / "report") is None


def test_texts_are_classes_when_their_column_is_named(recipe, teacher, tmp_path):
    names = [NAMES[label] for label in LABELS]
    rows = dataset(None, None, breed=(names, TEXT))
    parquet(rows, tmp_path / "pets", ["train"])
    parquet(rows.select([4, 0]), tmp_path / "pets", ["test"])  # of two classes alone
    named = {"label_column_name": "breed"}
    assert recipe("reinforce", output_dir=tmp_path / "plus", **named) is None
    config = ReinforcementConfig.load(tmp_path / "plus" / "rrc")
    assert config.class_names == tuple(sorted(NAMES[:C])) and config.source.label_column == "breed"
    stored = load_dataset(str(tmp_path / "plus"), "rrc", split="train")
    assert stored.features["breed"].names == sorted(NAMES[:C])
    assert [stored.features["breed"].int2str(code) for code in stored["breed"]] == names
    assert recipe("train_kd", **PLAIN, **named) is None
    assert recipe("evaluate", **named) is None
    assert json.loads((tmp_path / "found.json").read_text())["num_samples"] == 2
    for method, more in {"reinforced": {"hard_label_weight": 0.5}, "plain": {}}.items():
        folder = tmp_path / f"student-{method}"
        flags = {"dataset_name": tmp_path / "plus", "output_dir": folder, "method": method, **more}
        assert recipe("train_kd", **flags) is None
        assert "eval_accuracy" in json.loads((folder / "all_results.json").read_text())
    parquet(rows.select([0]).map(lambda row: {"breed": "wolf"}), tmp_path / "pets", ["test"])
    said = recipe("train_kd", method="reinforced", dataset_name=tmp_path / "plus", output_dir=tmp_path / "wolf")
    assert "1 texts that are none of the 5 classes" in said and "wolf" in said


# -- splits -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("split", "rows"),
    [
        ("train[:50%]", range(6)),
        pytest.param("train[-3:]", range(9, 12), marks=pytest.mark.slow),
        pytest.param("train+test", [*range(12), *range(4)], marks=pytest.mark.slow),
        pytest.param("train[:2] + test[2:]", [0, 1, 2, 3], marks=pytest.mark.slow),
        pytest.param("all", [*range(12), *range(4)], marks=pytest.mark.slow),
    ],
)
def test_a_part_of_splits_is_reinforced_continued_joined_and_checked(recipe, tmp_path, capsys, split, rows):
    parquet(tiny_dataset(ROWS), tmp_path / "pets", ["train"])
    parquet(tiny_dataset(4), tmp_path / "pets", ["test"])
    plus = tmp_path / "plus"
    assert recipe("reinforce", output_dir=plus, split=split, estimate=True) is None
    assert f"{len(rows)} images, policy rrc" in capsys.readouterr().out
    for samples in (1, 2):  # at first, and more of them
        assert recipe("reinforce", output_dir=plus, split=split, num_samples=samples) is None
    split, config = split.replace(" ", ""), ReinforcementConfig.load(plus / "rrc")
    assert config.source.split == split and config.split == "train" and config.source.num_rows == len(rows)
    assert [path.name for path in (plus / "rrc").glob("*.parquet")] == ["train-00000-of-00001.parquet"]
    stored, joined = load_dataset(str(plus), "rrc", split="train"), load_reinforced(str(plus))
    assert len(stored) == len(rows) and len(stored[0]["teacher_logits"]) == joined.config.num_samples == 2
    assert [joined[position]["labels"] for position in range(len(joined))] == [row % C for row in rows]
    assert recipe("verify", dataset_name=plus, device="cpu") is None
    assert {change.reason for change in push_to_hub(plus, "me/plus", dry_run=True).changes} == {"new"}
    flags = {"method": "reinforced", "dataset_name": plus, "per_device_train_batch_size": 4}
    assert recipe("train_kd", **flags, eval_split="train[90%:]") is None
    said = recipe("train_kd", **flags, streaming=True, output_dir=tmp_path / "stream")
    assert "a stream of the images cannot find. Leave out streaming=True (--streaming True)" in said
    assert f"source.split: 'train', not {split!r}" in recipe("reinforce", output_dir=plus, num_samples=2)


@pytest.mark.parametrize(
    ("split", "rows", "text"),
    [
        (ReadInstruction("train", to=50, unit="%"), 55, "train[:50%]"),
        (ReadInstruction("train", to=50, unit="%", rounding="pct1_dropremainder"), 50, None),
        ("train[:50%](pct1_dropremainder)", 50, "train[:50%](pct1_dropremainder)"),
        (ReadInstruction("train", from_=3, to=5) + ReadInstruction("test"), 6, "train[3:5]+test"),
        (Split.TEST, 4, "test"),
    ],
)
def test_read_instructions_are_parts_too(tmp_path, split, rows, text):
    parquet(tiny_dataset(110, formats=["PNG"]), tmp_path / "pets", ["train"])
    parquet(tiny_dataset(4), tmp_path / "pets", ["test"])
    assert text in (None, split_text(split))
    assert len(load_source(str(tmp_path / "pets"), split=split)) == rows
    assert count_rows(split_text(split), {"train": 110, "test": 4}) == rows


def test_splits_that_are_none_are_refused_with_those_there_are(recipe, tmp_path):
    parquet(tiny_dataset(ROWS), tmp_path / "pets")
    for split, expected in {
        "valid": "has no split 'valid'; its splits are \\['train', 'test'\\]",
        "train+valid[:5]": "has no split 'valid'",
        "train[:x]": "The split 'train\\[:x\\]' cannot be read .*; name a split, such as 'train', or a part",
        "train[50:60]": "has no rows in that split",
        "train[:200%]": "Percent slice boundaries",
        "train[:50%](pct1_dropremainder)": "less than 100 elements",
        "": "--split is empty",
    }.items():
        said = recipe("reinforce", split=split)
        assert re.search(expected, said or ""), said
    assert not (tmp_path / "out").exists()


# -- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("embed_images", [False, True])
def test_files_of_other_columns_are_stored_and_paths_are_not(recipe, tmp_path, embed_images):
    (tmp_path / "pets").mkdir()
    masks(tmp_path / "pets")
    plus, flags = tmp_path / "plus", {"image_column_name": "image", "embed_images": embed_images}
    assert recipe("reinforce", output_dir=plus, **flags) is None
    assert str(tmp_path).encode() not in (plus / "rrc" / "train-00000-of-00001.parquet").read_bytes()
    os.unlink(tmp_path / "mask-3.png")
    said = recipe("reinforce", **flags)
    assert "A file of the column 'mask' cannot be embedded (FileNotFoundError" in said
    assert not list((tmp_path / "out").rglob("*.parquet"))
    for path in tmp_path.glob("mask-*.png"):
        path.unlink()
    stored = load_dataset(str(plus), "rrc", split="train")
    assert "place" not in stored.column_names and ("image" in stored.column_names) == embed_images
    for row in (0, 7):
        expected = np.asarray(tiny_image(100 + row))
        found = [stored[row]["mask"], *stored[row]["masks"], stored[row]["record"]["depth"]]
        assert len(found) == 4 and all(np.array_equal(np.asarray(mask), expected) for mask in found)
    assert push_to_hub(plus, "me/plus", dry_run=True).changes


def test_publishing_refuses_paths_of_this_machine(tmp_path):
    folder = reinforce(
        tiny_dataset(ROWS),
        tiny_teacher(),
        load_policy("rrc", 16),
        tmp_path,
        num_samples=1,
        top_k=2,
        source_name="me/a",
    )
    (shard,) = folder.glob("*.parquet")
    whole, path = pq.read_table(shard), {"bytes": None, "path": "/srv/images/mask.png"}
    config = json.loads((folder / "reinforcement.json").read_text())
    (folder / "reinforcement.json").write_text(json.dumps({k: v for k, v in config.items() if k != "checksums"}))
    for column, value in {"mask": path, "masks": [path], "record": {"a": path}, "place": "/media/me/mask.png"}.items():
        rows = Dataset.from_dict({column: [None] * 5 + [value] * (ROWS - 5)}).data.table
        pq.write_table(whole.append_column(column, rows.column(0)), shard)
        said = f"the column '{column}' holds '/(srv|media)/.*mask.png', a path of this"
        with pytest.raises(ValueError, match=said):
            push_to_hub(tmp_path, "me/plus", dry_run=True)


def test_texts_that_are_files_of_this_machine_anywhere_are_left_out(tmp_path):
    (tmp_path / "mask.png").write_bytes(b"")
    rows = Dataset.from_dict({"file": ["", str(tmp_path / "mask.png")], "web": ["/about", "/cats"]})
    with patch("hf_reinforce.sources.files._OF_SOMEBODY", "^/never/"):  # as under a folder whose name says nothing
        assert columns_of_paths(rows) == {"file": str(tmp_path / "mask.png")}


# -- the API ----------------------------------------------------------------------------------------------------------


def test_one_split_is_meant(tmp_path):
    splits, policy = DatasetDict(train=tiny_dataset(4), test=tiny_dataset(2)), load_policy("rrc", 16)
    options = {"num_samples": 1, "top_k": 2}
    reinforce(splits["train"], tiny_teacher(), policy, tmp_path / "plus", **options)
    args = KDTrainingArguments(str(tmp_path / "student"), report_to="none", use_cpu=True)
    for call in (
        lambda: reinforce(splits, tiny_teacher(), policy, tmp_path / "no", **options),
        lambda: estimate(splits, tiny_teacher(), policy, **options),
        lambda: ImageSource.of(splits),
        lambda: ImageSource(splits, "image"),
        lambda: load_reinforced(str(tmp_path / "plus"), source=splits),
    ):
        with pytest.raises(TypeError, match="has the splits .'train', 'test'.; pass one of them"):
            call()
    with pytest.raises(TypeError, match="train_dataset is a DatasetDict; pass what load_reinforced"):
        KDTrainer(torch.nn.Linear(2, 2), args, splits)
    with pytest.raises(TypeError, match="must be a Dataset .* not a builtins.list"):
        ImageSource.of([1, 2])


FORMATS = {
    "transform": lambda rows: rows.with_transform(lambda batch: {"pixel_values": [0] * len(batch["image"])}),
    "format": lambda rows: rows.with_format("torch", columns=["label"]),
    "numpy": lambda rows: rows.with_format("numpy"),
    "stream": lambda rows: rows.to_iterable_dataset().with_format("torch"),
}


@pytest.mark.parametrize("how", FORMATS)
def test_formats_are_dropped_with_a_word(tmp_path, caplog, how):
    rows = tiny_dataset(6)
    formatted = FORMATS[how](rows)
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
    (tmp_path / "copy").mkdir()
    parquet(tiny_dataset(3), tmp_path / "copy" / "german")
    assert len(load_source(str(tmp_path / "copy"), "german")) == 3  # by its folder
    parquet(tiny_dataset(4), tmp_path / "plain")
    assert len(load_source(str(tmp_path / "plain"), "german")) == 4
    assert "has no configuration 'german'; its only one, 'default', is used" in caplog.text
    configs = "- config_name: a\n  data_files: train*\n", "- config_name: b\n  data_files: test*\n"
    (tmp_path / "plain" / "README.md").write_text(f"---\nconfigs:\n{configs[0]}---\n")
    assert len(load_source(str(tmp_path / "plain"), "default")) == 4
    (tmp_path / "plain" / "README.md").write_text(f"---\nconfigs:\n{''.join(configs)}---\n")
    with pytest.raises(ValueError, match="BuilderConfig 'german' not found. Available: .'a', 'b'"):
        load_source(str(tmp_path / "plain"), "german")
