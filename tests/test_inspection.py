"""The description of a reinforced dataset, against one that reads it row by row."""

import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import concatenate_datasets
from PIL import Image
from recipe_modules import load_recipe
from tiny import NAMES, tiny_dataset, tiny_teacher

from hf_reinforce import inspect_dataset, load_policy, reinforce, schema
from hf_reinforce.augmentations import RandAugment
from hf_reinforce.augmentations.rand_augment import OPERATIONS
from hf_reinforce.cards import statistics
from hf_reinforce.cards.inspection import duplicates, inspection_tables

RECIPES = Path(__file__).parent.parent / "recipes"
ROWS, N, K, C = 40, 3, 3, 5


@pytest.fixture(scope="module")
def data():
    """Forty images; rows 36 to 39 repeat rows 0 to 3, the first two of them with another label."""
    dataset = tiny_dataset(36, (20, 60), C)
    copies = dataset.select(range(4)).remove_columns("label").add_column("label", [1, 2, 2, 3])
    return concatenate_datasets([dataset, copies.cast(dataset.features)])


@pytest.fixture(scope="module")
def folder(data, tmp_path_factory):
    """`folder(policy)`: the dataset reinforced in several shards, with its images beside it."""
    root = tmp_path_factory.mktemp("inspection")
    images = root / "pets"
    images.mkdir()
    data.to_parquet(str(images / "train.parquet"))
    made = {}

    def make(name, dataset=data, **options):
        key = (name, *options.items(), *dataset.column_names)
        if key not in made:
            options = {"num_samples": N, "top_k": K, "shard_size": 16, "source_name": str(images), **options}
            made[key] = reinforce(dataset, tiny_teacher(C), load_policy(name, 16), root / str(len(made)), **options)
        return made[key]

    return make


@pytest.fixture
def pictures(monkeypatch):
    """Entries of the images that would be drawn."""
    found = []
    monkeypatch.setattr("hf_reinforce.cards.inspection.draw_doubtful", lambda shown, path: found.extend(shown))
    return found


def changed(folder, tmp_path, **changes):
    """A copy of the folder whose `reinforcement.json` says something else."""
    copy = Path(shutil.copytree(folder, tmp_path / "changed" / folder.name, dirs_exist_ok=True))
    content = json.loads((copy / "reinforcement.json").read_text())
    source = {**content["source"], **changes.pop("source", {})}
    (copy / "reinforcement.json").write_text(json.dumps({**content, "source": source, **changes}))
    return copy


def targets(folder):
    """Every target of a folder: (row of the dataset, its parameters, masses, classes)."""
    for path in sorted(folder.glob("*.parquet")):
        for row in pq.read_table(path).to_pylist():
            for params, logits in zip(row[schema.AUGMENTATION_PARAMS], row["teacher_logits"], strict=True):
                masses = np.exp([*logits["value"], logits["tail"]])
                yield row, params, masses / masses.sum(), logits["label"]


def reference(rows):
    """Mass of the top K, entropy, confidence and agreement of some targets."""
    masses = np.array([masses for _, _, masses, _ in rows])
    hits = [row["label"] == classes[0] for row, _, _, classes in rows]
    entropy = -(masses * np.log(masses)).sum(axis=1)
    return [masses[:, :-1].sum(axis=1).mean(), entropy.mean(), masses[:, 0].mean(), np.mean(hits)]


def figures(content):
    """The same of an inspection, or of one of its groups."""
    names = ("mass in the top K", "entropy (nats)", "probability of the most likely class")
    return [*(content["figures"][name] for name in names), content["agreement"]]


