"""Backbones: the feature maps are those of the student itself, whichever library it comes from."""

import json

import pytest
import torch
from transformers import (
    AutoModelForImageClassification,
    MobileNetV2Config,
    MobileNetV2ForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
)

from hf_reinforce.models.students import create_student, saved_weights
from hf_reinforce.transfer.backbones import Backbone, load_backbone
from hf_reinforce.transfer.extras import MissingPackageError, optional

SMALL = {"channels": [8, 16, 24, 32]}


@pytest.fixture
def student_folder(tmp_path):
    """A timm student as `KDTrainer` saves it, whose batch norms have seen something."""
    torch.manual_seed(1)
    student = create_student("resnet10t", 5, 32, model_args=SMALL)
    student.train()(torch.randn(4, 3, 32, 32))
    student.save_pretrained(tmp_path, state_dict=saved_weights(student, student.state_dict()))
    return tmp_path


@pytest.fixture
def native_folder(tmp_path):
    """A student of transformers' own."""
    torch.manual_seed(1)
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16, 24, 32], depths=[1] * 4, layer_type="basic")
    student = ResNetForImageClassification(config)
    student.train()(torch.randn(4, 3, 64, 64))
    student.save_pretrained(tmp_path)
    return tmp_path


def test_timm_student_gives_its_own_features(student_folder):
    backbone = load_backbone(str(student_folder)).eval()
    assert (backbone.channels, backbone.strides) == (SMALL["channels"], [4, 8, 16, 32])
    images = torch.randn(2, 3, 64, 96)
    maps = backbone(images)
    assert [tuple(each.shape[1:]) for each in maps] == [(8, 16, 24), (16, 8, 12), (24, 4, 6), (32, 2, 3)]
    student = AutoModelForImageClassification.from_pretrained(student_folder).eval()
    assert torch.equal(maps[-1], student.timm_model.forward_features(images))
    assert all(parameter.requires_grad for parameter in backbone.parameters())


def test_native_student_gives_its_own_features(native_folder):
    backbone = load_backbone(str(native_folder)).eval()
    assert (backbone.channels, backbone.strides) == ([8, 16, 24, 32], [4, 8, 16, 32])
    images = torch.randn(2, 3, 64, 64)
    student = ResNetForImageClassification.from_pretrained(native_folder).eval()
    assert torch.allclose(backbone(images)[-1], student.resnet(images).last_hidden_state)
    with pytest.raises(ValueError, match="takes no timm arguments"):
        load_backbone(str(native_folder), {"output_stride": 8})


@pytest.mark.parametrize("folder", ["student_folder", "native_folder"])
def test_a_backbone_is_rebuilt_from_its_specification(folder, request):
    backbone = load_backbone(str(request.getfixturevalue(folder)))
    saved = json.loads(json.dumps(backbone.spec))
    again = Backbone(**saved)
    again.load_state_dict(backbone.state_dict())
    images = torch.randn(1, 3, 64, 64)
    for one, other in zip(backbone.eval()(images), again.eval()(images), strict=True):
        assert torch.equal(one, other)
    assert again.spec == saved


def test_maps_with_channels_last_are_turned():
    arguments = {"img_size": 64, "window_size": 2, "embed_dim": 8, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 1, 1)}
    backbone = load_backbone("swin_tiny_patch4_window7_224", arguments)
    shapes = [tuple(each.shape) for each in backbone(torch.randn(1, 3, 64, 64))]
    assert shapes == [(1, 8, 16, 16), (1, 16, 8, 8), (1, 32, 4, 4), (1, 64, 2, 2)]


def test_output_stride_leaves_one_map_for_each_stride():
    backbone = load_backbone("resnet10t", {**SMALL, "output_stride": 8})
    assert (backbone.channels, backbone.strides) == ([8, 32], [4, 8])
    assert [each.shape[-1] for each in backbone(torch.randn(1, 3, 64, 64))] == [16, 8]


def test_networks_without_feature_maps_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"'efficientvit_b0' no feature maps .* take other --model_args"):
        load_backbone("efficientvit_b0", {"output_stride": 8})
    with pytest.raises(ValueError, match="neither a timm architecture"):
        load_backbone("resnet10")
    config = MobileNetV2Config(depth_multiplier=0.1)
    MobileNetV2ForImageClassification(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="'mobilenet_v2' is no backbone that transformers knows.*take a timm"):
        load_backbone(str(tmp_path))


def test_missing_package_is_named_with_its_remedy():
    with pytest.raises(
        MissingPackageError, match=r"needs nothing_of_this_name.*pip install 'hf-reinforce\[transfer\]'"
    ):
        optional("nothing_of_this_name.inner")
