"""Features of a frozen network, on random weights; linear probe and fine-tuning by their recipes."""

import json
import sys
from collections import defaultdict

import numpy as np
import pytest
import timm
import torch
import transformers
from recipe_modules import load_recipe
from sklearn.datasets import make_blobs
from timm.models import save_for_hf
from timm.models._registry import _model_to_module
from tiny import tiny_dataset
from torch import nn

from hf_reinforce import AugmentedDataset, ImageSource, create_student
from hf_reinforce.augmentations.policies import evaluation_policy
from hf_reinforce.models.networks import Member, named_member
from hf_reinforce.models.preprocessing import Preprocessing
from hf_reinforce.models.students import saved_weights
from hf_reinforce.transfer.probe import extract_features, fit_probe, without_classifier
from hf_reinforce.transfer.samples import MissingPackageError, optional

# What a probe may get wrong: heads with layers before the last one, two heads, norms after pooling.
FAST = (
    "deit_tiny_distilled_patch16_224 efficientvit_b0 fastvit_t8 levit_128s mobilenetv3_small_050 repvit_m1 "
    "swiftformer_xs test_convnext test_efficientnet test_nfnet test_resnet test_vit"
)
LARGEST = 30_000_000  # weights


def families():
    """The architectures of timm with published weights, by module."""
    found = defaultdict(list)
    for name in dict.fromkeys(name.partition(".")[0] for name in timm.list_models(pretrained=True)):
        found[_model_to_module[name]].append(name)
    return found


def member_of(model, size, kind="timm"):
    return Member(model.eval(), Preprocessing(size), "network", kind, weight_hash="not looked at")


@torch.no_grad()
def check_features(architecture):
    torch.manual_seed(0)
    model = timm.create_model(architecture)
    own = model.pretrained_cfg["input_size"][-1]
    small = own if model.pretrained_cfg.get("fixed_input_size") else min(96, own)
    for size in dict.fromkeys((small, own)):
        member, views = member_of(model, size), torch.rand(2, 3, size, size) * 255
        try:
            found = without_classifier(member).logits(views)
        except (AssertionError, RuntimeError):
            assert size != own, architecture
            continue  # it takes no smaller images, and does not say so
        break
    inputs = member.preprocessing(views).contiguous(memory_format=torch.channels_last)
    expected = model.forward_head(model.forward_features(inputs), pre_logits=True).flatten(1)
    assert found.shape == (2, getattr(model, "head_hidden_size", None) or model.num_features), architecture
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5, msg=architecture)


@pytest.mark.parametrize("architecture", FAST.split())
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


