"""Suites: one YAML file adds one, mistakes in it name their place, and the recipe evaluates it as a user would."""

import json
import sys

import numpy as np
import pytest
import torch
import yaml
from datasets import ClassLabel, Dataset, Image, Value
from recipe_modules import RECIPES, load_recipe
from tiny import NAMES, encode_image, tiny_dataset, tiny_image

from hf_reinforce import SuiteEntry, create_student, load_suite
from hf_reinforce.evaluation import report, tasks
from hf_reinforce.evaluation.results import Corruption, DatasetResult, Evaluation
from hf_reinforce.evaluation.tasks import open_task, open_tasks
from hf_reinforce.metrics import ALEXNET_ERRORS, ReliabilityDiagram

C, ROWS = 5, 10


@pytest.fixture(scope="module")
def workshop(tmp_path_factory):
    """Images as Parquet in several forms, and a student of the five classes."""
    folder = tmp_path_factory.mktemp("suites")
    pets = tiny_dataset(ROWS, labels=C)
    forms = {
        "pets": pets,
        "three": tiny_dataset(ROWS, labels=3),
        "empty": pets.select([]),
        "words": pets.remove_columns("label").add_column("species", [NAMES[label] for label in pets["label"]]),
        "unlabelled": pets.remove_columns("label"),
        "corrupted": pets.add_column("kind", ["fog", "snow"] * 5).add_column("level", [1] * 4 + [2] * 6),
        "hidden": pets.cast_column("label", Value("int64")).map(lambda row: {"label": -1}),
    }
    for name, dataset in forms.items():
        (folder / name).mkdir()
        dataset.to_parquet(folder / name / "test-00000-of-00001.parquet")
    torch.manual_seed(0)
    student = create_student("test_efficientnet", C, 32, NAMES[:C])
    for name, parameter in student.named_parameters():  # a new network answers the same to every image
        if parameter.ndim == 2 or name.endswith("bias"):
            parameter.data.normal_()
    for _ in range(30):  # statistics of the batch norms
        student.train()(torch.randn(8, 3, 32, 32))
    student.save_pretrained(folder / "student")
    return folder


@pytest.fixture
def evaluate(monkeypatch, workshop):
    """`evaluate(**flags)`: runs the recipe with the student."""
    monkeypatch.syspath_prepend(str(RECIPES))
    monkeypatch.setattr(report, "write_report", lambda folder: None)

    def evaluate(**flags):
        flags = {"model_name_or_path": workshop / "student", "num_workers": 0, "device": "cpu", **flags}
        argv = [part for key, value in flags.items() for part in (f"--{key}", str(value))]
        monkeypatch.setattr(sys, "argv", ["evaluate.py", *argv])
        load_recipe("evaluate").main()

    return evaluate


@pytest.fixture
def suite(workshop, tmp_path):
    """`suite(NAME={key of SuiteEntry: value})`: the path of a suite, whose datasets are the pets if none is named."""

    def write(**entries):
        entries = {name: {"dataset_name": str(workshop / "pets"), **keys} for name, keys in entries.items()}
        (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"datasets": entries}, sort_keys=False))
        return tmp_path / "mine.yaml"

    return write


CORRUPTED = {"corruptions": ["contrast", "pixelate"], "severities": [1, 5]}


