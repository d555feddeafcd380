"""Flags that do nothing in some combination are named in one warning; those that do something are not."""

import logging
import re
import shlex
import sys

import pytest
from recipe_modules import RECIPES, load_recipe


@pytest.fixture
def warned(monkeypatch, caplog, tmp_path):
    """`warned(recipe, command line, **facts)`: the flags that the warning names, and how many warnings there are."""
    monkeypatch.syspath_prepend(str(RECIPES))

    def warned(recipe, words, **facts):
        import unused

        arguments, module = load_recipe("arguments"), load_recipe(recipe)
        argv = [word.replace("FOLDER", str(tmp_path)) for word in shlex.split(words)]
        monkeypatch.setattr(sys, "argv", [f"{recipe}.py", *argv])
        names = {
            "train_kd": ("STUDENT", ["DataArguments", "ModelArguments"]),
            "reinforce": ("REINFORCE", ["ReinforceArguments"]),
            "evaluate": ("EVALUATE", ["EvaluateArguments"]),
            "linear_probe": ("PROBE", ["ProbeArguments"]),
            "verify": ("VERIFY", ["VerifyArguments"]),
            "inspect_dataset": ("INSPECT", ["InspectArguments"]),
            "import_ml_dr": ("IMPORT", ["ImportArguments"]),
            "finetune": ("FINETUNE", ["FinetuneArguments"]),
            "detect": ("DETECT", ["BackboneArguments", "DetectionArguments"]),
            "segment": ("SEGMENT", ["BackboneArguments", "SegmentationArguments"]),
        }
        table, classes = names[recipe]
        further = module.training_classes() if hasattr(module, "training_classes") else []
        parser = arguments.flag_parser([*(getattr(module, name) for name in classes), *further])
        flags = arguments.with_file(argv)
        parsed = parser.parse_args_into_dataclasses(args=flags, look_for_args_file=False)
        caplog.clear()
        with caplog.at_level(logging.WARNING, "hf_reinforce.unused"):
            unused.say_unused(getattr(unused, table), parsed, arguments.given(), **facts)
        lines = [record.getMessage() for record in caplog.records if record.name == "hf_reinforce.unused"]
        assert len(lines) <= 1
        return set(re.findall(r"--(\w+)", re.sub(r"\([^()]*\)", "", "".join(lines))))  # without the reasons

    return warned


