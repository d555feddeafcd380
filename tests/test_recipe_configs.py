"""The YAML files of recipes/: every key is a flag, every value is accepted, and the files of a folder fit together."""

from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from recipe_modules import load_recipe
from transformers import HfArgumentParser

from hf_reinforce import AugmentationPolicy, KDTrainingArguments, load_policy
from hf_reinforce.augmentations.policies import POLICY_NAMES
from hf_reinforce.transfer.detector import ARCHITECTURES
from hf_reinforce.transfer.segmenter import HEADS

RECIPES = Path(__file__).parent.parent / "recipes"
FOLDERS = ("cifar100_plus", "flowers102_plus", "food101_plus", "imagenet_plus")
FILES = sorted(path for path in RECIPES.glob("*/*.yaml") if path.parent.name != "accelerate")
STUDIES = ("study.yaml", "ablations.yaml", "regime.yaml", "converged.yaml")
POLICIES = [path for path in FILES if path.name == "policy.yaml"]
CONFIGS = [path for path in FILES if path.parent.name in FOLDERS and path.name not in ("policy.yaml", *STUDIES)]
TRAINING = ("teacher.yaml", "student.yaml")
TRANSFER = {
    "coco_detection/mask_rcnn.yaml": "detect",
    "coco_detection/mask_rcnn_1x.yaml": "detect",
    "ade20k_segmentation/deeplabv3.yaml": "segment",
    "caltech101/finetune.yaml": "finetune",
}
VARIANTS = ("rrc", "mixing", "randaug", "mixing_randaug")
ACCELERATE = {  # distributed_type, use_cpu, num_machines
    "cpu": ("NO", True, 1),
    "cpu_multi_process": ("MULTI_GPU", True, 1),
    "multi_gpu": ("MULTI_GPU", False, 1),
    "multi_node": ("MULTI_GPU", False, 2),
    "one_gpu": ("NO", False, 1),
}


def config_id(path):
    return f"{path.parent.name}/{path.stem}"


@pytest.fixture
def read(monkeypatch):
    """`read(path)`: the dataclasses that the recipe of this file makes of it."""
    monkeypatch.syspath_prepend(str(RECIPES))
    arguments, train_kd = load_recipe("arguments"), load_recipe("train_kd")

    def read(path):
        if path.name in TRAINING:
            classes = [train_kd.DataArguments, train_kd.ModelArguments, KDTrainingArguments]
        else:
            classes = [load_recipe("reinforce").ReinforceArguments]
        parser = HfArgumentParser(classes, allow_abbrev=False)
        flags = arguments.with_file([str(path)])
        parsed = parser.parse_args_into_dataclasses(args=flags, look_for_args_file=False)
        return parsed if path.name in TRAINING else parsed[0]

    return read


def test_every_data_set_has_its_files():
    names = {(folder, name) for folder in FOLDERS[:3] for name in ("teacher", "reinforce", "student")}
    names |= {("imagenet_plus", name) for name in (*VARIANTS, "student")}
    assert {(path.parent.name, path.stem) for path in CONFIGS if path.parent.name in FOLDERS} == names


@pytest.mark.parametrize("path", POLICIES, ids=config_id)
def test_policy_file_is_a_policy(path):
    policy = load_policy(str(path))
    assert AugmentationPolicy.from_dict(policy.to_dict()) == policy


@pytest.mark.parametrize("path", CONFIGS, ids=config_id)
def test_recipe_accepts_the_file_and_knows_its_policy(path, read):
    parsed = read(path)
    if path.name not in TRAINING:
        assert load_policy(parsed.policy, parsed.image_size).name == parsed.policy
        assert (path.parent.name == "imagenet_plus") == (parsed.policy == path.stem)
        return
    data, _, args = parsed
    assert (data.policy or data.dataset_config_name) in POLICY_NAMES
    assert args.method == ("reinforced" if path.stem == "student" else "plain")


