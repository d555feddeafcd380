"""Linear probe and fine-tuning of a frozen or pretrained student, by their recipes."""

import json
import sys

import numpy as np
import pytest
import torch
from recipe_modules import load_recipe
from sklearn.datasets import make_blobs
from tiny import tiny_dataset

from hf_reinforce import AugmentedDataset, ImageSource
from hf_reinforce.augmentations.policies import evaluation_policy
from hf_reinforce.models.networks import named_member
from hf_reinforce.models.students import create_student, saved_weights
from hf_reinforce.transfer.probe import extract_features, fit_probe


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


def run(recipe, flags, monkeypatch):
    monkeypatch.setattr(sys, "argv", [f"{recipe}.py", *map(str, flags)])
    load_recipe(recipe).main()


def test_features_are_what_the_last_layer_sees(student):
    member = named_member(student, None, None)
    dataset = AugmentedDataset(ImageSource.of(tiny_dataset(7)), evaluation_policy(32))
    features, labels = extract_features(member, dataset, batch_size=3)
    assert features.shape == (7, 32) and labels.tolist() == [0, 1, 2, 3, 4, 0, 1]
    batch = dataset.collate([dataset[index] for index in range(7)])
    with torch.no_grad():
        logits = member.model.timm_model.fc(torch.from_numpy(features))
        assert torch.allclose(logits, member.logits(batch["pixel_values"]), atol=1e-5)


def test_probe_separates_blobs_and_chooses_by_likelihood():
    features, labels = make_blobs(240, n_features=6, centers=4, cluster_std=2.0, random_state=0)
    features, labels = features.astype(np.float32), labels.astype(np.int64)
    probe = fit_probe(features[:160], labels[:160], num_classes=5)
    metrics = probe.evaluate(features[160:], labels[160:])
    assert metrics["accuracy"] > 0.9 and metrics["nll"] < 0.5
    assert probe.strength == min(probe.held_out_nll, key=probe.held_out_nll.get) > 1e-4
    assert probe.log_probabilities(features[:3]).shape == (3, 5), "the fifth class has no training sample"
    assert not fit_probe(features[:20], labels[:20], 5, strengths=[1.0]).held_out_nll
    with pytest.raises(ValueError, match="at least two classes"):
        fit_probe(features[:4], np.zeros(4, np.int64), 5)


def test_probe_recipe_prints_a_table_and_writes_json(student, images, tmp_path, monkeypatch, capsys):
    path = tmp_path / "probe.json"
    flags = ["--model_name_or_path", student, "--dataset_name", images, "--num_workers", 0, "--image_size", 48]
    run("linear_probe", [*flags, "--strengths", 0.01, 1, "--output_json", path], monkeypatch)
    (found,) = json.loads(path.read_text())
    assert (found["image_size"], found["num_train"], found["features"], found["num_samples"]) == (48, 40, 32, 20)
    assert found["accuracy"] > 0.4, "chance is 0.2; the colours tell the classes"
    assert f"| {student} | 48 | 32 |" in capsys.readouterr().out


def test_probe_recipe_refuses_other_classes(student, images, tmp_path, monkeypatch):
    tiny_dataset(10).to_parquet(tmp_path / "train.parquet")
    tiny_dataset(10).rename_column("label", "other").to_parquet(tmp_path / "test.parquet")
    flags = ["--model_name_or_path", student, "--dataset_name", tmp_path, "--label_column_name", "label"]
    with pytest.raises(SystemExit, match="error: "):
        run("linear_probe", flags, monkeypatch)
    with pytest.raises(SystemExit, match="--max_eval_samples must be at least 1"):
        run("linear_probe", [*flags[:2], "--dataset_name", images, "--max_eval_samples", 0], monkeypatch)


def test_finetune_runs_every_rate_and_seed(student, images, tmp_path, monkeypatch, capsys):
    flags = ["--model_name_or_path", student, "--dataset_name", images, "--policy", "small_crop", "--image_size", 32]
    flags += ["--eval_split", "test", "--output_dir", tmp_path, "--num_train_epochs", 1, "--disable_tqdm", "True"]
    flags += ["--per_device_train_batch_size=20", "--save_strategy", "no"]
    run("finetune", [*flags, "--learning_rates", 0.002, 0.05, "--seeds", 0, 1], monkeypatch)
    results = json.loads((tmp_path / "finetune.json").read_text())
    assert [(result["learning_rate"], result["seed"]) for result in results] == [
        (0.002, 0),
        (0.002, 1),
        (0.05, 0),
        (0.05, 1),
    ]
    assert len({result["eval_nll"] for result in results}) == 4, "each run is one of its own"
    for result in results:
        state = json.loads((tmp_path / result["output_dir"] / "trainer_state.json").read_text())
        assert state["max_steps"] == 2, "40 images in batches of 20"
        config = json.loads((tmp_path / result["output_dir"] / "config.json").read_text())
        assert len(config["label_names"]) == 5, "a new head for the new classes"
    card = (tmp_path / "lr0.05-seed1" / "README.md").read_text()
    assert "| optimizer | momentum (timm) |" in card
    assert "| 0.05 | 2 |" in capsys.readouterr().out


def test_finetune_needs_weights(images, tmp_path, monkeypatch):
    flags = ["--model_name_or_path", "resnet10t", "--dataset_name", images, "--output_dir", tmp_path]
    with pytest.raises(SystemExit, match="an architecture without weights"):
        run("finetune", flags, monkeypatch)
