"""Suites: one YAML file adds one, mistakes in it name their place, and the recipe evaluates it as a user would."""

import json
import sys

import pytest
import torch
import yaml
from datasets import ClassLabel, Dataset, Image, Value
from recipe_modules import RECIPES, load_recipe
from tiny import NAMES, encode_image, tiny_dataset, tiny_image

from hf_reinforce.evaluation import report, tasks
from hf_reinforce.evaluation.results import Evaluation
from hf_reinforce.evaluation.suites import SuiteEntry, load_suite, suite_names
from hf_reinforce.evaluation.tasks import open_task, open_tasks

C, ROWS = 5, 10


@pytest.fixture(scope="module")
def workshop(tmp_path_factory):
    """Images as Parquet in several forms, and a student of the five classes."""
    from hf_reinforce.models.students import create_student

    folder = tmp_path_factory.mktemp("suites")
    pets = tiny_dataset(ROWS, labels=C)
    names = [NAMES[label] for label in pets["label"]]
    forms = {
        "pets": pets,
        "three": tiny_dataset(ROWS, labels=3),
        "empty": pets.select([]),
        "words": pets.remove_columns("label").add_column("species", names),
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


def write(path, datasets, **keys):
    path.write_text(yaml.safe_dump({"datasets": datasets, **keys}, sort_keys=False))
    return path


def test_one_file_adds_a_suite(evaluate, workshop, tmp_path, capsys):
    suite = write(
        tmp_path / "pets.yaml",
        {
            "pets": {"dataset_name": str(workshop / "pets"), "title": "Pets"},
            "words": {"dataset_name": str(workshop / "words"), "label_column": "species", "note": "A note."},
            "three": {"dataset_name": str(workshop / "pets"), "classes": {n: n for n in NAMES[:C]}, "scoring": "full"},
            "pets_c": {
                "dataset_name": str(workshop / "pets"),
                "corruptions": ["contrast", "pixelate"],
                "severities": [1, 5],
                "clean": "pets",
            },
        },
    )
    evaluate(suite=suite, output_dir=tmp_path / "out", output_json=tmp_path / "figures.json")
    evaluation = Evaluation.load(tmp_path / "out")
    corrupted = [f"pets_c-{name}-{severity}" for name in ("contrast", "pixelate") for severity in (1, 5)]
    assert list(evaluation.datasets) == ["pets", "words", "three", *corrupted] and evaluation.suite == "pets"
    pets, words = evaluation.datasets["pets"], evaluation.datasets["words"]
    assert pets.title == "Pets" and pets.num_samples == ROWS and pets.corruption is None and not evaluation.skipped
    assert words.metrics == pytest.approx(pets.metrics) and words.notes == "A note."
    assert evaluation.datasets["three"].metrics == pytest.approx(pets.metrics)
    assert evaluation.datasets["pets_c-pixelate-5"].corruption.severity == 5
    assert evaluation.datasets["pets_c-pixelate-5"].metrics["nll"] != pets.metrics["nll"]
    accuracies = [evaluation.datasets[name].metrics["accuracy"] for name in corrupted]
    assert evaluation.summary == {"mean_corruption_accuracy": pytest.approx(sum(accuracies) / 4)}
    assert json.loads((tmp_path / "figures.json").read_text()).items() >= evaluation.summary.items()
    predictions = evaluation.predictions(tmp_path / "out", "pets")
    assert predictions.row.tolist() == list(range(ROWS)) and predictions.label.tolist() == [0, 1, 2, 3, 4] * 2
    assert predictions.correct.mean() == pytest.approx(pets.metrics["accuracy"])
    assert predictions.nll.mean() == pytest.approx(pets.metrics["nll"], rel=1e-5)
    assert "pets_c-contrast-1" in capsys.readouterr().out
    preprocessing = {
        "image_size": 32,
        "crop_pct": pytest.approx(pets.settings["crop_pct"]),
        "interpolation": "bilinear",
    }
    common = {"seed": 0, **preprocessing, "dtype": "float32", "max_samples": None}
    assert pets.settings == {**common, "scoring": "full"} and 0 < pets.settings["crop_pct"] <= 1
    errors = json.loads((tmp_path / "out" / "corruption_errors" / "pets_c.json").read_text())
    assert list(errors) == ["contrast", "pixelate", "clean"] and errors["clean"] == [1 - pets.metrics["accuracy"]]
    assert errors["contrast"] == pytest.approx([1 - accuracy for accuracy in accuracies[:2]])


def test_settings_of_the_command_line_are_recorded(evaluate, workshop, tmp_path):
    flags = {"image_size": 16, "crop_pct": 0.75, "seed": 3, "max_samples": 4, "dtype": "bfloat16"}
    evaluate(dataset_name=workshop / "three", output_dir=tmp_path / "out", **flags)
    recorded = Evaluation.load(tmp_path / "out").datasets["three"].settings
    assert recorded == {**flags, "interpolation": "bilinear", "scoring": "restricted"}


def test_a_suite_is_measured_against_errors_that_were_written_before(evaluate, workshop, tmp_path):
    pets = {"dataset_name": str(workshop / "pets")}
    corrupted = {**pets, "corruptions": ["contrast", "pixelate"], "severities": [1, 5]}
    (tmp_path / "own.yaml").write_text("contrast: [0.5, 1.0]\npixelate: 0.5\n")
    suite = write(tmp_path / "suite.yaml", {"pets_c": {**corrupted, "baseline": "own.yaml"}})
    evaluate(suite=suite, output_dir=tmp_path / "first")
    written = tmp_path / "first" / "corruption_errors" / "pets_c.json"
    errors = json.loads(written.read_text())
    expected = (sum(errors["contrast"]) / 1.5 + sum(errors["pixelate"]) / 1.0) / 2
    assert Evaluation.load(tmp_path / "first").summary["mce"] == pytest.approx(expected)
    suite = write(
        tmp_path / "suite.yaml", {"pets_c": {**corrupted, "baseline": "first/corruption_errors/pets_c.json"}}
    )
    evaluate(suite=suite, output_dir=tmp_path / "second")
    assert Evaluation.load(tmp_path / "second").summary["mce"] == pytest.approx(1)


def test_the_commit_of_a_data_set_is_recorded(workshop, monkeypatch):
    (task,) = open_tasks(SuiteEntry(str(workshop / "pets"), revision="main"), NAMES[:C], C).values()
    assert task.revision is None
    asked = []
    monkeypatch.setattr(tasks, "dataset_commit", lambda name, revision: f"commit of {revision}")
    monkeypatch.setattr(tasks, "load_source", lambda *source: asked.append(source) or tiny_dataset(3, labels=C))
    for entry in (
        SuiteEntry("owner/pets", revision="v1"),
        SuiteEntry("owner/pets", revision="v1", corruptions=("fog",)),
    ):
        assert {task.revision for task in open_tasks(entry, NAMES[:C], C).values()} == {"commit of v1"}
    assert set(asked) == {("owner/pets", None, "test", "commit of v1")}


def test_one_bad_entry_does_not_lose_the_others(evaluate, workshop, tmp_path):
    suite = write(
        tmp_path / "mixed.yaml",
        {"nowhere": {"dataset_name": "owner/nothing"}, "pets": {"dataset_name": str(workshop / "pets")}},
    )
    with pytest.raises(SystemExit) as stop:
        evaluate(suite=suite, output_dir=tmp_path / "out")
    assert "1 datasets of the suite could not be evaluated: nowhere: There is no dataset" in str(stop.value)
    evaluation = Evaluation.load(tmp_path / "out")
    assert list(evaluation.datasets) == ["pets"] and "There is no dataset" in evaluation.skipped["nowhere"]


@pytest.mark.parametrize("name", suite_names())
def test_suites_that_come_with_the_package(name):
    suite = load_suite(name)
    assert suite.entries and suite.title
    for entry in suite.entries.values():
        assert len(entry.on_the_fly) in (0, 75)
    assert suite_names() == ["cifar_robustness", "imagenet_robustness"]


def test_classes_from_a_column_and_from_a_file(evaluate, workshop, tmp_path):
    common = {"dataset_name": workshop / "words", "output_json": tmp_path / "figures.json"}
    evaluate(classes_from="species", **common)
    column = json.loads((tmp_path / "figures.json").read_text())
    assert column["num_samples"] == ROWS
    (tmp_path / "classes.yaml").write_text("\n".join(f"{name}: {name}" for name in NAMES[:C]))
    evaluate(classes_from=tmp_path / "classes.yaml", label_column_name="species", **common)
    assert json.loads((tmp_path / "figures.json").read_text())["nll"] == pytest.approx(column["nll"])
    with pytest.raises(
        SystemExit, match="classes_from nocolumn: .* the columns are image, species, the tables imagenet"
    ):
        evaluate(classes_from="nocolumn", **common)


def test_corrupted_images_of_a_data_set(workshop):
    entry = SuiteEntry(str(workshop / "corrupted"), corruption_columns=("kind", "level"))
    tasks = open_tasks(entry, NAMES[:C], C)
    assert {name: task.rows.tolist() for name, task in tasks.items()} == {
        "-snow-1": [1, 3],
        "-snow-2": [5, 7, 9],
        "-fog-1": [0, 2],
        "-fog-2": [4, 6, 8],
    }
    assert all(not task.on_the_fly and len(task.source) == len(task.rows) for task in tasks.values())
    assert [len(task.rows) for task in open_tasks(entry, NAMES[:C], C, max_samples=1).values()] == [1] * 4


def test_integers_without_names_compete_with_all_classes_of_the_model():
    rows = tiny_dataset(3, labels=0).add_column("label", [3, 1, 3])
    task = open_task(rows, SuiteEntry("pets"), NAMES[:C], C)
    assert task.class_map.names == tuple(NAMES[:C]) and task.labels[:, 0].tolist() == [3, 1, 3]
    words = rows.add_column("species", ["dog", "bee", "dog"])
    task = open_task(words, SuiteEntry("pets", label_column="species"), NAMES[:C], C)
    assert task.class_map.names == tuple(NAMES[:C]) and task.labels[:, 0].tolist() == [3, 1, 3]
    declared = rows.cast_column("label", ClassLabel(names=["ant", "bee", "cat", "dog"]))
    assert len(open_task(declared, SuiteEntry("pets"), NAMES[:C], C).class_map.names) == 4


def test_several_right_labels_and_none():
    rows = tiny_dataset(3, labels=0).add_column("classes", [[4, 2], [], [1]])
    task = open_task(rows, SuiteEntry("pets", label_column="classes", scoring="full"), NAMES[:C], C)
    assert task.rows.tolist() == [0, 2] and task.labels.tolist() == [[4, 2], [1, -1]]


def test_real_labels_are_found_by_the_names_of_the_files():
    files = [f"val/ILSVRC2012_val_0000000{number}.JPEG" for number in (2, 1, 3)]  # the first has no label
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


def test_an_entry_for_models_of_another_size_is_left_out(evaluate, workshop, tmp_path):
    suite = write(tmp_path / "two.yaml", {"pets": {"dataset_name": str(workshop / "pets"), "num_classes": 7}})
    with pytest.raises(SystemExit, match="The suite two is for models of .7. classes; .* has 5"):
        evaluate(suite=suite)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (
            {"dataset_name": "a", "clases": "b"},
            r"pets: a dataset needs dataset_name and may have .* found \['clases'\]",
        ),
        ({"split": "test"}, "needs dataset_name"),
        ({"dataset_name": "a", "scoring": "half"}, "pets: scoring must be one of restricted, full, not 'half'"),
        ({"dataset_name": "a", "metric": "f1"}, "metric must be one of accuracy"),
        ({"dataset_name": "a", "corruptions": ["rain"]}, "no corruption 'rain'"),
        ({"dataset_name": "a", "severities": [0], "corruptions": "fog"}, "of severity 0"),
        ({"dataset_name": "a", "corruption_columns": ["kind"]}, "must be two columns"),
        ({"dataset_name": "a", "clean": "cats"}, "clean names 'cats', which is not one of pets"),
        (
            {"dataset_name": "a", "baseline": "resnet"},
            "baseline must be alexnet or a YAML or JSON file .* not 'resnet'",
        ),
        ({"dataset_name": "a", "baseline": "fog.yaml"}, "fog.yaml lacks the errors of brightness, contrast"),
        (
            {"dataset_name": "a", "baseline": "fog.yaml", "severities": 1},
            "error at each of 1 severities.*or their mean",
        ),
        ({"dataset_name": "a", "baseline": "bad.yaml"}, "bad.yaml must hold .*Divide percentages by 100"),
        ({"dataset_name": "a", "baseline": "list.yaml"}, "list.yaml must hold .corruption: .error at each of 5"),
    ],
)
def test_mistakes_in_a_file_name_their_place(values, expected, tmp_path):
    for name, text in (("fog", "fog: [.1, .2, .3, .4, .5]"), ("bad", "fog: 54.3"), ("list", "- 0.5")):
        (tmp_path / f"{name}.yaml").write_text(text)
    with pytest.raises(ValueError, match=expected):
        load_suite(str(write(tmp_path / "suite.yaml", {"pets": values})))


