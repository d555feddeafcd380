"""Students and teacher of the CIFAR-100 tables: their size, and that timm and the recipes know them."""

import subprocess
import sys

import pytest
import timm
import torch
from recipe_modules import load_recipe
from safetensors.torch import save_file
from tiny import tiny_dataset

from hf_reinforce import create_student, load_teacher
from hf_reinforce.models.students import student_preprocessing

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


def test_a_student_is_saved_and_loaded_by_path(tmp_path):
    student = create_student("cifar_resnet20", 5, 32, ("ant", "bee", "cat", "dog", "eel"))
    student.save_pretrained(tmp_path)
    views = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        expected = student.eval()(student_preprocessing(student)(views)).logits.log_softmax(-1)
    torch.testing.assert_close(load_teacher(str(tmp_path))(views), expected, rtol=1e-4, atol=1e-5)
    pretrained = create_student(str(tmp_path), 5, 32, ("eel", "dog", "cat", "bee", "ant"))
    with torch.no_grad():
        found = pretrained.eval()(student_preprocessing(student)(views)).logits.log_softmax(-1)
    torch.testing.assert_close(found, expected.flip(-1), rtol=1e-4, atol=1e-5)


FRESH = """
import sys, torch
from transformers import AutoModelForImageClassification
from hf_reinforce import load_teacher

folder = sys.argv[1]
answer = load_teacher(f"{folder}/student")(torch.load(f"{folder}/views.pt"))
weights = AutoModelForImageClassification.from_pretrained(f"{folder}/student").timm_model.state_dict()
torch.save((answer, weights), f"{folder}/answer.pt")
"""


def test_a_trained_student_is_loaded_by_its_folder_in_a_fresh_process(tmp_path, monkeypatch):
    tiny_dataset(12).to_parquet(tmp_path / "images" / "train.parquet")
    flags = "--method plain --policy small_crop --image_size 32 --model_name_or_path cifar_resnet20 --use_cpu True"
    flags += f" --max_steps 2 --per_device_train_batch_size 4 --dataset_name {tmp_path}/images"
    monkeypatch.setattr(sys, "argv", ["train_kd.py", *flags.split(), "--output_dir", str(tmp_path / "student")])
    load_recipe("train_kd").main()
    views = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    torch.save(views, tmp_path / "views.pt")
    subprocess.run([sys.executable, "-c", FRESH, str(tmp_path)], check=True, timeout=300)
    answer, weights = torch.load(tmp_path / "answer.pt")
    torch.testing.assert_close(answer, load_teacher(str(tmp_path / "student"))(views))
    torch.testing.assert_close(
        weights, timm.create_model(f"local-dir:{tmp_path}/student", pretrained=True).state_dict()
    )


def test_a_micronet_folder_must_be_whole(tmp_path):
    (tmp_path / "config.json").write_text('{"architecture": "MicroNet", "variant": "v3", "num_classes": 5}')
    with pytest.raises(ValueError, match="cannot be loaded .*cifar_micronet_v3"):
        load_teacher(str(tmp_path))
    (tmp_path / "config.json").write_text('{"architecture": "MicroNet", "variant": "v1", "num_classes": 5}')
    other = timm.create_model("cifar_micronet_v2", num_classes=5)
    save_file(other.state_dict(), tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="not those of its network: 313 are of another shape"):
        load_teacher(str(tmp_path))