def has(operation, strength):
    """Whether parameters have an operation at a strength, spelled out for each name."""

    def share(low, high, value):
        return low < value <= high or (low == 0 and value == 0)

    def found(params):
        if operation == "horizontal flip":
            return params["hflip"] == (strength == "yes")
        if operation in OPERATIONS:
            return any(
                OPERATIONS[step["op"]] == operation
                and (f"{step['magnitude']:.3g}" if step["magnitude"] else "") == strength
                for step in params["rand_augment"]
            )
        if operation == "crop, side":
            side = np.sqrt(params["crop"]["height"] * params["crop"]["width"])
            numbers = [float(word) for word in strength.split() if word.isdigit()]
            low, high = {"below": (0, *numbers), "above": (*numbers, 1e9)}.get(strength.split()[0], numbers)
            exact = [size for step in range(-3, 5) if round(size := 16 * 2 ** (step / 2)) in (low, high)]
            return (low == 0 or side >= exact[0]) and (high == 1e9 or side < exact[-1])
        item = params[{"erasing": "erase"}.get(operation, operation)]
        if strength == "none" or item is None:
            return (strength == "none") == (item is None)
        value = item["lam"] if operation == "mixup" else item["height"] * item["width"] / 16**2
        numbers = [float(word) / 100 for word in strength.replace("%", "").split() if word[0].isdigit()]
        return share(*numbers, value) if len(numbers) == 2 else value > numbers[0]

    return found


@pytest.mark.parametrize("policy", ["randaug", "mixing_randaug", "small_randaug"])
def test_targets_by_operation_and_strength(folder, tmp_path, monkeypatch, policy):
    monkeypatch.setattr(statistics, "_BATCH_TARGETS", 7 * N)  # what is summed over batches
    content = inspect_dataset(folder(policy), tmp_path, num_images=0)
    every = list(targets(folder(policy)))
    assert figures(content) == pytest.approx(reference(every), abs=1e-5)
    assert content["num_rows"] == content["measured_rows"] == ROWS
    names = {group["operation"] for group in content["groups"]}
    assert {"horizontal flip", "erasing", "Rotate", "Equalize"} <= names
    assert ("crop, side" in names) == (policy != "small_randaug"), "a crop of one size has no strength"
    assert ({"mixup", "cutmix"} <= names) == (policy == "mixing_randaug")
    for group in content["groups"]:
        chosen = [item for item in every if has(group["operation"], group["strength"])(item[1])]
        assert group["targets"] == len(chosen)
        assert figures(group) == pytest.approx(reference(chosen), abs=1e-5), (group["operation"], group["strength"])
    for name in names - set(OPERATIONS):
        counts = [group["targets"] for group in content["groups"] if group["operation"] == name]
        assert sum(counts) == ROWS * N, f"every view has one strength of {name}"


def test_rand_augment_may_be_null():
    steps = [{"op": 5, "magnitude": 9.0}, {"op": 0, "magnitude": 0.0}]
    kind = pa.list_(pa.struct([("op", pa.int64()), ("magnitude", pa.float32())]), 2)
    bins = list(RandAugment().bins(pa.array([None, steps, None], kind)[1:], 16))
    assert list(dict.fromkeys(name for name, _, _ in bins)) == ["RandAugment", *OPERATIONS], "in one order"
    assert {(name, words): mask.tolist() for name, words, mask in bins if mask.any()} == {
        ("RandAugment", "none"): [False, True],
        ("Rotate", "9"): [True, False],
        ("Identity", ""): [True, False],
    }


