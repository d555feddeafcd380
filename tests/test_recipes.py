"""The recipes as a user runs them: help, a whole run from images to figures, resumption, mistakes."""

import json
import logging
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import yaml
from recipe_modules import load_recipe
from safetensors.torch import load_file, save_file
from tiny import NAMES, tiny_dataset
from transformers import AutoModelForImageClassification

from hf_reinforce import load_reinforced, load_teacher
from hf_reinforce.cards import preview
from hf_reinforce.metrics import Predictions, measure, score

RECIPES = Path(__file__).parent.parent / "recipes"
ROWS, TEST_ROWS, C, SIZE = 24, 10, 5, 32
ARCHITECTURE = "test_efficientnet"

REINFORCE_FLAGS = [
    "dataset_name",
    "dataset_config_name",
    "split",
    "image_column_name",
    "label_column_name",
    "teacher_name_or_path",
    "policy",
    "image_size",
    "num_samples",
    "top_k",
    "seed",
    "output_dir",
    "max_samples",
    "shard_size",
    "embed_images",
    "num_workers",
    "on_error",
]
TRAIN_FLAGS = [
    "dataset_name",
    "dataset_config_name",
    "dataset_revision",
    "source_name_or_path",
    "eval_dataset_name",
    "eval_split",
    "model_name_or_path",
    "teacher_name_or_path",
    "method",
    "temperature",
]
EVALUATE_FLAGS = ["model_name_or_path", "dataset_name", "split", "output_json"]
INSPECT_FLAGS = ["dataset_name", "output_dir", "source_name_or_path", "num_images"]
FLAGS = {
    "reinforce": REINFORCE_FLAGS,
    "train_kd": TRAIN_FLAGS,
    "evaluate": EVALUATE_FLAGS,
    "inspect_dataset": INSPECT_FLAGS,
}

HEAVY = ("torch", "transformers", "datasets", "timm", "numpy", "pyarrow", "hf_reinforce")
HELP = """
import runpy, sys
sys.path.insert(0, {folder!r})
sys.argv = [{script!r}, "--help"]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as stop:
    assert not stop.code, stop.code
print("IMPORTED", *(name for name in {heavy!r} if name in sys.modules))
"""


@pytest.fixture
def recipe(monkeypatch):
    """`recipe(name, *arguments)`: runs a recipe's `main` in this process."""
    monkeypatch.syspath_prepend(str(RECIPES))

    def recipe(name, *arguments, **flags):
        flags = [part for key, value in flags.items() for part in (f"--{key}", *map(str, listed(value)))]
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments), *flags])
        load_recipe(name).main()

    return recipe


def listed(value):
    return value if isinstance(value, (list, tuple)) else [value]


@pytest.fixture(scope="module")
def workshop(tmp_path_factory):
    """A folder with images as Parquet, two splits, and a teacher: a timm student as transformers saves it."""
    from hf_reinforce.models.students import create_student

    folder = tmp_path_factory.mktemp("workshop")
    (folder / "pets").mkdir()
    tiny_dataset(ROWS, labels=C).to_parquet(folder / "pets" / "train-00000-of-00001.parquet")
    tiny_dataset(TEST_ROWS, labels=C).to_parquet(folder / "pets" / "test-00000-of-00001.parquet")
    torch.manual_seed(0)
    create_student(ARCHITECTURE, C, SIZE, NAMES[:C]).save_pretrained(folder / "teacher")
    return folder


