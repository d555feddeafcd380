"""Features of a linear probe are the network's own pooled ones, for every architecture: tested on random weights."""

from collections import defaultdict
from dataclasses import replace

import pytest
import timm
import torch
import transformers
from timm.models import save_for_hf
from timm.models._registry import _model_to_module
from tiny import tiny_dataset
from torch import nn

from hf_reinforce import AugmentedDataset, ImageSource
from hf_reinforce.augmentations.policies import evaluation_policy
from hf_reinforce.models.networks import Member, named_member
from hf_reinforce.models.preprocessing import Preprocessing
from hf_reinforce.models.students import create_student
from hf_reinforce.transfer.probe import PooledFeatures, extract_features

# What a probe may get wrong: heads with layers before the last one, two heads, norms after pooling.
FAST = [
    "deit_tiny_distilled_patch16_224",
    "efficientvit_b0",
    "fastvit_t8",
    "levit_128s",
    "mobilenetv3_small_050",
    "repvit_m1",
    "swiftformer_xs",
    "test_convnext",
    "test_efficientnet",
    "test_nfnet",
    "test_resnet",
    "test_vit",
    "vit_tiny_patch16_224",
]
LARGEST = 30_000_000  # weights


def families():
    """The architectures of timm with published weights, by module."""
    found = defaultdict(list)
    for name in dict.fromkeys(name.partition(".")[0] for name in timm.list_models(pretrained=True)):
        found[_model_to_module[name]].append(name)
    return found


def member_of(model, size):
    return Member(model, Preprocessing(size), "network", "timm", weight_hash="not looked at")


def check_features(architecture):
    torch.manual_seed(0)
    model = timm.create_model(architecture)
    own = model.pretrained_cfg["input_size"][-1]
    small = own if model.pretrained_cfg.get("fixed_input_size") else min(96, own)
    width = getattr(model, "head_hidden_size", None) or model.num_features
    for size in dict.fromkeys((small, own)):
        member = member_of(model, size)
        views = torch.rand(2, 3, size, size) * 255
        try:
            found = PooledFeatures(member)(views)
        except (AssertionError, RuntimeError):
            assert size != own, architecture
            continue  # it takes no smaller images, and does not say so
        break
    model.reset_classifier(0)
    expected = member.logits(views).flatten(1)
    assert found.shape == (2, width), architecture
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5, msg=architecture)


@pytest.mark.parametrize("architecture", FAST)
def test_features_are_what_timm_pools(architecture):
    check_features(architecture)


@pytest.mark.slow
@pytest.mark.parametrize("family", sorted(families()))
def test_features_of_every_architecture(family):
    for architecture in families()[family]:
        with torch.device("meta"):
            model = timm.create_model(architecture)
        if sum(parameter.numel() for parameter in model.parameters()) < LARGEST:
            check_features(architecture)


@pytest.mark.parametrize(("architecture", "width"), [("test_vit", 64), ("test_efficientnet", 256)])
def test_networks_without_a_classifier_are_probed(architecture, width, tmp_path):
    torch.manual_seed(0)
    model = timm.create_model(architecture, num_classes=0)
    save_for_hf(model, tmp_path / "saved", safe_serialization=True)
    size = model.pretrained_cfg["input_size"][-1]
    member = named_member(str(tmp_path / "saved"), None, None, head=False)
    dataset = AugmentedDataset(ImageSource.of(tiny_dataset(3)), evaluation_policy(size))
    features, _ = extract_features(member, dataset)
    views = dataset.collate([dataset[index] for index in range(3)])["pixel_values"]
    with torch.no_grad():
        expected = model.eval()(member.preprocessing(views))
    assert features.shape == (3, width)
    torch.testing.assert_close(torch.from_numpy(features), expected, rtol=1e-4, atol=1e-5)


def test_wrapped_students_have_the_features_of_timm():
    torch.manual_seed(0)
    student = create_student("test_efficientnet", 5, 32)
    views = torch.rand(2, 3, 32, 32) * 255
    wrapped, bare = (PooledFeatures(member_of(model, 32))(views) for model in (student, student.timm_model))
    assert torch.equal(wrapped, bare) and wrapped.shape == (2, student.timm_model.num_features)


SMALL = {
    "beit": {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24},
    "convnext": {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2},
    "dinov2": {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2},
    "mobilenet_v2": {"depth_multiplier": 0.25},
    "poolformer": {
        "hidden_sizes": [8, 8],
        "depths": [1, 1],
        "num_encoder_blocks": 2,
        "patch_sizes": [7, 3],
        "strides": [4, 2],
        "padding": [2, 1],
    },
    "resnet": {"embedding_size": 8, "hidden_sizes": [8, 12], "depths": [1, 1], "layer_type": "basic"},
    "swin": {"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 2},
    "vit": {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24},
}
WIDTHS = {"dinov2": 48, "convnext": 16, "mobilenet_v2": 1280, "poolformer": 8, "resnet": 12, "swin": 16}


@pytest.mark.parametrize("model_type", SMALL)
def test_features_of_transformers_networks_go_into_their_head(model_type):
    torch.manual_seed(0)
    size = {"image_size": 32, "patch_size": 8} if model_type in ("beit", "dinov2", "vit") else {}
    size = {"image_size": 32, "patch_size": 2} if model_type == "swin" else size
    config = transformers.AutoConfig.for_model(model_type, num_labels=7, **size, **SMALL[model_type])
    model = transformers.AutoModelForImageClassification.from_config(config).eval()
    member = replace(member_of(model, 32), kind="transformers")
    views = torch.rand(3, 3, 32, 32) * 255
    features = PooledFeatures(member)(views)
    assert features.shape == (3, WIDTHS.get(model_type, 24))
    head = next(layer for layer in model.modules() if isinstance(layer, nn.Linear) and layer.out_features == 7)
    with torch.no_grad():
        torch.testing.assert_close(head(features), member.logits(views), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("labels", [7, 0])
def test_features_of_two_heads_are_their_mean(labels):
    torch.manual_seed(0)
    shape = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    config = transformers.DeiTConfig(num_labels=labels, image_size=32, patch_size=8, **shape)
    model = transformers.DeiTForImageClassificationWithTeacher(config).eval()
    member = replace(member_of(model, 32), kind="transformers")
    views = torch.rand(2, 3, 32, 32) * 255
    tokens = model.deit(member.preprocessing(views)).last_hidden_state.detach()
    torch.testing.assert_close(PooledFeatures(member)(views), tokens[:, :2].mean(1), rtol=1e-4, atol=1e-5)


def test_a_network_whose_head_is_not_found_is_refused():
    class Strange(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 4)

        def forward(self, images):
            return self.layer(images.mean((-2, -1))).sin()

    with pytest.raises(ValueError, match=r"network \(Strange\) has no linear layer that answers with its logits"):
        PooledFeatures(member_of(Strange(), 8))