@pytest.mark.parametrize("policy", ["randaug", "mixing_randaug"])
def test_disagreements_are_the_most_certain_contradictions(folder, data, tmp_path, pictures, policy):
    content = inspect_dataset(folder(policy), tmp_path, num_images=6)
    means = {}
    for row, params, masses, classes in targets(folder(policy)):
        if params.get("mixup") is None and params.get("cutmix") is None:
            probabilities = np.zeros(C)
            probabilities[classes] = masses[:-1]
            means.setdefault(row[schema.SOURCE_ROW], []).append(probabilities)
    means, labels = {row: np.mean(values, axis=0) for row, values in means.items()}, data["label"][:]
    wrong = {row: mean for row, mean in means.items() if mean.argmax() != labels[row]}
    assert content["compared_rows"] == len(means) and content["disagreeing_rows"] == len(wrong)
    assert content["agreement_of_mean"] == pytest.approx(1 - len(wrong) / len(means))
    assert (len(means) < ROWS) == (policy == "mixing_randaug")
    expected = sorted(wrong, key=lambda row: wrong[row][labels[row]] - wrong[row].max())[:6]
    assert [item["row"] for item in content["disagreements"]] == expected
    for item in content["disagreements"]:
        mean = wrong[item["row"]]
        assert (item["label"], item["prediction"]) == (labels[item["row"]], mean.argmax())
        assert item["probability"] == pytest.approx(mean.max(), abs=1e-5)
        assert item["label_probability"] == pytest.approx(mean[item["label"]], abs=1e-5)
        assert (item["label_name"], item["prediction_name"]) == (NAMES[item["label"]], NAMES[item["prediction"]])


