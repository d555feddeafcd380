"""Model cards: they state what was measured, their metadata can be read back, and their code loads the student."""

import re

import numpy as np
import pytest
import yaml
from huggingface_hub import EvalResult, HfApi, ModelCard
from tiny import TinyNet, tiny_dataset, tiny_image, tiny_teacher

from hf_reinforce import (
    AugmentedDataset,
    ImageSource,
    KDTrainer,
    KDTrainingArguments,
    create_student,
    evaluation_policy,
    load_policy,
    load_reinforced,
    reinforce,
)
from hf_reinforce.cards import model_card
from hf_reinforce.cards.model_card import write_model_card

ROWS, CLASSES, SIZE = 24, 5, 32
EVALUATION = {
    "dataset_name": "somebody/pets",
    "dataset_config": "small",
    "dataset_split": "test",
    "dataset_revision": "0" * 40,
}


@pytest.fixture(scope="module")
def trainer_of(tmp_path_factory):
    """`trainer_of(method, model=..., evaluated=..., **arguments)`."""
    folder, source = tmp_path_factory.mktemp("plus") / "pets-plus", tiny_dataset(ROWS, labels=CLASSES)
    options = {"num_samples": 2, "top_k": 3, "device": "cpu", "source_name": "somebody/pets"}
    reinforce(source, tiny_teacher(CLASSES), load_policy("randaug", SIZE), folder, **options)

    def trainer_of(method="reinforced", model=None, evaluated=True, **arguments):
        output = str(tmp_path_factory.mktemp("run") / "student")
        options = {"per_device_train_batch_size": 12, "learning_rate": 0.01, "save_strategy": "no", "use_cpu": True}
        args = KDTrainingArguments(output, method=method, disable_tqdm=True, **{**options, **arguments})
        train = load_reinforced(str(folder), "randaug", source=source)
        if method != "reinforced":
            config = train.config
            train = AugmentedDataset(ImageSource.of(source), train.policy)
            train.config = config
        held_out = AugmentedDataset(ImageSource.of(source), evaluation_policy(SIZE)) if evaluated else None
        model = model or create_student("test_resnet", CLASSES, SIZE, source.features["label"].names)
        return KDTrainer(model, args, train, held_out, tiny_teacher(CLASSES) if method == "online" else None)

    return trainer_of


@pytest.fixture(scope="module")
def trained(trainer_of):
    trainer = trainer_of(num_train_epochs=2)
    trainer.train()
    trainer.save_model()
    trainer.found = trainer.evaluate()
    return trainer


def written(trainer, **changes):
    """The card that is written, and what it says of itself in front."""
    names = {"base_model": "test_resnet", "dataset_name": "me/pets-plus", "dataset_config_name": "randaug"}
    write_model_card(trainer, **{**names, "evaluation": EVALUATION, **changes})
    with open(f"{trainer.args.output_dir}/README.md", encoding="utf-8") as file:
        text = file.read()
    assert not re.search(r"{{|{%|%}|\bNone\b|\bnan\b", text)
    return ModelCard(text), yaml.safe_load(text.split("---\n")[1])


def section(card, heading):
    return re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", card.text, re.M | re.S)[1]


def line(text, name):
    """The second cell of a line of a table."""
    return re.search(rf"^\| {re.escape(name)} \| (.*) \|$", text, re.M)[1]


def blocks(card, language):
    return re.findall(rf"```{language}\n(.*?)```", card.text, re.S)


def test_metrics_are_evaluation_results(trained):
    card, front = written(trained)
    (index,) = front["model-index"]
    (result,) = index["results"]
    assert index["name"] == "student"
    assert result["task"] == {"type": "image-classification", "name": "Image Classification"}
    expected = {"type": "somebody/pets", "name": "somebody/pets", "config": "small", "split": "test"}
    assert result["dataset"] == {**expected, "revision": "0" * 40}
    found = {name: trained.found[f"eval_{name}"] for name in ("accuracy", "accuracy_top5", "nll", "ece", "brier")}
    values = {metric["type"]: metric["value"] for metric in result["metrics"]}
    assert not any("%" in metric["name"] for metric in result["metrics"]), "the values are shares"
    assert values.pop("ece_adaptive") >= 0 and values == pytest.approx(found, abs=1e-6)
    assert all(isinstance(item, EvalResult) for item in card.data.eval_results)
    assert card.data.to_dict() == front and front["datasets"] == ["me/pets-plus", "somebody/pets"]
    assert (front["library_name"], front["pipeline_tag"]) == ("timm", "image-classification")
    assert {"dataset-reinforcement", "transformers"} <= set(front["tags"])
    assert "license" not in front and "base_model" not in front
    results = section(card, "Results")
    assert (
        line(results, "top-1 (%)") == f"{100 * found['accuracy']:.2f}"
        and line(results, "ECE") == f"{found['ece']:.4f}"
    )
    assert "split `test`" in results and f"({ROWS} images)" in results