def test_files_that_are_no_suites(tmp_path):
    with pytest.raises(ValueError, match="no suite 'imagenet'; name one of cifar_robustness, imagenet_robustness, or"):
        load_suite("imagenet")
    for text, expected in (
        ("a: [", "neither JSON nor YAML"),
        ("sets: 1", "must have the keys"),
        ("datasets: {}", "at least one"),
    ):
        (tmp_path / "suite.yaml").write_text(text)
        with pytest.raises(ValueError, match=expected):
            load_suite(str(tmp_path / "suite.yaml"))
    with pytest.raises(ValueError, match="the name 'a/b' becomes that of a file"):
        load_suite(str(write(tmp_path / "suite.yaml", {"a/b": {"dataset_name": "x"}})))


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("pets", {"label_column": "kind"}, "has no column 'kind'; its columns are image, label"),
        ("pets", {"label_column": "image"}, "expected class indices, names, or lists"),
        ("unlabelled", {}, "no rows or no labels"),
        ("empty", {}, "^split 'test' of .*empty has no rows; name another with --split"),
        ("hidden", {}, "images without a label .-1"),
        ("corrupted", {"corruption_columns": ("label", "level")}, "name no corruption|no corruption"),
    ],
)
def test_data_sets_that_cannot_be_evaluated(name, options, expected, workshop):
    options = {"severities": (5,), **options} if name == "corrupted" else options
    with pytest.raises(ValueError, match=expected):
        open_tasks(SuiteEntry(str(workshop / name), **options), NAMES[:C], C)


def test_an_empty_split():
    with pytest.raises(ValueError, match="split 'test' of pets has no rows; name another with --split"):
        open_task(tiny_dataset(3).select([]), SuiteEntry("pets"), NAMES[:C], C)


def test_one_of_data_set_and_suite_is_named(evaluate, workshop):
    for flags in ({}, {"suite": "cifar_robustness", "dataset_name": workshop / "pets"}):
        with pytest.raises(SystemExit, match="either a dataset with --dataset_name, or a --suite"):
            evaluate(**flags)