def test_duplicates():
    hashes = np.array([f"{number:016x}" for number in (7, 2**63, 7, 1, 7)], "S16")
    rows, labels = np.array([4, 3, 2, 1, 0]), np.array([5, 5, 5, 5, 6])
    found = duplicates(hashes, rows, labels)
    assert (found["images"], found["rows"], found["with_different_labels"]) == (1, 3, 1)
    assert found["examples"] == [{"image_hash": f"{7:016x}", "rows": [0, 2, 4], "labels": [6, 5, 5]}]
    assert duplicates(hashes[1:2], rows[1:2], labels[1:2])["examples"] == []
    pairs = np.repeat([f"{number:016x}" for number in range(101)], 2).astype("S16")
    found = duplicates(pairs, np.arange(202), np.arange(202) // 200)
    assert (found["images"], found["rows"], len(found["examples"])) == (101, 202, 100)


def test_the_recipe_and_its_files(folder, tmp_path, monkeypatch, capsys):
    output = tmp_path / "new" / "inspection"
    words = ["inspect_dataset.py", str(folder("randaug").parent), "--output_dir", str(output), "--num_images", "5"]
    monkeypatch.setattr(sys, "argv", words)
    load_recipe("inspect_dataset").main()
    assert {path.name for path in output.iterdir()} == {"inspection.json", "disagreements.png"}
    content = json.loads((output / "inspection.json").read_text())
    assert inspection_tables(content) in capsys.readouterr().out
    with Image.open(output / "disagreements.png") as picture:
        assert min(picture.size) > 300
    assert content["notes"] == [] and content["num_bytes"] > 0 and len(content["disagreements"]) == 5
    found = content["duplicates"]
    assert (found["images"], found["rows"], found["with_different_labels"]) == (4, 8, 2)
    assert [item["rows"] for item in found["examples"]] == [[0, 36], [1, 37], [2, 38], [3, 39]]
    assert [item["labels"] for item in found["examples"]] == [[0, 1], [1, 2], [2, 2], [3, 3]]
    again = inspect_dataset(folder("randaug"), output, num_images=0)
    assert not (output / "disagreements.png").exists(), "a picture of an earlier inspection is gone"
    assert again["disagreements"] == [] and again["disagreeing_rows"] == content["disagreeing_rows"]
    monkeypatch.setattr(sys, "argv", ["inspect_dataset.py", str(tmp_path), *words[2:]])
    with pytest.raises(SystemExit, match=r"error: .* is not a reinforced dataset; recipes/reinforce.py makes one"):
        load_recipe("inspect_dataset").main()


# Images


@pytest.mark.parametrize("policy", ["randaug", "mixing_randaug"])  # the second is stored in another order
def test_embedded_images_are_drawn(folder, tmp_path, pictures, policy):
    content = inspect_dataset(folder(policy, embed_images=True), tmp_path / policy, num_images=5)
    assert content["notes"] == [] and [item for item, _ in pictures] == content["disagreements"]


def test_images_that_are_elsewhere_or_others(folder, data, tmp_path, pictures):
    for name, expected in (("someone/gone", "the images cannot be read .*gone"), (None, "--source_name_or_path")):
        plus = changed(folder("randaug"), tmp_path, source={"name": name})
        content = inspect_dataset(plus, tmp_path / "out", num_images=5)
        assert re.search(expected, content["notes"][0]) and len(content["disagreements"]) == 5 and not pictures
    first = content["disagreements"][0]["row"]
    order = [first if row == first else (row + 1) % ROWS for row in range(ROWS)]
    (tmp_path / "others").mkdir()
    data.select(order).to_parquet(str(tmp_path / "others" / "train.parquet"))
    content = inspect_dataset(plus, tmp_path / "out", source=str(tmp_path / "others"), num_images=5)
    assert content["notes"][0].startswith("4 of the 5 images are not drawn, since the source holds other images")
    assert [item["row"] for item, _ in pictures] == [first]


# Labels


def test_without_labels(folder, data, tmp_path):
    content = inspect_dataset(folder("rrc", data.remove_columns("label")), tmp_path)
    assert content["agreement"] is None and content["compared_rows"] == 0 and content["disagreements"] == []
    assert (content["duplicates"]["images"], content["duplicates"]["with_different_labels"]) == (4, 0)
    assert "reinforce it with --label_column_name" in content["notes"][0]
    assert "no labels" in inspection_tables(content)


def test_labels_may_be_missing_in_some_rows(folder, tmp_path):
    plus = changed(folder("rrc"), tmp_path)
    for path in plus.glob("*.parquet"):
        table = pq.read_table(path)
        labels = [[label, None, -1][i % 3] for i, label in enumerate(table["label"].to_pylist())]
        index = table.column_names.index("label")
        pq.write_table(table.set_column(index, table.schema.field(index), pa.array(labels, pa.int64())), path)
    content = inspect_dataset(plus, tmp_path, num_images=0)
    labelled = [item for item in targets(plus) if item[0]["label"] not in (None, -1)]
    assert content["compared_rows"] * N == len(labelled) < ROWS * N / 2
    assert content["agreement"] == pytest.approx(reference(labelled)[3], abs=1e-5)
    assert content["measured_rows"] == ROWS


@pytest.mark.parametrize("first", ["n01440764", "n99999999"])
def test_wordnet_ids_are_shown_in_words(folder, tmp_path, pictures, first):
    ids = [first, "n01443537", "n01484850", "n01491361", "n01494475"]
    content = inspect_dataset(changed(folder("randaug"), tmp_path, class_names=ids), tmp_path)
    names = {item["label_name"] for item in content["disagreements"]}
    assert ("goldfish, Carassius auratus" in names) == (first == "n01440764") and not names & {"n01440764"}


def test_refuses_what_is_no_reinforced_dataset(folder, tmp_path):
    with pytest.raises(ValueError, match=r"num_images must be >= 0, not -1"):
        inspect_dataset(folder("randaug"), tmp_path / "out", num_images=-1)
    with pytest.raises(ValueError, match=r"is not finished; run the command that reinforces it again"):
        inspect_dataset(changed(folder("rrc"), tmp_path, complete=False), tmp_path / "out")
    empty = changed(folder("rrc"), tmp_path)
    for shard in empty.glob("*.parquet"):
        shard.unlink()
    with pytest.raises(ValueError, match=r"has no rows; run the command that reinforces it again"):
        inspect_dataset(empty, tmp_path / "out")
    assert not (tmp_path / "out" / "inspection.json").exists()


def test_no_recipe_hides_a_module_of_python():
    # `python recipes/x.py` puts recipes/ first in sys.path: an inspect.py there breaks dataclasses and torch.
    names = {path.stem for path in RECIPES.glob("*.py")}
    assert "inspect_dataset" in names and not names & sys.stdlib_module_names
