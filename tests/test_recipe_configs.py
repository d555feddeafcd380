"""The YAML files of recipes/: every key is a flag, every value is accepted, and the files of a folder fit together."""

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from recipe_modules import RECIPES, parse_flags

from hf_reinforce import AugmentationPolicy, load_policy
from hf_reinforce.augmentations.policies import POLICY_NAMES
from hf_reinforce.transfer.detector import ARCHITECTURES
from hf_reinforce.transfer.segmenter import HEADS

FOLDERS = ("cifar100_plus", "flowers102_plus", "food101_plus", "imagenet_plus")
VARIANTS = ("rrc", "mixing", "randaug", "mixing_randaug")
APART = ("policy.yaml", "study.yaml", "ablations.yaml", "regime.yaml", "converged.yaml")  # tests/test_study.py
FILES = [*sorted(RECIPES.glob("*_*/*.yaml")), RECIPES / "caltech101/finetune.yaml"]
CONFIGS = {f"{path.parent.name}/{path.stem}": path for path in FILES if path.name not in APART}
OF_FOLDER = {"coco_detection": "detect", "ade20k_segmentation": "segment", "caltech101": "finetune"}


def recipe_of(path):
    training = path.stem in ("teacher", "student")
    return OF_FOLDER.get(path.parent.name, "train_kd" if training else "reinforce")


def read(name, *further):
    """The flags of a file as its recipe reads them."""
    path = CONFIGS[name]
    return parse_flags(recipe_of(path), [str(path), *further])


def test_every_dataset_has_its_files():
    names = {f"{folder}/{name}" for folder in FOLDERS[:3] for name in ("teacher", "reinforce", "student")}
    names |= {f"imagenet_plus/{name}" for name in (*VARIANTS, "student")}
    assert {name for name in CONFIGS if name.split("/")[0] in FOLDERS} == names
    assert {path.parent.name for path in CONFIGS.values()} == {*FOLDERS, *OF_FOLDER}
    policy = load_policy(str(RECIPES / "digits_plus/policy.yaml"))
    assert AugmentationPolicy.from_dict(policy.to_dict()) == policy


@pytest.mark.parametrize("name", CONFIGS)
def test_the_recipe_of_the_file_accepts_it(name):
    flags, path = read(name), CONFIGS[name]
    comment = path.read_text(encoding="utf-8").split("\ndataset_name:")[0].split("\ntrain_images:")[0]
    assert f"recipes/{recipe_of(path)}.py" in comment and f"recipes/{name}.yaml" in comment and "paper" in comment
    assert flags["output_dir"].startswith("outputs/")
    if recipe_of(path) == "reinforce":
        assert load_policy(flags["policy"], flags["image_size"]).name == flags["policy"]
        assert (path.parent.name == "imagenet_plus") == (flags["policy"] == path.stem)
    elif recipe_of(path) == "train_kd":
        assert (flags["policy"] or flags["dataset_config_name"]) in POLICY_NAMES
        assert flags["method"] == ("reinforced" if path.stem == "student" else "plain")
    elif recipe_of(path) == "detect":
        assert (
            flags["architecture"] in ARCHITECTURES and len(flags["min_size"]) > 1 and len(flags["lr_milestones"]) == 2
        )
    elif recipe_of(path) == "segment":
        assert flags["head"] in HEADS and flags["model_args"] == '{"output_stride": 8}'


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_files_of_a_folder_fit_together(folder):
    student = read(f"{folder}/student")
    names = VARIANTS if folder == "imagenet_plus" else ("reinforce",)
    runs = [read(f"{folder}/{name}") for name in names]
    assert {run["output_dir"] for run in runs} == {student["dataset_name"]}
    assert student["dataset_config_name"] in {run["policy"] for run in runs}
    if folder == "imagenet_plus":  # the ensemble of the paper
        members = [f"timm/resnext101_32x{width}d.fb_wsl_ig1b_ft_in1k" for width in (8, 16, 32, 48)]
        found = [(run["teacher_name_or_path"], run["top_k"], run["class_map"]) for run in runs]
        assert found == [(members, 10, "identity")] * len(VARIANTS)
        return
    teacher = read(f"{folder}/teacher")
    assert runs[0]["teacher_name_or_path"] == [teacher["output_dir"]] and runs[0]["split"] == teacher["train_split"]
    same = ("dataset_name", "image_column_name", "label_column_name")
    assert [runs[0][name] for name in same] == [teacher[name] for name in same]


ACCELERATE = {  # distributed_type, use_cpu, num_machines
    "cpu": ("NO", True, 1),
    "cpu_multi_process": ("MULTI_GPU", True, 1),
    "multi_gpu": ("MULTI_GPU", False, 1),
    "multi_node": ("MULTI_GPU", False, 2),
    "one_gpu": ("NO", False, 1),
}


def test_accelerate_has_a_file_for_every_kind_of_machine():
    files = {path.stem: load_config_from_file(str(path)) for path in (RECIPES / "accelerate").glob("*.yaml")}
    found = {name: (file.distributed_type.value, file.use_cpu, file.num_machines) for name, file in files.items()}
    assert found == ACCELERATE
    assert all((files[name].num_processes > 1) == (kind == "MULTI_GPU") for name, (kind, *_) in ACCELERATE.items())