def test_one_file_adds_a_suite(evaluate, suite, workshop, tmp_path, capsys):
    path = suite(
        pets={"title": "Pets"},
        words={"dataset_name": str(workshop / "words"), "label_column": "species", "note": "A note."},
        three={"classes": {name: name for name in NAMES[:C]}, "scoring": "full"},
        pets_c={**CORRUPTED, "clean": "pets"},
    )
    evaluate(suite=path, output_dir=tmp_path / "out", output_json=tmp_path / "figures.json")
    evaluation = Evaluation.load(tmp_path / "out")
    corrupted = [f"pets_c-{name}-{severity}" for name in ("contrast", "pixelate") for severity in (1, 5)]
    assert list(evaluation.datasets) == ["pets", "words", "three", *corrupted] and evaluation.suite == "mine"
    pets, words, three, *_ = evaluation.datasets.values()
    assert pets.title == "Pets" and pets.num_samples == ROWS and pets.corruption is None and not evaluation.skipped
    assert words.notes == "A note." and words.metrics == three.metrics == pytest.approx(pets.metrics)
    assert evaluation.datasets["pets_c-pixelate-5"].corruption == Corruption("pixelate", 5)
    assert evaluation.datasets["pets_c-pixelate-5"].metrics["nll"] != pets.metrics["nll"]
    accuracies = [evaluation.datasets[name].metrics["accuracy"] for name in corrupted]
    assert evaluation.summary == {"mean_corruption_accuracy": pytest.approx(sum(accuracies) / 4)}
    assert json.loads((tmp_path / "figures.json").read_text()).items() >= evaluation.summary.items()
    predictions = evaluation.predictions(tmp_path / "out", "pets")
    assert predictions.row.tolist() == list(range(ROWS)) and predictions.label.tolist() == [0, 1, 2, 3, 4] * 2
    assert predictions.correct.mean() == pytest.approx(pets.metrics["accuracy"])
    assert predictions.nll.mean() == pytest.approx(pets.metrics["nll"], rel=1e-5)
    assert "pets_c-contrast-1" in capsys.readouterr().out
    framing = {"image_size": 32, "crop_pct": pytest.approx(pets.settings["crop_pct"]), "interpolation": "bilinear"}
    assert pets.settings == {"seed": 0, **framing, "dtype": "float32", "max_samples": None, "scoring": "full"}
    errors = json.loads((tmp_path / "out/corruption_errors/pets_c.json").read_text())
    assert list(errors) == ["contrast", "pixelate", "clean"] and errors["clean"] == [1 - pets.metrics["accuracy"]]
    assert errors["contrast"] == pytest.approx([1 - accuracy for accuracy in accuracies[:2]])
    # Another suite takes them as its baseline, by their path from its file.
    path = suite(pets_c={**CORRUPTED, "baseline": "out/corruption_errors/pets_c.json"})
    evaluate(suite=path, output_dir=tmp_path / "second")
    assert Evaluation.load(tmp_path / "second").summary["mce"] == pytest.approx(1)


def test_settings_of_the_command_line_are_recorded(evaluate, workshop, tmp_path):
    flags = {"image_size": 16, "crop_pct": 0.75, "seed": 3, "max_samples": 4, "dtype": "bfloat16"}
    evaluate(dataset_name=workshop / "three", output_dir=tmp_path / "out", **flags)
    recorded = Evaluation.load(tmp_path / "out").datasets["three"].settings
    assert recorded == {**flags, "interpolation": "bilinear", "scoring": "restricted"}


def test_what_is_bad_does_not_lose_the_others(evaluate, suite, tmp_path, workshop):
    path = suite(nowhere={"dataset_name": "owner/nothing"}, pets={})
    with pytest.raises(SystemExit, match="1 datasets of the suite could not be .*: nowhere: There is no dataset"):
        evaluate(suite=path, output_dir=tmp_path / "out")
    evaluation = Evaluation.load(tmp_path / "out")
    assert list(evaluation.datasets) == ["pets"] and "There is no dataset" in evaluation.skipped["nowhere"]
    with pytest.raises(SystemExit, match="The suite mine is for models of .7. classes; .* has 5"):
        evaluate(suite=suite(pets={"num_classes": 7}))
    for flags in ({}, {"suite": "cifar_robustness", "dataset_name": workshop / "pets"}):
        with pytest.raises(SystemExit, match="either a dataset with --dataset_name, or a --suite"):
            evaluate(**flags)


def test_classes_from_a_column_and_from_a_file(evaluate, workshop, tmp_path):
    common = {"dataset_name": workshop / "words", "output_json": tmp_path / "figures.json"}
    evaluate(classes_from="species", **common)
    column = json.loads((tmp_path / "figures.json").read_text())
    assert column["num_samples"] == ROWS
    (tmp_path / "classes.yaml").write_text("\n".join(f"{name}: {name}" for name in NAMES[:C]))
    evaluate(classes_from=tmp_path / "classes.yaml", label_column_name="species", **common)
    assert json.loads((tmp_path / "figures.json").read_text())["nll"] == pytest.approx(column["nll"])
    message = "classes_from nocolumn: .* the columns are image, species, the tables imagenet"
    with pytest.raises(SystemExit, match=message):
        evaluate(classes_from="nocolumn", **common)


# -- datasets -----------------------------------------------------------------------------------------------------


def test_the_commit_of_a_data_set_is_recorded(workshop, monkeypatch):
    (task,) = open_tasks(SuiteEntry(str(workshop / "pets"), revision="main"), NAMES[:C], C).values()
    assert task.revision is None
    asked = []
    monkeypatch.setattr(tasks, "dataset_commit", lambda name, revision: f"commit of {revision}")
    monkeypatch.setattr(tasks, "load_source", lambda *source: asked.append(source) or tiny_dataset(3, labels=C))
    for entry in (SuiteEntry("me/pets", revision="v1"), SuiteEntry("me/pets", revision="v1", corruptions=("fog",))):
        assert {task.revision for task in open_tasks(entry, NAMES[:C], C).values()} == {"commit of v1"}
    assert set(asked) == {("me/pets", None, "test", "commit of v1")}