ATTENTION = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
VIT = {**ATTENTION, "intermediate_size": 24, "image_size": 32, "patch_size": 8}
STAGES = {"patch_sizes": [7, 3], "strides": [4, 2], "padding": [2, 1], "num_encoder_blocks": 2}
SMALL = {  # their configuration, and the width of their features
    "beit": (VIT, 24),
    "convnext": ({"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2}, 16),
    "dinov2": ({**ATTENTION, "image_size": 32, "patch_size": 8}, 48),
    "mobilenet_v2": ({"depth_multiplier": 0.25}, 1280),
    "poolformer": ({"hidden_sizes": [8, 8], "depths": [1, 1], **STAGES}, 8),
    "resnet": ({"embedding_size": 8, "hidden_sizes": [8, 12], "depths": [1, 1], "layer_type": "basic"}, 12),
    "swin": ({"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "image_size": 32, "patch_size": 2}, 16),
    "vit": (VIT, 24),
}


@torch.no_grad()
@pytest.mark.parametrize("model_type", SMALL)
def test_features_of_transformers_networks_go_into_their_head(model_type):
    torch.manual_seed(0)
    options, width = SMALL[model_type]
    config = transformers.AutoConfig.for_model(model_type, num_labels=7, **options)
    model = transformers.AutoModelForImageClassification.from_config(config)
    member, views = member_of(model, 32, "transformers"), torch.rand(3, 3, 32, 32) * 255
    features = without_classifier(member).logits(views)
    head = next(layer for layer in model.modules() if isinstance(layer, nn.Linear) and layer.out_features == 7)
    assert features.shape == (3, width)
    torch.testing.assert_close(head(features), member.logits(views), rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("labels", [7, 0])
def test_features_of_two_heads_are_their_mean(labels):
    torch.manual_seed(0)
    model = transformers.DeiTForImageClassificationWithTeacher(transformers.DeiTConfig(num_labels=labels, **VIT))
    member, views = member_of(model, 32, "transformers"), torch.rand(2, 3, 32, 32) * 255
    tokens = model.deit(member.preprocessing(views)).last_hidden_state
    torch.testing.assert_close(without_classifier(member).logits(views), tokens[:, :2].mean(1), rtol=1e-4, atol=1e-5)
    if labels:
        model.cls_classifier = model.distillation_classifier = nn.Identity()
        with pytest.raises(ValueError, match=r"network \(DeiTFor.*\) has no linear classifier; choose another"):
            without_classifier(member)


@torch.no_grad()
def test_networks_without_a_classifier_and_wrapped_ones(tmp_path):
    torch.manual_seed(0)
    model = timm.create_model("test_vit", num_classes=0)
    save_for_hf(model, tmp_path / "saved", safe_serialization=True)
    member = named_member(str(tmp_path / "saved"), None, None, head=False)
    dataset = AugmentedDataset(ImageSource.of(tiny_dataset(7)), evaluation_policy(member.preprocessing.image_size))
    features, labels = extract_features(member, dataset, batch_size=3)
    views = dataset.collate([dataset[index] for index in range(7)])["pixel_values"]
    expected = model.eval()(member.preprocessing(views))
    torch.testing.assert_close(torch.from_numpy(features), expected, rtol=1e-4, atol=1e-5)
    assert features.shape == (7, 64) and labels.tolist() == [0, 1, 2, 3, 4, 0, 1]
    student, views = create_student("test_efficientnet", 5, 32), torch.rand(2, 3, 32, 32) * 255
    wrapped, bare = (without_classifier(member_of(m, 32)).logits(views) for m in (student, student.timm_model))
    assert torch.equal(wrapped, bare) and wrapped.shape == (2, student.timm_model.num_features)


# -- the probe ----------------------------------------------------------------------------------------------------


def test_probe_separates_blobs_and_chooses_by_likelihood():
    features, labels = make_blobs(240, n_features=6, centers=4, cluster_std=2.0, random_state=0)
    features, labels = features.astype(np.float32), labels.astype(np.int64)
    probe = fit_probe(features[:160], labels[:160], num_classes=5)  # the fifth class has no training sample
    metrics = probe.evaluate(features[160:], labels[160:])
    assert metrics["accuracy"] > 0.9 and metrics["nll"] < 0.5 and metrics["num_samples"] == 80
    assert probe.strength == min(probe.held_out_nll, key=probe.held_out_nll.get) > 1e-4
    assert probe.evaluate(features[:1], np.array([4]))["nll"] == pytest.approx(-np.log(1e-12), abs=0.01)
    assert not fit_probe(features[:20], labels[:20], 5, strengths=[1.0]).held_out_nll
    with pytest.raises(ValueError, match="at least two classes"):
        fit_probe(features[:4], np.zeros(4, np.int64), 5)


def test_a_missing_package_is_named_with_its_remedy():
    with pytest.raises(MissingPackageError, match=r"needs nothing_here .*pip install 'hf-reinforce\[transfer\]'"):
        optional("nothing_here.inner")


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    folder = tmp_path_factory.mktemp("student")
    torch.manual_seed(0)
    model = create_student("resnet10t", 3, 32, model_args={"channels": [8, 16, 24, 32]})
    model.save_pretrained(folder, state_dict=saved_weights(model, model.state_dict()))
    return str(folder)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    rows = tiny_dataset(60)
    rows.select(range(40)).to_parquet(folder / "train.parquet")
    rows.select(range(40, 60)).to_parquet(folder / "test.parquet")
    return str(folder)


@pytest.fixture
def run(monkeypatch):
    def run(recipe, *flags):
        monkeypatch.setattr(sys, "argv", [f"{recipe}.py", *map(str, flags)])
        load_recipe(recipe).main()

    return run


def test_probe_recipe(student, images, tmp_path, run, capsys):
    network, data = ["--model_name_or_path", student], ["--dataset_name", images]
    options = ["--num_workers", 0, "--image_size", 48, "--strengths", 0.01, 1]
    run("linear_probe", *network, *data, *options, "--output_json", tmp_path / "probe.json")
    (found,) = json.loads((tmp_path / "probe.json").read_text())
    assert (found["image_size"], found["num_train"], found["features"], found["num_samples"]) == (48, 40, 32, 20)
    assert found["accuracy"] > 0.4, "chance is 0.2; the colours tell the classes"
    assert f"| {student} | 48 | 32 |" in capsys.readouterr().out
    tiny_dataset(10).to_parquet(tmp_path / "train.parquet")
    tiny_dataset(10).rename_column("label", "other").to_parquet(tmp_path / "test.parquet")
    with pytest.raises(SystemExit, match="error: "):
        run("linear_probe", *network, "--dataset_name", tmp_path, "--label_column_name", "label")
    with pytest.raises(SystemExit, match="--max_eval_samples must be at least 1"):
        run("linear_probe", *network, *data, "--max_eval_samples", 0)


def test_finetune_runs_every_rate_and_seed(student, images, tmp_path, run, capsys):
    flags = ["--dataset_name", images, "--policy", "small_crop", "--image_size", 32, "--output_dir", tmp_path]
    flags += ["--eval_split", "test", "--num_train_epochs", 1, "--disable_tqdm", "True"]
    flags += ["--per_device_train_batch_size=20", "--save_strategy", "no", "--learning_rates", 0.002, 0.05]
    run("finetune", "--model_name_or_path", student, *flags, "--seeds", 0, 1)
    results = json.loads((tmp_path / "finetune.json").read_text())
    runs = [(result["learning_rate"], result["seed"]) for result in results]
    assert runs == [(0.002, 0), (0.002, 1), (0.05, 0), (0.05, 1)]
    assert len({result["eval_nll"] for result in results}) == 4, "each run is one of its own"
    for result in results:
        state = json.loads((tmp_path / result["output_dir"] / "trainer_state.json").read_text())
        assert state["max_steps"] == 2, "40 images in batches of 20"
        config = json.loads((tmp_path / result["output_dir"] / "config.json").read_text())
        assert len(config["label_names"]) == 5, "a new head for the new classes"
    assert "| optimizer | momentum (timm) |" in (tmp_path / "lr0.05-seed1" / "README.md").read_text()
    assert "| 0.05 | 2 |" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="an architecture without weights"):
        run("finetune", "--model_name_or_path", "resnet10t", *flags)