def test_training_is_described(trained):
    card, _ = written(trained)
    training = section(card, "Training")
    assert line(training, "learned from") == "stored answers of a teacher"
    assert line(training, "reinforcements of each image") == "2, the 3 most likely of 5 classes stored"
    assert "RandAugment: 2 operations at magnitude 9" in line(training, "augmentations (`randaug`)")
    weight_hash = trained.train_dataset.config.teachers[0]["weight_hash"]
    assert f"| `TinyNet` | 16 px | float32 | `{weight_hash}` | not stated |" in training
    settings = {
        "learning_rate": "0.01",
        "train_batch_size": "12",
        "num_epochs": "2",
        "temperature": "1.0",
        "seed": "42",
    }
    assert {name: line(training, name) for name in settings} == settings
    assert "no teacher ran while it trained" in card.text.split("## ")[0]


def test_the_code_of_the_card_loads_the_student(trained, tmp_path, monkeypatch):
    card, _ = written(trained)
    monkeypatch.chdir(tmp_path)
    tiny_image(3, (40, 60)).save("photo.jpg")
    answers = []
    for block in blocks(card, "python"):
        namespace = {}
        exec(compile(block, "README.md", "exec"), namespace)
        answers.append(namespace["logits"].numpy())
    assert len(answers) == 2 and answers[0].shape == (1, CLASSES)
    np.testing.assert_allclose(*answers, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("method", "words"), [("plain", "without a teacher"), ("online", "answered to every augmented")]
)
def test_methods_without_stored_targets_and_without_evaluation(trainer_of, method, words):
    trainer = trainer_of(method, evaluated=False, max_steps=1)
    trainer.train()
    card, front = written(trainer, evaluation=None)
    assert words in " ".join(card.text.split()) and ("TinyNet" in card.text) == (method == "online")
    assert "reinforcements of each image" not in card.text
    assert ("temperature" in section(card, "Training")) == (method == "online")
    assert "model-index" not in front and "metrics" not in front
    assert "Not measured yet" in section(card, "Results") and "Nothing was measured" in section(card, "Limitations")


def test_module_that_neither_library_knows(trainer_of):
    trainer = trainer_of(model=TinyNet(CLASSES, 0))
    card, front = written(trainer, base_model="TinyNet")
    assert "library_name" not in front
    assert not blocks(card, "python") and "model.safetensors" in section(card, "Use")


def test_card_goes_to_the_hub(trained, monkeypatch):
    uploaded = {}

    def upload_folder(self, **kwargs):
        with open(f"{kwargs['folder_path']}/README.md", encoding="utf-8") as file:
            uploaded.update(kwargs, card=ModelCard(file.read()).text)

    monkeypatch.setattr(HfApi, "upload_folder", upload_folder)
    monkeypatch.setattr(
        KDTrainer, "init_hf_repo", lambda self, **kwargs: setattr(self, "hub_model_id", "me/tiny-pets")
    )
    monkeypatch.setattr(trained.args, "push_to_hub", True)
    monkeypatch.setattr(trained.args, "hub_model_id", "me/tiny-pets")
    options = {"base_model": "test_resnet", "dataset_name": "me/pets-plus"}
    trained.create_model_card = lambda **kwargs: write_model_card(trained, **options, **kwargs)
    trained.model.model_tags = ["pets"]  # push_to_hub passes them on
    trained.push_to_hub()
    assert uploaded["repo_id"] == "me/tiny-pets" and uploaded["card"].lstrip().startswith("# tiny-pets")
    assert 'from_pretrained("me/tiny-pets")' in uploaded["card"]
    assert 'timm.create_model("hf-hub:me/tiny-pets", pretrained=True)' in uploaded["card"]


@pytest.mark.parametrize(
    ("licenses", "source", "expected"),
    [
        (["mit", "mit"], "me/pets", "mit"),
        ([None, "mit"], "me/pets", None),
        (["mit", "cc-by-nc-4.0"], "me/pets", None),
        (["mit, gpl"], "me/pets", None),
        (["mit"], "ILSVRC/imagenet-1k", None),
    ],
)
def test_licence_is_stated_where_all_agree(licenses, source, expected):
    assert model_card._license(licenses, source) == expected


def test_pretrained_student_has_the_licence_of_its_weights(trained, tmp_path, monkeypatch):
    licensed = tmp_path / "licensed"
    licensed.mkdir()
    (licensed / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n", encoding="utf-8")
    card, front = written(trained, base_model=str(licensed))
    assert "fine-tuned" in card.text and "cc-by-nc-4.0" in section(card, "Licence")
    assert "license" not in front, "that of the images is not known"
    monkeypatch.setenv("HF_REINFORCE_LOCAL", str(tmp_path))
    assert written(trained, base_model="me/licensed")[1]["base_model"] == "me/licensed"


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", "a|b", "a`b", "x\n\n# y", '"); import os  # '])
def test_names_change_nothing_but_themselves(trained, name):
    evaluation = dict.fromkeys(EVALUATION, name)
    card, front = written(trained, model_name=name, base_model=name, dataset_name=name, evaluation=evaluation)
    assert front["model-index"][0]["name"] == name
    outside = re.sub(r"^```.*?^```$", "", card.text, flags=re.M | re.S)
    assert "<script" not in outside and len(re.findall(r"^# ", outside, re.M)) == 1
    headings = ["Results", "Use", "Training", "Limitations", "Licence", "Citation"]
    assert re.findall(r"^## (.*)$", card.text, re.M) == headings
    for found in re.findall(r"(?:^\|.*\n)+", outside, re.M):
        assert len({row.count("|") for row in found.splitlines()}) == 1
    for block in blocks(card, "python"):
        compile(block, "card", "exec")