def test_corrupted_images_of_a_data_set(workshop):
    entry = SuiteEntry(str(workshop / "corrupted"), corruption_columns=("kind", "level"))
    found = open_tasks(entry, NAMES[:C], C)
    rows = {"-snow-1": [1, 3], "-snow-2": [5, 7, 9], "-fog-1": [0, 2], "-fog-2": [4, 6, 8]}
    assert {name: task.rows.tolist() for name, task in found.items()} == rows
    assert all(not task.on_the_fly and len(task.source) == len(task.rows) for task in found.values())
    assert [len(task.rows) for task in open_tasks(entry, NAMES[:C], C, max_samples=1).values()] == [1] * 4


def test_labels_of_every_kind():
    rows = tiny_dataset(3, labels=0)
    numbers = rows.add_column("label", [3, 1, 3])
    words = rows.add_column("species", ["dog", "bee", "dog"])
    for task in (
        open_task(numbers, SuiteEntry("pets"), NAMES[:C], C),
        open_task(words, SuiteEntry("pets", label_column="species"), NAMES[:C], C),
    ):  # compete with all classes of the model
        assert task.class_map.names == tuple(NAMES[:C]) and task.labels[:, 0].tolist() == [3, 1, 3]
    declared = numbers.cast_column("label", ClassLabel(names=["ant", "bee", "cat", "dog"]))
    assert len(open_task(declared, SuiteEntry("pets"), NAMES[:C], C).class_map.names) == 4
    several = rows.add_column("classes", [[4, 2], [], [1]])
    task = open_task(several, SuiteEntry("pets", label_column="classes", scoring="full"), NAMES[:C], C)
    assert task.rows.tolist() == [0, 2] and task.labels.tolist() == [[4, 2], [1, -1]]


def test_real_labels_are_found_by_the_names_of_the_files():
    files = [f"val/ILSVRC2012_val_0000000{number}.JPEG" for number in (2, 1, 3)]  # the second has no label
    rows = tiny_dataset(3, labels=0).add_column("file", files)
    entry = SuiteEntry("imagenet", labels="imagenet_real", file_column="file", scoring="full")
    task = open_task(rows, entry, None, 1000)
    assert task.rows.tolist() == [0, 2] and task.labels.tolist() == [[970, 795], [230, 231]]
    images = [{"bytes": encode_image(tiny_image(0)), "path": path} for path in files]
    named = Dataset.from_dict({"image": images}).cast_column("image", Image())
    assert open_task(named, SuiteEntry("imagenet", labels="imagenet_real"), None, 1000).rows.tolist() == [0, 2]
    with pytest.raises(ValueError, match="3 images have other names, such as None; name the column .* file_column"):
        open_task(tiny_dataset(3), SuiteEntry("imagenet", labels="imagenet_real"), None, 1000)


def test_folders_with_numbers_as_imagenetv2_has_them(tmp_path, monkeypatch):
    for label in ("0", "10", "2"):
        (tmp_path / "v2" / label).mkdir(parents=True)
        (tmp_path / "v2" / label / "a.png").write_bytes(encode_image(tiny_image(int(label))))
    monkeypatch.setenv("HF_REINFORCE_LOCAL", str(tmp_path))
    (task,) = open_tasks(SuiteEntry("owner/v2", split="train", classes="index"), None, 1000).values()
    assert task.class_map.groups == ((0,), (10,), (2,)) and task.labels[:, 0].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("pets", {"label_column": "kind"}, "has no column 'kind'; its columns are image, label"),
        ("pets", {"label_column": "image"}, "not class indices, names, or lists"),
        ("unlabelled", {}, "no labels to evaluate on"),
        ("empty", {}, "^split 'test' of .*empty has no rows; name another with --split"),
        ("hidden", {}, "Row 0 has the label -1"),
        ("corrupted", {"severities": (5,), "corruption_columns": ("kind", "level")}, "name no corruption"),
    ],
)
def test_data_sets_that_cannot_be_evaluated(name, options, expected, workshop):
    with pytest.raises(ValueError, match=expected):
        open_tasks(SuiteEntry(str(workshop / name), **options), NAMES[:C], C)


# -- files of suites ----------------------------------------------------------------------------------------------