BASE = "--dataset_name me/data --model_name_or_path me/model --output_dir FOLDER/out --use_cpu True"
PLUS, PLAIN = {"is_reinforced": True, "embedded": False}, {"is_reinforced": False, "embedded": False}
STORED = {"is_reinforced": True, "embedded": True}
TEACHER = "--teacher_name_or_path me/t --class_map identity --teacher_dtype bfloat16"
TRAINING = [
    ("--policy nonsense --train_split test", PLUS, "policy train_split"),
    ("--policy rrc --train_split test --method plain", PLAIN, ""),
    ("--policy rrc --method plain", PLUS, "policy"),
    ("--label_smoothing_factor 0.1", PLUS, "label_smoothing_factor"),
    ("--label_smoothing_factor 0.1 --hard_label_weight 0.5", PLUS, ""),
    ("--label_smoothing_factor 0.1 --method plain", PLUS, ""),
    ("--adam_beta2 0.9 --optim sgd --timm_optimizer sgd", PLUS, "adam_beta2 optim"),
    ("--adam_beta2 0.9 --optim sgd", PLUS, "adam_beta2"),
    ("--adam_beta2 0.9 --adam_epsilon 1e-6", PLUS, ""),
    ("--optim_args momentum=0.5 --timm_optimizer lamb", PLUS, "optim_args"),
    ("--lr_scheduler_type cosine", PLUS, ""),
    (TEACHER, PLUS, "teacher_name_or_path class_map teacher_dtype"),
    (f"{TEACHER} --method online", PLUS, ""),
    ("--teacher_checkpoint a.pth --method plain", PLUS, "teacher_checkpoint"),
    ("--temperature 2 --hard_label_weight 0.5 --method plain", PLUS, "temperature hard_label_weight"),
    ("--temperature 2 --hard_label_weight 0.5", PLUS, ""),
    ("--temperature 1 --method plain", PLUS, ""),  # the default
    ("--selection random --plain_fraction 0.1 --method plain", PLUS, "selection plain_fraction"),
    ("--selection random --plain_fraction 0.1 --method plain --stored_views True", PLUS, ""),
    ("--selection random --plain_fraction 0.1", PLUS, ""),
    ("--stored_views True", PLUS, "stored_views"),
    ("--allow_missing True --accept_pixel_mismatch True --method plain", PLAIN, "allow_missing accept_pixel_mismatch"),
    ("--allow_missing True --accept_pixel_mismatch True", PLUS, ""),
    ("--allow_missing True --source_name_or_path me/images", STORED, "allow_missing source_name_or_path"),
    ("--source_name_or_path me/images --method plain", PLAIN, "source_name_or_path"),
    ("--source_name_or_path me/images", PLUS, ""),
    ("--image_column_name image --label_column_name label", PLUS, "image_column_name label_column_name"),
    ("--image_column_name image --label_column_name label --eval_split test", PLUS, ""),
    ("--image_column_name image --label_column_name label --method plain", PLAIN, ""),
    ("--eval_dataset_name me/e --max_eval_samples 3", PLUS, "eval_dataset_name max_eval_samples"),
    ("--eval_dataset_name me/e --max_eval_samples 3 --eval_split test", PLUS, ""),
    ("--model_revision v1 --dataset_revision v1", PLUS, ""),
    ("--model_name_or_path resnet18 --model_revision v1", PLUS, "model_revision"),
    ("--model_name_or_path FOLDER --model_revision v1", PLUS, "model_revision"),
    ("--dataset_name FOLDER --dataset_revision v1", PLUS, "dataset_revision"),
    ("--num_train_epochs 7 --max_steps 4", PLUS, "num_train_epochs"),
    ("--num_train_epochs 5", PLUS, ""),
    ("--save_steps 7 --save_total_limit 1 --save_strategy no", PLUS, "save_steps save_total_limit"),
    ("--save_steps 7 --logging_steps 3", PLUS, ""),
    ("--logging_steps 3 --logging_strategy epoch", PLUS, "logging_steps"),
    ("--hub_model_id me/s --hub_private_repo True", PLUS, "hub_model_id hub_private_repo"),
    (
        "--remove_unused_columns True --train_sampling_strategy group_by_length",
        PLUS,
        "remove_unused_columns train_sampling_strategy",
    ),
]
OTHERS = [
    ("reinforce", "--policy FOLDER/p.yaml --image_size 96", {}, "image_size"),
    ("reinforce", "--policy rrc --image_size 96", {}, ""),
    ("reinforce", "--teacher_weights 2", {}, "teacher_weights"),
    ("reinforce", "--teacher_name_or_path a b --teacher_weights 2 1", {}, ""),
    ("reinforce", "--teacher_name_or_path FOLDER --teacher_revision v1", {}, "teacher_revision"),
    ("reinforce", "--teacher_revision v1 --dataset_revision v1", {}, ""),
    ("reinforce", "--estimate True --seed 3", {}, "seed"),
    ("evaluate", "--suite cifar_robustness --split val --class_map identity", {}, "split class_map"),
    ("evaluate", "--dataset_name me/d --split val --class_map identity", {}, ""),
    ("evaluate", "--dataset_name me/d --seed 3 --class_map identity --classes_from c", {}, "seed class_map"),
    ("linear_probe", "--strengths 0.1 --seed 3", {}, "seed"),
    ("linear_probe", "--strengths 0.1 1 --seed 3", {}, ""),
    ("linear_probe", "--model_name_or_path FOLDER --model_revision v1", {}, "model_revision"),
    ("verify", "--source_name_or_path me/images", {"embedded": True}, "source_name_or_path"),
    ("verify", "--source_name_or_path me/images", {"embedded": False}, ""),
    ("inspect_dataset", "--verify True --output_dir FOLDER/o --num_images 3", {}, "output_dir num_images"),
    ("inspect_dataset", "--num_images 0 --source_name_or_path me/images", {}, "source_name_or_path"),
    ("import_ml_dr", "--image_size 96 --file_name_column_name f", {}, "image_size file_name_column_name"),
    ("import_ml_dr", "--image_size 96 --policy rrc --file_name_column_name f --id_map image_folder", {}, ""),
    ("detect", "--adam_beta1 0.5 --optim sgd", {}, "adam_beta1 optim"),
    ("detect", "--lr_milestones 0.5 --lr_scheduler_type cosine", {}, "lr_scheduler_type"),
    ("detect", "--train_images a --train_annotations b --box_format pascal_voc", {}, "dataset_name box_format"),
    ("segment", "--train_images a --train_masks b --mask_column_name m", {}, "dataset_name mask_column_name"),
    ("segment", "--mask_column_name m --max_eval_samples 3", {}, "max_eval_samples"),
]
REQUIRED = {
    "reinforce": "--dataset_name me/data --teacher_name_or_path me/t --output_dir FOLDER/out",
    "evaluate": "--model_name_or_path me/m",
    "linear_probe": "--model_name_or_path me/m --dataset_name me/data",
    "verify": "--dataset_name me/data",
    "inspect_dataset": "--dataset_name me/data",
    "import_ml_dr": "--archive a --source_name_or_path me/data --output_dir FOLDER/out",
    "detect": "--model_name_or_path me/m --dataset_name me/data --output_dir FOLDER/out --use_cpu True",
    "segment": "--model_name_or_path me/m --dataset_name me/data --output_dir FOLDER/out --use_cpu True",
}