@pytest.fixture(scope="module")
def plus(workshop):
    """The reinforced dataset that `reinforce.py` makes in the workshop."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(RECIPES))
        patch.setattr(preview, "draw", lambda *args: None)
        flags = {
            "dataset_name": workshop / "pets",
            "teacher_name_or_path": workshop / "teacher",
            "policy": "rrc",
            "image_size": SIZE,
            "num_samples": 2,
            "top_k": 3,
            "seed": 5,
            "output_dir": workshop / "pets-plus",
        }
        argv = [part for key, value in flags.items() for part in (f"--{key}", str(value))]
        patch.setattr(sys, "argv", ["reinforce.py", *argv])
        load_recipe("reinforce").main()
    return workshop / "pets-plus"


@pytest.fixture
def train(recipe, plus, tmp_path):
    """`train(*arguments, **flags)`: a short run of `train_kd.py` on the reinforced dataset; returns its folder."""
    common = {
        "dataset_name": plus,
        "model_name_or_path": ARCHITECTURE,
        "use_cpu": True,
        "num_train_epochs": 1,
        "per_device_train_batch_size": 8,
        "timm_optimizer": "sgd",
        "learning_rate": 0.05,
        "save_strategy": "no",
        "disable_tqdm": True,
    }

    def train(*arguments, **flags):
        flags = {**common, "output_dir": tmp_path / "student", **flags}
        recipe("train_kd", *arguments, **{key: value for key, value in flags.items() if value is not None})
        return Path(flags["output_dir"])

    return train


# -- help ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FLAGS)
def test_help_is_instant_and_lists_the_flags(name):
    script = RECIPES / f"{name}.py"
    code = HELP.format(folder=str(RECIPES), script=str(script), heavy=HEAVY)
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    text, imported = result.stdout.rsplit("IMPORTED", 1)
    assert not imported.split(), "what is slow to import is imported after the help"
    assert text.startswith(f"usage: {name}.py [FILE.yaml] [--flag value ...]")
    for flag in FLAGS[name]:
        assert f"--{flag}" in text, flag
    assert name != "train_kd" or all(word in text for word in ("reinforced", "online", "plain", "TrainingArguments"))


@pytest.mark.parametrize("name", FLAGS)
def test_help_lists_every_flag_of_the_recipe_with_a_text(name, monkeypatch, capsys):
    import dataclasses

    monkeypatch.syspath_prepend(str(RECIPES))
    module = load_recipe(name)
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "-h"])
    with pytest.raises(SystemExit) as stop:
        module.main()
    assert stop.value.code == 0
    text = capsys.readouterr().out
    own = [c for c in vars(module).values() if dataclasses.is_dataclass(c) and c.__module__ == name]
    for field in (field for cls in own for field in dataclasses.fields(cls)):
        line = next(line for line in text.split("\n") if line.strip().startswith(f"--{field.name} "))
        assert line.strip().removeprefix(f"--{field.name}").strip(), f"{field.name} has a help text"


@pytest.mark.parametrize("document", ["README.md", "docs/guide.md"])
def test_the_documents_reinforce_as_the_yaml_file_does(document):
    text = (RECIPES.parent / document).read_text(encoding="utf-8").replace("\\\n", " ")
    (command,) = re.findall(r"^python recipes/reinforce.py (--.*)$", text, re.MULTILINE)
    words = shlex.split(command)
    flags = dict(zip((word.removeprefix("--") for word in words[::2]), words[1::2], strict=True))
    values = yaml.safe_load((RECIPES / "cifar100_plus" / "reinforce.yaml").read_text(encoding="utf-8"))
    assert flags == {key: str(*listed(values[key])) for key in flags}


@pytest.mark.parametrize("name", ["evaluate", "import_ml_dr", "publish", "reinforce", "train_kd", "verify"])
def test_recipes_end_with_one_line(name):
    main = load_recipe(name).main
    assert main.__wrapped__.__name__ == "main" and main.__code__.co_name == "wrapped", "not @one_line_errors"


# -- from images to figures ---------------------------------------------------------------------------------------


def test_reinforce_writes_what_was_asked_for(plus, workshop):
    dataset = load_reinforced(str(plus))
    config = dataset.config
    assert (config.num_samples, config.classes.top_k, config.seed, config.num_classes) == (2, 3, 5, C)
    assert config.policy.name == "rrc" and config.policy.image_size == SIZE and config.complete
    assert config.source.name == str(workshop / "pets") and config.class_names == NAMES[:C]
    assert len(dataset) == ROWS
    teacher = load_teacher(str(workshop / "teacher"))
    answer = teacher(torch.stack([dataset.view(row, 1) for row in range(ROWS)])).exp()
    for row in range(ROWS):
        target = dataset.target(row, 1)
        np.testing.assert_allclose(np.exp(target["target_value"]), answer[row][target["target_label"]], atol=0.01)


def test_reinforced_run_and_evaluation(train, recipe, workshop, tmp_path, capsys):
    folder = train(method="reinforced", eval_split="test", hard_label_weight=0.1)
    assert {"model.safetensors", "config.json", "train_results.json", "eval_results.json", "README.md"} <= set(
        os.listdir(folder)
    )
    student = AutoModelForImageClassification.from_pretrained(folder)
    assert list(student.config.id2label.values()) == list(NAMES[:C])
    capsys.readouterr()
    recipe(
        "evaluate",
        model_name_or_path=folder,
        dataset_name=workshop / "pets",
        output_json=tmp_path / "figures" / "student.json",
        num_workers=0,
        device="cpu",
    )
    figures = json.loads((tmp_path / "figures" / "student.json").read_text())
    assert {"accuracy", "accuracy_top5", "ece", "nll", "brier", "num_samples"} <= set(figures)
    assert figures["num_samples"] == TEST_ROWS and figures["split"] == "test"
    table = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.strip().split("\n"))
    for name in ("accuracy", "ece", "nll", "brier"):
        assert table[name] == f"{figures[name]:.4f}"
    # What the trainer measured at the end is what the saved student does.
    evaluated = json.loads((folder / "eval_results.json").read_text())
    for name in ("accuracy", "nll", "brier", "ece"):
        assert figures[name] == pytest.approx(evaluated[f"eval_{name}"], rel=1e-4, abs=1e-6)


def test_evaluation_by_hand(recipe, workshop, tmp_path):
    from torchvision.transforms.v2 import functional as F

    output = tmp_path / "teacher.json"
    flags = {"dataset_name": workshop / "pets", "output_json": output, "num_workers": 0, "device": "cpu"}
    recipe("evaluate", model_name_or_path=workshop / "teacher", max_samples=7, **flags)
    figures = json.loads(output.read_text())
    model = AutoModelForImageClassification.from_pretrained(workshop / "teacher").eval()
    cfg = model.config.pretrained_cfg
    scores = []
    for row in tiny_dataset(TEST_ROWS, labels=C).select(range(7)):
        image = F.pil_to_tensor(row["image"].convert("RGB"))
        image = F.center_crop(F.resize(image, [SIZE], antialias=True), [SIZE, SIZE]).float() / 255
        image = F.normalize(image, cfg["mean"], cfg["std"])
        with torch.no_grad():
            scores.append(score(model(image[None]).logits, torch.tensor([row["label"]])))
    for name, value in measure(Predictions.concatenate(scores)).items():
        assert figures[name] == pytest.approx(value, rel=1e-3, abs=1e-6), name


def test_evaluation_of_an_ensemble(recipe, workshop, tmp_path):
    output = tmp_path / "both.json"
    flags = {"dataset_name": workshop / "pets", "output_json": output, "num_workers": 0, "device": "cpu"}
    recipe("evaluate", model_name_or_path=[workshop / "teacher"] * 2, **flags)
    both = json.loads(output.read_text())
    recipe("evaluate", model_name_or_path=workshop / "teacher", **flags)
    one = json.loads(output.read_text())
    assert both["model"] == " + ".join([str(workshop / "teacher")] * 2)
    assert both["nll"] == pytest.approx(one["nll"], rel=1e-5)


@pytest.mark.parametrize("images", ["reinforced", "source"])
@pytest.mark.parametrize("method", ["plain", "online"])
def test_baselines_are_the_same_script_with_one_flag(method, images, train, workshop):
    flags = {"method": method, "eval_split": "test"}
    if images == "source":
        flags |= {"dataset_name": workshop / "pets", "policy": "rrc", "image_size": SIZE}
    if method == "online":
        flags["teacher_name_or_path"] = workshop / "teacher"
    folder = train(**flags)
    student = AutoModelForImageClassification.from_pretrained(folder)
    assert student.config.num_labels == C
    assert json.loads((folder / "eval_results.json").read_text())["eval_num_samples"] == TEST_ROWS
    assert json.loads((folder / "train_results.json").read_text())["train_loss"] > 0


def test_a_teacher_that_is_asked_about_stored_views_answers_as_stored(train, workshop, tmp_path):
    teacher = {"method": "online", "teacher_name_or_path": workshop / "teacher"}
    runs = {"stored": {}, "asked": {**teacher, "stored_views": True}, "fresh": teacher}
    losses = {}
    for name, flags in runs.items():
        folder = train(**flags, output_dir=tmp_path / name)
        losses[name] = json.loads((folder / "train_results.json").read_text())["train_loss"]
    near, far = (abs(losses[name] - losses["stored"]) for name in ("asked", "fresh"))
    assert near < 0.002 and near < far / 2


def test_evaluation_at_every_epoch_does_not_replace_training(train):
    folder = train(eval_split="test", eval_strategy="epoch", num_train_epochs=2)
    state = json.loads((folder / "trainer_state.json").read_text())
    assert state["global_step"] == 2 * ROWS // 8
    assert sum("eval_accuracy" in entry for entry in state["log_history"]) >= 2


def test_yaml_file_and_flags_that_override_it(train, tmp_path):
    file = tmp_path / "student.yaml"
    file.write_text(
        "method: plain\nnum_train_epochs: 2\nmax_train_samples: 16\nmodel_args: {drop_path_rate: 0.25}\n"
        "eval_split: null\nlabel_smoothing_factor: 0.1\n"
    )
    folder = train(file, method="reinforced", num_train_epochs=None, max_steps=3)
    state = json.loads((folder / "trainer_state.json").read_text())
    assert state["global_step"] == 3 and state["max_steps"] == 3
    args = torch.load(folder / "training_args.bin", weights_only=False)
    assert args.method == "reinforced" and args.label_smoothing_factor == 0.1 and args.num_train_epochs == 2
    config = json.loads((folder / "config.json").read_text())
    assert config["model_args"]["drop_path_rate"] == 0.25
    assert state["epoch"] == pytest.approx(1.5), "16 samples make two steps an epoch"
    assert not (folder / "eval_results.json").exists()


def test_rerun_continues_from_the_last_checkpoint(train, caplog, tmp_path):
    flags = {"save_strategy": "steps", "save_steps": 2, "num_train_epochs": 2, "ema_decay": 0.9}
    folder = train(**flags)
    whole = load_file(folder / "model.safetensors")
    # The run is killed after its fourth step: the later checkpoint and the result are not there yet.
    assert sorted(os.listdir(folder))[:3] == ["README.md", "all_results.json", "checkpoint-2"]
    for leftover in [folder / "model.safetensors", *folder.glob("checkpoint-6/*")]:
        leftover.unlink()
    (folder / "checkpoint-6").rmdir()
    with caplog.at_level(logging.INFO):
        train(**flags)
    assert any("Resuming from" in r.getMessage() and "checkpoint-4" in r.getMessage() for r in caplog.records)
    again = load_file(folder / "model.safetensors")
    assert whole.keys() == again.keys()
    for name, value in whole.items():
        assert torch.equal(again[name], value), name


def test_the_last_checkpoint_is_meant_by_true(train, caplog, tmp_path):
    flags = {"save_strategy": "steps", "save_steps": 1, "max_steps": 2}
    folder = train(**flags)
    whole = load_file(folder / "model.safetensors")
    with caplog.at_level(logging.INFO):
        train(**flags, resume_from_checkpoint=True)
    assert any("checkpoint-2" in record.getMessage() for record in caplog.records)
    assert all(torch.equal(value, whole[name]) for name, value in load_file(folder / "model.safetensors").items())
    train(**{**flags, "max_steps": 3}, resume_from_checkpoint=folder / "checkpoint-1")
    assert json.loads((folder / "trainer_state.json").read_text())["global_step"] == 3


def test_idle_flags_are_named_once(train, caplog):
    with caplog.at_level(logging.WARNING):
        train(policy="nonsense", label_smoothing_factor=0.1, adam_beta2=0.5, max_steps=1)
    (line,) = [r.getMessage() for r in caplog.records if r.getMessage().startswith("These flags change nothing")]
    assert all(f"--{flag} " in line for flag in ("policy", "label_smoothing_factor", "adam_beta2"))


def test_inspection_has_a_folder_of_its_own(recipe, plus, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    recipe("inspect_dataset", plus, num_images=0)
    assert "Written to outputs/pets-plus-inspection." in capsys.readouterr().out
    assert (tmp_path / "outputs" / "pets-plus-inspection" / "inspection.json").exists()


def test_a_dry_run_of_publishing_needs_no_hub(recipe, plus, capsys):
    recipe("publish", folder=plus, repo_id="me/plus", dry_run=True)
    assert "bytes would be sent" in capsys.readouterr().out


def test_classes_are_at_most_those_of_the_teacher(recipe, workshop, tmp_path):
    flags = {"dataset_name": workshop / "pets", "teacher_name_or_path": workshop / "teacher", "policy": "rrc"}
    recipe("reinforce", **flags, image_size=SIZE, num_samples=1, max_samples=4, output_dir=tmp_path / "plus")
    assert load_reinforced(str(tmp_path / "plus")).config.classes.top_k == C


def test_student_trains_at_another_size(train):
    folder = train(image_size=24, input_size=40)
    config = json.loads((folder / "config.json").read_text())
    assert config["pretrained_cfg"]["input_size"] == [3, 40, 40]
    assert load_teacher(str(folder)).members[0].preprocessing.image_size == 40


def test_bare_timm_teacher_with_a_checkpoint(train, tmp_path):
    torch.manual_seed(1)
    save_file(timm.create_model("test_resnet", num_classes=C).state_dict(), tmp_path / "weights.safetensors")
    train(
        method="online",
        teacher_name_or_path="test_resnet",
        teacher_checkpoint=tmp_path / "weights.safetensors",
        class_map="identity",
        max_steps=1,
    )


# -- mistakes -----------------------------------------------------------------------------------------------------


def message(recipe, name, *arguments, **flags):
    """The error that ends a recipe, without a traceback."""
    with pytest.raises(SystemExit) as stop:
        recipe(name, *arguments, **flags)
    return str(stop.value.code)


def test_unknown_key_of_a_file(recipe, tmp_path):
    file = tmp_path / "student.yaml"
    file.write_text("dataset_name: pets\nlearning_rat: 0.1\n")
    assert f"no flag --learning_rat in {file}; did you mean --learning_rate?" in message(recipe, "train_kd", file)


def test_missing_file_and_unknown_flag(recipe, tmp_path):
    assert "There is no file" in message(recipe, "train_kd", tmp_path / "nothing.yaml")
    found = message(recipe, "evaluate", model_name_or_path="a", dataset_name="b", batchsize=3)
    assert found == "error: There is no flag --batchsize; did you mean --batch_size? --help lists the flags."
    file = tmp_path / "student.yaml"
    file.write_text("images_on_device: true\n")
    assert f"There is no flag --images_on_device in {file}; give --cache_images True" in message(
        recipe, "train_kd", file
    )


@pytest.fixture
def training_flags(workshop, tmp_path):
    return {
        "dataset_name": workshop / "pets",
        "model_name_or_path": ARCHITECTURE,
        "output_dir": tmp_path / "out",
        "use_cpu": True,
    }


def test_training_on_images_that_are_not_reinforced(recipe, training_flags):
    text = message(recipe, "train_kd", method="reinforced", **training_flags)
    assert "is not a reinforced dataset; reinforce it with recipes/reinforce.py, or choose" in text
    assert "--policy" in message(recipe, "train_kd", method="plain", **training_flags)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({"method": "magic"}, "method must be one of reinforced, online, plain, not 'magic'"),
        ({"model_name_or_path": "resnet51"}, "'resnet51' is neither a timm architecture"),
        ({"method": "online"}, "needs a teacher"),
        ({"dataset_config_name": "randaug"}, "has the configurations ['rrc']"),
        ({"selection": "twice"}, "selection must be 'cycle' or 'random'"),
        ({"eval_split": "validation"}, "validation"),
        ({"source_name_or_path": "owner/nothing"}, "There is no dataset 'owner/nothing'"),
        ({"dataset_name": "owner/nothing"}, "There is no dataset 'owner/nothing'"),
    ],
)
def test_mistakes_in_training_are_one_sentence(flags, expected, recipe, training_flags, plus):
    assert expected in message(recipe, "train_kd", **{**training_flags, "dataset_name": plus, **flags})


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({"num_samples": 0}, "num_samples must be"),
        ({"top_k": 9}, "top_k must lie between 1 and the 5 classes, not 9"),
        ({"policy": "magic"}, "Unknown policy 'magic'"),
        ({"image_column_name": "picture"}, "no image column 'picture'; its columns are ['image', 'label']"),
        ({"teacher_name_or_path": "owner/nothing"}, "There is no image classifier 'owner/nothing'"),
        ({"dataset_name": "owner/nothing"}, "There is no dataset 'owner/nothing'"),
        ({"split": "validation"}, "validation"),
        ({"class_map": "[0, 1, 9, 3, 4]"}, "class_map"),
        ({"class_map": "{not json"}, "class_map"),
        ({"max_samples": 0}, "--max_samples must be at least 1, not 0"),
    ],
)
def test_mistakes_in_reinforcing_are_one_sentence(flags, expected, recipe, workshop, tmp_path):
    common = {
        "dataset_name": workshop / "pets",
        "teacher_name_or_path": workshop / "teacher",
        "output_dir": tmp_path / "plus",
        "num_samples": 1,
        "top_k": 2,
        "image_size": SIZE,
    }
    assert expected in message(recipe, "reinforce", **{**common, **flags})
    assert not list(tmp_path.rglob("*.parquet"))


def test_an_estimate_is_printed_and_nothing_is_written(recipe, workshop, tmp_path, capsys):
    flags = {"dataset_name": workshop / "pets", "teacher_name_or_path": workshop / "teacher", "image_size": SIZE}
    recipe("reinforce", "--estimate", **flags, top_k=3, num_samples=2, output_dir=tmp_path / "plus")
    printed = capsys.readouterr().out
    assert f"{ROWS} images, policy randaug, N = 2: {2 * ROWS} views" in printed
    assert "bytes a reinforcement" in printed and "views/s" in printed and "on 8," in printed
    assert list(tmp_path.iterdir()) == []


def test_other_settings_for_the_same_folder_are_refused(recipe, plus, workshop):
    text = message(
        recipe,
        "reinforce",
        dataset_name=workshop / "pets",
        teacher_name_or_path=workshop / "teacher",
        policy="rrc",
        image_size=SIZE,
        num_samples=2,
        top_k=2,
        seed=5,
        output_dir=plus,
    )
    assert "holds a reinforced dataset that was made differently: top_k: 2, not 3" in text


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({"model_name_or_path": "owner/nothing"}, "There is no image classifier 'owner/nothing'"),
        ({"dataset_name": "owner/nothing"}, "There is no dataset"),
        ({"max_samples": 0}, "--max_samples must be at least 1, not 0"),
        (
            {"class_map": "[0]"},
            f"The class map has 1 classes, but the dataset has {C} classes; mend the file of --classes_from or of the "
            "suite, or --class_map.",
        ),
    ],
)
def test_mistakes_in_evaluation_are_one_sentence(flags, expected, recipe, workshop):
    common = {
        "dataset_name": workshop / "pets",
        "model_name_or_path": workshop / "teacher",
        "num_workers": 0,
        "device": "cpu",
    }
    assert expected in message(recipe, "evaluate", **{**common, **flags})


# -- processes ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_accelerate_launch(plus, tmp_path):
    file = tmp_path / "student.yaml"
    file.write_text(
        f"dataset_name: {plus}\nmodel_name_or_path: {ARCHITECTURE}\noutput_dir: {tmp_path / 'student'}\n"
        "eval_split: test\nuse_cpu: true\nmax_steps: 2\nper_device_train_batch_size: 8\nsave_strategy: 'no'\n"
    )
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", RECIPES / "accelerate" / "cpu.yaml"]
    command = [*launch, RECIPES / "train_kd.py", file, "--seed", "3"]
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    assert json.loads((tmp_path / "student" / "trainer_state.json").read_text())["global_step"] == 2
    assert json.loads((tmp_path / "student" / "eval_results.json").read_text())["eval_num_samples"] == TEST_ROWS


def test_a_folder_with_another_run_is_not_resumed(recipe, plus, workshop, training_flags):
    flags = training_flags | {"dataset_name": plus, "max_steps": 2, "save_steps": 1, "eval_split": "test"}
    flags |= {"eval_dataset_name": workshop / "pets", "source_name_or_path": workshop / "pets"}
    recipe("train_kd", method="reinforced", **flags)
    figures = (training_flags["output_dir"] / "train_results.json").read_text(encoding="utf-8")
    refused = message(recipe, "train_kd", method="plain", **flags)
    assert "holds another run" in refused
    assert "method: 'plain', not 'reinforced'" in refused
    # Finished: evaluated again, its figures kept; what changes no sample may be asked for anew.
    recipe("train_kd", method="reinforced", accept_pixel_mismatch=True, max_eval_samples=3, **flags)
    assert (training_flags["output_dir"] / "train_results.json").read_text(encoding="utf-8") == figures


def test_students_are_evaluated_on_their_own_classes(recipe, plus, workshop, training_flags, tmp_path):
    other = tmp_path / "others"
    other.mkdir()
    tiny_dataset(TEST_ROWS, labels=C - 1).to_parquet(other / "test-00000-of-00001.parquet")
    flags = training_flags | {"dataset_name": plus, "max_steps": 1, "eval_split": "test", "eval_dataset_name": other}
    refused = message(recipe, "train_kd", source_name_or_path=workshop / "pets", **flags)
    assert f"has {C - 1} classes" in refused and f"not the student's {C}" in refused


def test_results_that_cannot_be_written_are_noticed_first(recipe, workshop):
    flags = {"model_name_or_path": workshop / "nowhere", "dataset_name": workshop / "pets"}
    blocked = workshop / "pets" / "train-00000-of-00001.parquet" / "test.json"
    assert str(blocked.parent) in message(recipe, "evaluate", output_json=blocked, **flags)