def test_suites_that_come_with_the_package():
    for name in ("cifar_robustness", "imagenet_robustness"):
        found = load_suite(name)
        assert found.name == name and all(len(entry.on_the_fly) in (0, 75) for entry in found.entries.values())


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"clases": "b"}, r"pets: a dataset needs dataset_name and may have .* found \['clases', 'dataset_name'\]"),
        ({"scoring": "half"}, "pets: scoring must be one of restricted, full, not 'half'"),
        ({"labels": "real"}, "labels must be one of imagenet_real"),
        ({"corruptions": ["rain"]}, "no corruption 'rain' of severity 1; the corruptions are gaussian_noise"),
        ({"severities": [0], "corruptions": "fog"}, "of severity 0"),
        ({"corruption_columns": ["kind"]}, "must be two columns"),
        ({"clean": "cats"}, "clean names 'cats', which is not one of pets"),
        ({"baseline": "nothing"}, "pets: baseline must be alexnet, or a file .*'nothing' is not"),
        ({"baseline": "fog.yaml", "corruptions": ["fog", "snow"]}, "fog.yaml lacks the errors of snow; add them"),
        ({"baseline": "bad.yaml"}, "errors from 0 to 1, .*Divide percentages by 100"),
        ({"baseline": "list.yaml"}, "error at each of 5 severities"),
    ],
)
def test_mistakes_in_a_file_name_their_place(values, expected, suite, tmp_path):
    for name, text in (("fog", "fog: [.1, .2, .3, .4, .5]"), ("bad", "fog: 54.3"), ("list", "- 0.5")):
        (tmp_path / f"{name}.yaml").write_text(text)
    with pytest.raises(ValueError, match=f"mine.yaml, .*{expected}"):
        load_suite(str(suite(pets=values)))


def test_files_that_are_no_suites(tmp_path, suite):
    with pytest.raises(ValueError, match="no suite 'imagenet'; name one of cifar_robustness, imagenet_robustness, or"):
        load_suite("imagenet")
    for text, expected in (
        ("a: [", "neither JSON nor YAML"),
        ("sets: 1", "under 'dat"),
        ("datasets: {}", "must name"),
    ):
        (tmp_path / "suite.yaml").write_text(text)
        with pytest.raises(ValueError, match=expected):
            load_suite(str(tmp_path / "suite.yaml"))
    with pytest.raises(ValueError, match="a/b: this name becomes that of a file"):
        load_suite(str(suite(**{"a/b": {}})))


# -- summaries ----------------------------------------------------------------------------------------------------


def summary(entry, errors, clean=0.3):
    """That of a model with these errors under each corruption and severity."""
    common = {"title": "", "dataset_name": "a", "split": "test", "num_samples": 9, "class_map": "", "class_names": []}
    common |= {"reliability": ReliabilityDiagram([], [], []), "per_class_accuracy": {}, "predictions": ""}
    datasets = {"clean": DatasetResult(metrics={"accuracy": 1 - clean}, **common)}
    for name, own in errors.items():
        for severity, error in enumerate(own, 1):
            result = DatasetResult(metrics={"accuracy": 1 - error}, corruption=Corruption(name, severity), **common)
            datasets[f"corrupted-{name}-{severity}"] = result
    found = entry.measured_errors("corrupted", Evaluation("model", "suite", datasets))
    return entry.corruption_summary(found) if found else {}


def test_mean_corruption_error_against_alexnet():
    entry = SuiteEntry("a", corruptions=("all",), clean="clean", baseline="alexnet")
    mean = np.mean(list(ALEXNET_ERRORS.values()))
    expected = {"mean_corruption_accuracy": 1 - mean, "mce": 1, "relative_mce": 1}
    assert summary(entry, ALEXNET_ERRORS, clean=0.434822) == pytest.approx(expected, abs=1e-3)
    entry = SuiteEntry("a", corruptions=("all",))
    assert set(summary(entry, ALEXNET_ERRORS)) == {"mean_corruption_accuracy"}
    assert summary(entry, {name: own for name, own in ALEXNET_ERRORS.items() if name != "fog"}) == {}
    assert summary(entry, {**ALEXNET_ERRORS, "fog": (0.5, 0.6)}) == {}


@pytest.mark.parametrize(
    ("content", "mce", "relative"),
    [
        ({"fog": [0.4, 0.8], "snow": 0.4, "clean": 0.2}, (0.5 + 0.5) / 2, (0.4 / 0.8 + 0.2 / 0.4) / 2),
        ({"fog": 0.3, "snow": [0.1, 0.3], "frost": 0.9}, 1.0, None),
        ({"fog": 0.3, "snow": 0.2, "clean": 0.2}, 1.0, None),  # snow does no harm to this baseline
    ],
)
def test_mean_corruption_error_against_errors_of_ones_own(tmp_path, content, mce, relative):
    (tmp_path / "errors.json").write_text(json.dumps(content))
    options = {"corruptions": ("fog", "snow"), "severities": (1, 2), "clean": "clean"}
    entry = SuiteEntry("a", baseline=str(tmp_path / "errors.json"), **options)
    found = summary(entry, {"fog": (0.2, 0.4), "snow": (0.1, 0.3)}, clean=0.1)
    assert found["mean_corruption_accuracy"] == pytest.approx(0.75) and found["mce"] == pytest.approx(mce)
    assert found.get("relative_mce") == (relative and pytest.approx(relative))