@pytest.mark.parametrize(("flags", "facts", "expected"), TRAINING, ids=[flags for flags, *_ in TRAINING])
def test_idle_flags_of_training(flags, facts, expected, warned):
    assert warned("train_kd", f"{BASE} {flags}", **facts) == set(expected.split())


@pytest.mark.parametrize(("recipe", "flags", "facts", "expected"), OTHERS, ids=[f"{r} {f}" for r, f, *_ in OTHERS])
def test_idle_flags_of_other_recipes(recipe, flags, facts, expected, warned):
    assert warned(recipe, f"{REQUIRED[recipe]} {flags}", **facts) == set(expected.split())


def test_idle_flags_of_a_file(warned, tmp_path):
    file = tmp_path / "student.yaml"
    file.write_text("policy: rrc\ntemperature: 2\nselection: cycle\neval_split: null\n")
    assert warned("train_kd", f"{file} {BASE} --method plain", **PLUS) == {"policy", "temperature"}


def test_every_flag_of_the_tables_exists(monkeypatch):
    monkeypatch.syspath_prepend(str(RECIPES))
    import dataclasses

    import unused

    tables = {
        "train_kd": unused.STUDENT,
        "reinforce": unused.REINFORCE,
        "evaluate": unused.EVALUATE,
        "linear_probe": unused.PROBE,
        "verify": unused.VERIFY,
        "inspect_dataset": unused.INSPECT,
        "import_ml_dr": unused.IMPORT,
        "detect": unused.DETECT,
        "segment": unused.SEGMENT,
    }
    for recipe, table in tables.items():
        module = load_recipe(recipe)
        classes = [c for c in vars(module).values() if isinstance(c, type) and dataclasses.is_dataclass(c)]
        classes += module.training_classes() if hasattr(module, "training_classes") else []
        known = {field.name for cls in classes for field in dataclasses.fields(cls)}
        assert {flag for flags, *_ in table for flag in flags.split()} <= known, recipe


@pytest.mark.parametrize("method", ["plain", "online --teacher_name_or_path me/t", "reinforced"])
@pytest.mark.parametrize("name", ["imagenet_plus", "food101_plus", "flowers102_plus", "cifar100_plus"])
def test_files_of_the_recipes_cause_no_warning_with_another_method(warned, name, method):
    words = f"{RECIPES / name / 'student.yaml'} --output_dir FOLDER/out --use_cpu True --method {method}"
    assert warned("train_kd", words, **PLUS) == set()
    assert warned("train_kd", f"{words} --save_strategy no", **PLUS) == set()


DROPPED = {"timm_scheduler": "lr_scheduler_type", "images_on_device": "cache_images"}  # flag: what replaces it


@pytest.mark.parametrize(("flag", "instead"), DROPPED.items())
def test_dropped_flags_end_in_a_sentence_that_names_their_replacement(flag, instead, tmp_path):
    arguments, recipe = load_recipe("arguments"), load_recipe("train_kd")
    file = tmp_path / "student.yaml"
    file.write_text(f"{flag}: cosine\n")
    for argv, where in ([f"--{flag}", "cosine"], ""), ([str(file)], f" in {file}"):
        with pytest.raises(ValueError, match=rf"There is no flag --{flag}{where}; .*--{instead}"):
            arguments.parse("", [recipe.DataArguments], recipe.training_classes, argv=argv)
    assert set(arguments.DROPPED) == set(DROPPED)


def test_a_recipe_without_the_replacement_does_not_name_it():
    arguments, recipe = load_recipe("arguments"), load_recipe("reinforce")
    with pytest.raises(ValueError, match=r"There is no flag --images_on_device; .*--help") as refused:
        arguments.parse("", [recipe.ReinforceArguments], argv=["--images_on_device", "True"])
    assert "cache_images" not in str(refused.value)
