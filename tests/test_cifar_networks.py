"""Students and teacher of the CIFAR-100 tables: their size, and that both libraries and the recipes know them."""

import subprocess
import sys

import numpy as np
import pytest
import timm
import torch
from recipe_modules import load_recipe
from safetensors.torch import save_file
from tiny import tiny_dataset

from hf_reinforce import load_teacher

PUBLISHED = {"cifar_resnet20": 278_324, "cifar_resnet8x4": 1_233_540, "cifar_wrn_16_2": 703_284}
FEATURES = {"cifar_resnet20": 64, "cifar_resnet8x4": 256, "cifar_wrn_16_2": 128, "cifar_micronet_v2": 114}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_as_many_as_published(name):
    model = timm.create_model(name, num_classes=100)
    assert sum(parameter.numel() for parameter in model.parameters()) == PUBLISHED[name]


@pytest.mark.parametrize("name", FEATURES)
def test_timm_knows_features_and_head(name):
    model = timm.create_model(name, num_classes=7, in_chans=1).eval()
    images = torch.randn(2, 1, 32, 32)
    features = model.forward_features(images)
    assert features.shape[:2] == (2, FEATURES[name]) and features.shape[2] in (4, 8)
    torch.testing.assert_close(model(images), model.get_classifier()(features.mean((2, 3))))
    pooled = model.forward_head(features, pre_logits=True)
    model.reset_classifier(0)
    torch.testing.assert_close(model(images), pooled)
    assert model.num_features == FEATURES[name] and not list(model.get_classifier().parameters())
    with pytest.raises(ValueError, match="pools with 'avg', not 'max'"):
        model.reset_classifier(3, "max")


def test_stages_halve_the_image():
    model = timm.create_model("cifar_resnet20").eval()
    sizes = [model.stem(images := torch.randn(1, 3, 32, 32)).shape]
    images = model.stem(images)
    for block in model.blocks:
        images = block(images)
        sizes.append(images.shape)
    assert [tuple(size[1:3]) for size in sizes] == [(16, 32)] * 4 + [(32, 16)] * 3 + [(64, 8)] * 3


def test_a_student_is_trained_saved_and_loaded_by_path_in_another_process(tmp_path, monkeypatch):
    for split, rows in (("train", 12), ("test", 6)):
        tiny_dataset(rows).to_parquet(tmp_path / "images" / f"{split}.parquet")
    student = tmp_path / "student"
    flags = {
        "dataset_name": tmp_path / "images",
        "eval_split": "test",
        "method": "plain",
        "policy": "small_crop",
        "image_size": 32,
        "model_name_or_path": "cifar_resnet20",
        "max_steps": 2,
        "per_device_train_batch_size": 4,
        "output_dir": student,
    }
    words = [word for flag, value in flags.items() for word in (f"--{flag}", str(value))]
    monkeypatch.setattr(sys, "argv", ["train_kd.py", *words])
    load_recipe("train_kd").main()
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    torch.save(images, tmp_path / "images.pt")
    script = f"""
import torch
from transformers import AutoModelForImageClassification
from hf_reinforce import load_teacher
answer = load_teacher({str(student)!r})(torch.load({str(tmp_path / "images.pt")!r}))
model = AutoModelForImageClassification.from_pretrained({str(student)!r})
torch.save((answer, sum(p.sum() for p in model.parameters()).item()), {str(tmp_path / "answer.pt")!r})
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=300)
    answer, total = torch.load(tmp_path / "answer.pt")
    torch.testing.assert_close(answer, load_teacher(str(student))(images))
    assert answer.shape == (3, 5) and np.isfinite(total)


def test_a_micronet_folder_must_be_whole(tmp_path):
    (tmp_path / "config.json").write_text('{"architecture": "MicroNet", "variant": "v3", "num_classes": 5}')
    with pytest.raises(ValueError, match=r"MicroNet of the variant 'v3'; known are v1 and v2"):
        load_teacher(str(tmp_path))
    (tmp_path / "config.json").write_text('{"architecture": "MicroNet", "variant": "v1", "num_classes": 5}')
    other = timm.create_model("cifar_micronet_v2", num_classes=5)
    save_file(other.state_dict(), tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="not those of its network: 313 are of another shape"):
        load_teacher(str(tmp_path))
