"""docs/reference.md is what the docstrings say, and every public name has an example that runs."""

import importlib.util
import io
import os
from contextlib import redirect_stdout
from pathlib import Path

import pytest
from tiny import tiny_dataset

import hf_reinforce

ROOT = Path(__file__).parent.parent
NAMES = [name for name in hf_reinforce.__all__ if not name.startswith("__")]
MADE_BY = {"Teacher": "load_teacher(", "ReinforcedDataset": "load_reinforced("}
CLASSES = [f"class {index}" for index in range(100)]


def reference():
    spec = importlib.util.spec_from_file_location("render_reference", ROOT / "docs" / "render_reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_up_to_date():
    found = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    assert found == reference().render(), "run python docs/render_reference.py"


@pytest.mark.parametrize("name", NAMES)
def test_every_public_name_has_an_example_that_uses_it(name):
    code = reference().example(name)
    assert code is not None, f"{name} has no example"
    assert f"{name}(" in code or f"{name}." in code or MADE_BY.get(name, "-") in code


def make_world(folder):
    """Small stand-ins for the datasets and networks that the examples name."""
    import timm
    from datasets import ClassLabel
    from transformers import MobileNetV2Config, MobileNetV2ForImageClassification, MobileNetV2ImageProcessor

    images = tiny_dataset(20, (32, 32), formats=("PNG",)).rename_columns({"image": "img", "label": "fine_label"})
    images = images.cast_column("fine_label", ClassLabel(names=CLASSES))
    (folder / "cifar100").mkdir(parents=True)
    for split, rows in (("train", 20), ("test", 4)):
        images.select(range(rows)).to_parquet(folder / "cifar100" / f"{split}.parquet")
    cfg = {"label_names": CLASSES, "input_size": (3, 32, 32)}
    network = timm.create_model("test_resnet", num_classes=100, pretrained_cfg_overlay=cfg)
    timm.models.save_for_hf(network, folder / "tf_efficientnet_lite0.in1k", safe_serialization=True)
    labels = {"id2label": dict(enumerate(CLASSES)), "label2id": {name: i for i, name in enumerate(CLASSES)}}
    other = MobileNetV2ForImageClassification(MobileNetV2Config(depth_multiplier=0.1, image_size=32, **labels))
    other.save_pretrained(folder / "mobilenet_v2_1.0_224")
    size = {"size": {"shortest_edge": 36}, "crop_size": {"height": 32, "width": 32}}
    MobileNetV2ImageProcessor(**size).save_pretrained(folder / "mobilenet_v2_1.0_224")


def run_examples(folder):
    """Runs the examples of all names in one folder; those that others need come first."""
    from hf_reinforce import load_policy, load_source, load_teacher, reinforce

    os.environ["HF_REINFORCE_LOCAL"] = str(folder / "local")
    make_world(folder / "local")
    os.chdir(folder)
    source, teacher = load_source("uoft-cs/cifar100"), load_teacher("timm/tf_efficientnet_lite0.in1k")
    options = {"num_samples": 2, "source_name": "uoft-cs/cifar100"}
    reinforce(source, teacher, load_policy("small_randaug", 32), "outputs/cifar100-plus", **options)
    page, failed = reference(), {}
    for name in ["KDTrainer", *NAMES]:
        try:
            with redirect_stdout(io.StringIO()):
                exec(compile(page.example(name), name, "exec"), {})
        except Exception as error:
            failed[name] = f"{type(error).__name__}: {error}"
    return failed


def test_the_examples_run(client, tmp_path):
    assert client(run_examples, tmp_path) == {}