@pytest.mark.parametrize("path", CONFIGS, ids=config_id)
def test_file_says_which_command_runs_it(path):
    comment = path.read_text(encoding="utf-8").split("dataset_name:")[0]
    recipe = "train_kd.py" if path.name in TRAINING else "reinforce.py"
    assert f"recipes/{recipe} recipes/{path.parent.name}/{path.name}" in comment
    assert "paper" in comment


@pytest.mark.parametrize("folder", FOLDERS)
def test_student_reads_what_reinforce_wrote(folder, read):
    data, _, _ = read(RECIPES / folder / "student.yaml")
    names = VARIANTS if folder == "imagenet_plus" else ("reinforce",)
    written = [read(RECIPES / folder / f"{name}.yaml") for name in names]
    assert {run.output_dir for run in written} == {data.dataset_name}
    assert data.dataset_config_name in {run.policy for run in written}


@pytest.mark.parametrize("folder", FOLDERS[:3])
def test_reinforce_uses_the_teacher_that_was_trained_on_the_same_data(folder, read):
    data, _, args = read(RECIPES / folder / "teacher.yaml")
    run = read(RECIPES / folder / "reinforce.yaml")
    assert run.teacher_name_or_path == [args.output_dir]
    assert (run.dataset_name, run.split) == (data.dataset_name, data.train_split)
    assert (run.image_column_name, run.label_column_name) == (data.image_column_name, data.label_column_name)


@pytest.mark.parametrize("name", TRANSFER)
def test_recipe_of_transfer_accepts_the_file(name):
    recipe = load_recipe(TRANSFER[name])
    classes = [cls for key, cls in vars(recipe).items() if key.endswith("Arguments")]
    parser = HfArgumentParser([*classes, *recipe.training_classes()], allow_abbrev=False)
    argv = load_recipe("arguments").with_file([str(RECIPES / name)])
    parsed = parser.parse_args_into_dataclasses(args=argv, look_for_args_file=False)
    values = {key: value for each in parsed for key, value in vars(each).items()}
    comment = (RECIPES / name).read_text(encoding="utf-8").split("\ntrain_images")[0]
    assert f"recipes/{TRANSFER[name]}.py" in comment and f"recipes/{name}" in comment and "paper" in comment
    assert values["output_dir"].startswith("outputs/")
    if TRANSFER[name] == "detect":
        assert values["architecture"] in ARCHITECTURES and len(values["min_size"]) > 1
        assert len(values["lr_milestones"]) == 2
    if TRANSFER[name] == "segment":
        assert values["head"] in HEADS and values["model_args"] == '{"output_stride": 8}'


def test_every_file_of_transfer_is_checked():
    folders = {Path(name).parent.name for name in TRANSFER}
    assert {f"{path.parent.name}/{path.name}" for path in FILES if path.parent.name in folders} == set(TRANSFER)


def test_imagenet_teacher_is_the_ensemble_of_the_paper(read):
    members = [f"timm/resnext101_32x{width}d.fb_wsl_ig1b_ft_in1k" for width in (8, 16, 32, 48)]
    for name in VARIANTS:
        run = read(RECIPES / "imagenet_plus" / f"{name}.yaml")
        assert (run.teacher_name_or_path, run.top_k, run.class_map) == (members, 10, "identity")


def test_accelerate_has_a_file_for_every_kind_of_machine():
    assert sorted(path.stem for path in (RECIPES / "accelerate").glob("*.yaml")) == sorted(ACCELERATE)


@pytest.mark.parametrize(("name", "expected"), ACCELERATE.items())
def test_accelerate_loads_the_file(name, expected):
    config = load_config_from_file(str(RECIPES / "accelerate" / f"{name}.yaml"))
    assert (config.distributed_type.value, config.use_cpu, config.num_machines) == expected
    assert (config.num_processes > 1) == (config.distributed_type.value == "MULTI_GPU")
