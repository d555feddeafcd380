"""The recipes as a user runs them: help, a whole run from images to figures, resumption, mistakes."""

import dataclasses
import json
import logging
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from datasets import load_dataset
from recipe_modules import RECIPES, flag_classes, load_recipe
from safetensors.torch import load_file, save_file
from tiny import NAMES, tiny_dataset
from transformers import AutoModelForImageClassification

from hf_reinforce import load_reinforced, load_teacher
from hf_reinforce.cards import preview
from hf_reinforce.metrics import Predictions, measure, score

ROWS, TEST_ROWS, C, SIZE = 24, 10, 5, 32
ARCHITECTURE = "test_efficientnet"
SCRIPTS = [path.stem for path in sorted(RECIPES.glob("*.py")) if "def main(" in path.read_text(encoding="utf-8")]
HEAVY = ("torch", "transformers", "datasets", "timm", "numpy", "pyarrow", "hf_reinforce", "matplotlib")
HELP = """
import runpy, sys
sys.path.insert(0, {folder!r})
for name in {scripts!r}:
    sys.argv = [f"{folder}/{{name}}.py", "--help"]
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
    flags = f"--dataset_name {workshop}/pets --teacher_name_or_path {workshop}/teacher --policy rrc"
    flags += f" --image_size {SIZE} --num_samples 2 --top_k 3 --seed 5 --output_dir {workshop}/pets-plus"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preview, "draw", lambda *args: None)
        patch.setattr(sys, "argv", ["reinforce.py", *flags.split()])
        load_recipe("reinforce").main()
    return workshop / "pets-plus"


@pytest.fixture
def train(recipe, plus, tmp_path):
    """`train(*arguments, **flags)`: a short run of `train_kd.py` on the reinforced dataset; returns its folder."""
    common = {"dataset_name": plus, "model_name_or_path": ARCHITECTURE, "use_cpu": True, "disable_tqdm": True}
    common |= {"num_train_epochs": 1, "per_device_train_batch_size": 8, "save_strategy": "no"}
    common |= {"timm_optimizer": "sgd", "learning_rate": 0.05}

    def train(*arguments, **flags):
        flags = {**common, "output_dir": tmp_path / "student", **flags}
        recipe("train_kd", *arguments, **{key: value for key, value in flags.items() if value is not None})
        return Path(flags["output_dir"])

    return train


# -- help ---------------------------------------------------------------------------------------------------------


def test_help_is_instant_and_lists_every_flag_with_a_text():
    code = HELP.format(folder=str(RECIPES), scripts=SCRIPTS, heavy=HEAVY)
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    *texts, end = result.stdout.split("IMPORTED\n")
    assert not end and len(texts) == len(SCRIPTS), "what is slow to import is imported after the help"
    for name, text in zip(SCRIPTS, texts, strict=True):
        assert text.startswith(f"usage: {name}.py [FILE.yaml] [--flag value ...]") and "--log_level" in text
        own = [cls for cls in flag_classes(name) if not cls.__module__.startswith("hf_reinforce")]
        for field in (field for cls in own for field in dataclasses.fields(cls)):
            line = next(line for line in text.splitlines() if line.strip().startswith(f"--{field.name} "))
            assert len(line.split()) > 2, f"{field.name} has no help text"
        assert load_recipe(name).main.__wrapped__.__name__ == "main", "not @one_line_errors"


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
    files = {"model.safetensors", "config.json", "train_results.json", "eval_results.json", "README.md"}
    assert files <= set(os.listdir(folder))
    student = AutoModelForImageClassification.from_pretrained(folder)
    assert list(student.config.id2label.values()) == list(NAMES[:C])
    capsys.readouterr()
    output = tmp_path / "figures" / "student.json"
    flags = {"dataset_name": workshop / "pets", "output_json": output, "num_workers": 0, "device": "cpu"}
    recipe("evaluate", model_name_or_path=folder, **flags)
    figures = json.loads(output.read_text())
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
    recipe("evaluate", model_name_or_path=[workshop / "teacher"] * 2, max_samples=7, **flags)
    both = json.loads(output.read_text())
    assert both["model"] == " + ".join([str(workshop / "teacher")] * 2)
    assert both["nll"] == pytest.approx(figures["nll"], rel=1e-5)


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


def test_a_run_goes_on_from_the_last_checkpoint_or_the_one_that_is_named(train, caplog):
    caplog.set_level(logging.INFO)
    flags = {"save_strategy": "steps", "save_steps": 2, "num_train_epochs": 2, "ema_decay": 0.9}
    folder = train(**flags)
    whole = load_file(folder / "model.safetensors")
    # The run is killed after its fourth step: the later checkpoint and the result are not there yet.
    (folder / "model.safetensors").unlink()
    shutil.rmtree(folder / "checkpoint-6")
    for asked, said in (None, "Resuming from"), (True, "is finished already"), (folder / "checkpoint-2", "Resuming"):
        caplog.clear()
        train(**flags, resume_from_checkpoint=asked)
        last = {"Resuming from": "checkpoint-4", "Resuming": "checkpoint-2"}.get(said, "checkpoint-6")
        assert any(said in r.getMessage() and last in r.getMessage() for r in caplog.records)
        again = load_file(folder / "model.safetensors")
        assert whole.keys() == again.keys() and all(torch.equal(again[name], value) for name, value in whole.items())


PARSED = "--dataset_name me/data --model_name_or_path me/model --output_dir FOLDER/out --use_cpu True"
TEACHER = "--teacher_name_or_path me/t --class_map identity --teacher_dtype bfloat16"


@pytest.mark.parametrize(
    ("flags", "is_reinforced", "expected"),
    [
        ("--policy nonsense --train_split test", True, "policy train_split"),
        ("--policy rrc --train_split test --method plain", False, ""),
        ("--label_smoothing_factor 0.1", True, "label_smoothing_factor"),
        ("--label_smoothing_factor 0.1 --hard_label_weight 0.5", True, ""),
        ("--label_smoothing_factor 0.1 --method plain", True, ""),
        ("--adam_beta2 0.9 --optim sgd --timm_optimizer sgd", True, "adam_beta2 optim"),
        ("--adam_beta2 0.9 --lr_scheduler_type cosine", True, ""),
        (TEACHER, True, "teacher_name_or_path class_map teacher_dtype"),
        (f"{TEACHER} --method online", True, ""),
        ("--temperature 2 --hard_label_weight 0.5 --method plain", True, "temperature hard_label_weight"),
        ("--temperature 2 --hard_label_weight 0.5", True, ""),
        ("--temperature 1 --method plain", True, ""),  # the default
        ("--stored_views True", True, "stored_views"),
        ("--allow_missing True --method plain", False, "allow_missing"),
        ("--allow_missing True --accept_pixel_mismatch True", True, ""),
        ("--eval_dataset_name me/e --max_eval_samples 3", True, "eval_dataset_name max_eval_samples"),
        ("--eval_dataset_name me/e --max_eval_samples 3 --eval_split test", True, ""),
        *((f"{RECIPES}/{name}_plus/student.yaml PLAIN", True, "") for name in ("imagenet", "food101", "cifar100")),
        *((f"{RECIPES}/{name}_plus/student.yaml", True, "") for name in ("imagenet", "flowers102", "cifar100")),
    ],
)
def test_flags_that_do_nothing_are_named_in_one_line(flags, is_reinforced, expected, caplog, tmp_path):
    of_file = flags.startswith(str(RECIPES))
    words = flags.replace("PLAIN", "--method plain --use_cpu True") if of_file else f"{PARSED} {flags}"
    argv = words.replace("FOLDER", str(tmp_path)).split()
    parsed = load_recipe("arguments").parse("", flag_classes("train_kd"), argv=argv)
    load_recipe("train_kd").say_ignored(*parsed, is_reinforced)
    lines = [record.getMessage() for record in caplog.records if "change nothing" in record.getMessage()]
    assert len(lines) == bool(expected)
    assert {word.strip(",.-") for line in lines for word in line.split() if word.startswith("--")} == set(
        expected.split()
    )


def test_inspection_has_a_folder_of_its_own(recipe, plus, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    recipe("inspect_dataset", plus, num_images=0)
    assert "Written to outputs/pets-plus-inspection." in capsys.readouterr().out
    assert (tmp_path / "outputs" / "pets-plus-inspection" / "inspection.json").exists()


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


def test_unknown_flags_of_a_file_and_of_the_command_line(recipe, tmp_path):
    file = tmp_path / "student.yaml"
    file.write_text("dataset_name: pets\nlearning_rat: 0.1\n")
    assert f"no flag --learning_rat in {file}; did you mean --learning_rate?" in message(recipe, "train_kd", file)
    found = message(recipe, "evaluate", model_name_or_path="a", dataset_name="b", batchsize=3)
    assert found == "error: There is no flag --batchsize; did you mean --batch_size? --help lists the flags."


@pytest.mark.parametrize(("flag", "instead"), load_recipe("arguments").REPLACED.items())
def test_a_dropped_flag_names_its_replacement_where_there_is_one(flag, instead, recipe, tmp_path):
    file = tmp_path / "student.yaml"
    file.write_text(f"{flag[2:]}: cosine\n")
    for argv, where in ([flag, "cosine"], ""), ([file], f" in {file}"):
        assert f"There is no flag {flag}{where}; did you mean {instead}?" in message(recipe, "train_kd", *argv)
    assert instead not in message(recipe, "reinforce", flag, "1")


def test_an_estimate_is_printed_and_nothing_is_written(recipe, workshop, tmp_path, capsys):
    flags = {"dataset_name": workshop / "pets", "teacher_name_or_path": workshop / "teacher", "image_size": SIZE}
    recipe("reinforce", "--estimate", **flags, top_k=3, num_samples=2, output_dir=tmp_path / "plus")
    printed = capsys.readouterr().out
    assert f"{ROWS} images, policy randaug, N = 2: {2 * ROWS} views" in printed
    assert "bytes a reinforcement" in printed and "views/s" in printed and "on 8," in printed
    assert list(tmp_path.iterdir()) == []


def test_other_settings_for_the_same_folder_are_refused(recipe, plus, workshop):
    flags = {"dataset_name": workshop / "pets", "teacher_name_or_path": workshop / "teacher", "policy": "rrc"}
    text = message(recipe, "reinforce", **flags, image_size=SIZE, num_samples=2, top_k=2, seed=5, output_dir=plus)
    assert "holds a reinforced dataset that was made differently: top_k: 2, not 3" in text


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


def test_a_folder_with_another_run_is_not_resumed(train, workshop):
    flags = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1, "eval_split": "test"}
    folder = train(**flags, method="reinforced", eval_dataset_name=workshop / "pets")
    figures = (folder / "train_results.json").read_text(encoding="utf-8")
    with pytest.raises(SystemExit, match=r"holds another run .*method: 'plain', not 'reinforced'"):
        train(**flags, method="plain")
    # Finished: evaluated again, its figures kept; what changes no sample may be asked for anew.
    train(**flags, method="reinforced", accept_pixel_mismatch=True, max_eval_samples=3)
    assert (folder / "train_results.json").read_text(encoding="utf-8") == figures


def test_a_reinforced_dataset_keeps_its_card(train, plus):
    card = (plus / "README.md").read_bytes()
    with pytest.raises(SystemExit, match="holds a reinforced dataset"):
        train(max_steps=1, method="reinforced", output_dir=plus)
    assert (plus / "README.md").read_bytes() == card


def test_a_part_of_a_dataset_is_balanced(recipe, workshop, tmp_path, capsys):
    def part(name, *flags):
        recipe("subset", *flags, dataset_name=workshop / "pets", output_dir=tmp_path / name)
        return load_dataset(str(tmp_path / name), split="train")

    half = part("half", "--share", "0.5")
    assert capsys.readouterr().out.endswith(f"half has 12 of {ROWS} images.\n")
    assert set(Counter(half["label"]).values()) == {2, 3} and half.features["label"].names == list(NAMES[:C])
    assert (
        part("again", "--share", "0.5")["label"]
        == half["label"]
        != part("other", "--share", "0.5", "--seed", "1")["label"]
    )
    for flags, says in ((["--share", "1"], "between 0 and 1, not be 1.0"), ([], "half exists already")):
        with pytest.raises(SystemExit, match=says):
            part("half", *flags)
