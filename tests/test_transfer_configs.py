"""The YAML files of the transfer recipes: every key is a flag, and every value is accepted."""

from pathlib import Path

import pytest
import yaml
from recipe_modules import RECIPES, load_recipe
from transformers import HfArgumentParser

from hf_reinforce.transfer.detector import ARCHITECTURES
from hf_reinforce.transfer.segmenter import HEADS

FILES = {
    "coco_detection/mask_rcnn.yaml": "detect",
    "coco_detection/mask_rcnn_1x.yaml": "detect",
    "ade20k_segmentation/deeplabv3.yaml": "segment",
    "caltech101/finetune.yaml": "finetune",
}


def parsed(name, tmp_path):
    """The dataclasses that the recipe makes of a file, without the half precision that a CPU may refuse."""
    recipe = load_recipe(FILES[name])
    classes = [cls for key, cls in vars(recipe).items() if key.endswith("Arguments")]
    parser = HfArgumentParser([*classes, *recipe.training_classes()], allow_abbrev=False)
    argv = load_recipe("arguments")._flags_of_file(str(RECIPES / name))
    further = [] if "--bf16" not in argv else ["--bf16", "False"]
    values = parser.parse_args_into_dataclasses(args=[*argv, *further], look_for_args_file=False)
    return {key: value for each in values for key, value in vars(each).items()}


@pytest.mark.parametrize("name", FILES)
def test_recipe_accepts_the_file(name, tmp_path):
    values = parsed(name, tmp_path)
    comment = (RECIPES / name).read_text(encoding="utf-8").split("\ntrain_images")[0]
    assert f"recipes/{FILES[name]}.py" in comment and f"recipes/{name}" in comment and "paper" in comment
    assert values["output_dir"].startswith("outputs/")
    if FILES[name] == "detect":
        assert values["architecture"] in ARCHITECTURES and len(values["min_size"]) > 1
        assert len(values["lr_milestones"]) == 2
    if FILES[name] == "segment":
        assert values["head"] in HEADS and values["model_args"] == '{"output_stride": 8}'


def test_every_file_of_these_folders_is_checked():
    folders = {Path(name).parent.name for name in FILES}
    found = {f"{folder}/{path.name}" for folder in folders for path in (RECIPES / folder).glob("*.yaml")}
    assert found == set(FILES)
    assert all(yaml.safe_load((RECIPES / name).read_text(encoding="utf-8")) for name in FILES)
