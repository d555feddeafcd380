"""Model cards: they state what was measured, their metadata can be read back, and their code loads the student."""

import re

import numpy as np
import pytest
import yaml
from huggingface_hub import EvalResult, HfApi, ModelCard
from tiny import TinyNet, tiny_dataset, tiny_image, tiny_teacher

from hf_reinforce import AugmentedDataset, ImageSource, KDTrainer, KDTrainingArguments, load_reinforced, reinforce
from hf_reinforce.augmentations.policies import evaluation_policy, named_policy
from hf_reinforce.cards import model_card
from hf_reinforce.cards.model_card import Evaluation, write_model_card
from hf_reinforce.models.students import create_student

ROWS, CLASSES, SIZE = 24, 5, 32
EVALUATION = Evaluation("somebody/pets", "small", "test", "0" * 40)


@pytest.fixture(scope="module")
def source():
    return tiny_dataset(ROWS, labels=CLASSES)


@pytest.fixture(scope="module")
def plus(source, tmp_path_factory):
    """A reinforced dataset of `somebody/pets`."""
    folder = tmp_path_factory.mktemp("plus") / "pets-plus"
    options = {"num_samples": 2, "top_k": 3, "device": "cpu", "source_name": "somebody/pets"}
    reinforce(source, tiny_teacher(CLASSES), named_policy("randaug", SIZE), folder, **options)
    return folder


@pytest.fixture
def trainer_of(source, plus, tmp_path):
    """`trainer_of(method, model=..., evaluated=..., **arguments)`."""

    def trainer_of(method="reinforced", model=None, evaluated=True, **changes):
        options = {
            "output_dir": str(tmp_path / "student"),
            "per_device_train_batch_size": 12,
            "num_train_epochs": 2,
            "logging_steps": 1,
            "learning_rate": 0.01,
            "save_strategy": "no",
            "use_cpu": True,
            "disable_tqdm": True,
        }
        args = KDTrainingArguments(method=method, **{**options, **changes})
        stored = load_reinforced(str(plus), "randaug", source=source)
        train = stored
        if method != "reinforced":
            train = AugmentedDataset(ImageSource.of(source), stored.policy)
            train.config = stored.config
        held_out = AugmentedDataset(ImageSource.of(source), evaluation_policy(SIZE)) if evaluated else None
        teacher = tiny_teacher(CLASSES) if method == "online" else None
        model = model or create_student("test_resnet", CLASSES, SIZE, source.features["label"].names)
        return KDTrainer(model, args, train, held_out, teacher)

    return trainer_of


def written(trainer, **changes):
    """The card that is written, and what it says of itself in front."""
    names = {"base_model": "test_resnet", "dataset_name": "me/pets-plus", "dataset_config_name": "randaug"}
    write_model_card(trainer, **{**names, "evaluation": EVALUATION, **changes})
    with open(f"{trainer.args.output_dir}/README.md", encoding="utf-8") as file:
        text = file.read()
    front = yaml.safe_load(text.split("---\n")[1])
    assert not re.search(r"{{|{%|%}|\bNone\b|\bnan\b", text)
    return ModelCard(text), front


def section(card, heading):
    return re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", card.text, re.M | re.S)[1]


def line(text, name):
    """The second cell of a line of a table."""
    return re.search(rf"^\| {re.escape(name)} \| (.*) \|$", text, re.M)[1]


def blocks(card, language):
    return re.findall(rf"```{language}\n(.*?)```", card.text, re.S)


@pytest.fixture
def trained(trainer_of):
    trainer = trainer_of(eval_strategy="epoch")
    trainer.train()
    trainer.save_model()
    trainer.found = trainer.evaluate()
    return trainer


def test_metrics_are_evaluation_results(trained):
    card, front = written(trained)
    (index,) = front["model-index"]
    assert index["name"] == "student"
    (result,) = index["results"]
    assert result["task"] == {"type": "image-classification", "name": "Image Classification"}
    expected = {"type": "somebody/pets", "name": "somebody/pets", "config": "small", "split": "test"}
    assert result["dataset"] == {**expected, "revision": "0" * 40}
    values = {metric["type"]: metric["value"] for metric in result["metrics"]}
    found = trained.found
    assert values == {
        "accuracy": pytest.approx(found["eval_accuracy"], abs=1e-6),
        "top_5_accuracy": pytest.approx(found["eval_accuracy_top5"], abs=1e-6),
        "nll": pytest.approx(found["eval_nll"], abs=1e-6),
        "expected_calibration_error": pytest.approx(found["eval_ece"], abs=1e-6),
        "adaptive_calibration_error": pytest.approx(found["eval_ece_adaptive"], abs=1e-6),
        "brier_score": pytest.approx(found["eval_brier"], abs=1e-6),
    }
    assert all(isinstance(item, EvalResult) for item in card.data.eval_results) and len(card.data.eval_results) == 6
    assert card.data.to_dict() == front
    assert front["datasets"] == ["me/pets-plus", "somebody/pets"]
    assert (front["library_name"], front["pipeline_tag"]) == ("timm", "image-classification")
    assert {"dataset-reinforcement", "transformers"} <= set(front["tags"])
    assert "license" not in front and "base_model" not in front
    results = section(card, "Results")
    assert line(results, "Accuracy") == f"{found['eval_accuracy']:.2%}"
    assert line(results, "Expected calibration error (15 bins)") == f"{found['eval_ece']:.4f}"
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
        "lr_scheduler_type": "linear",
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


def test_methods_without_stored_targets(trainer_of):
    for method, words in (("plain", "without a teacher"), ("online", "answered to every augmented view")):
        trainer = trainer_of(method, max_steps=2)
        trainer.train()
        card, _ = written(trainer, evaluation=None)
        assert words in " ".join(card.text.split())
        assert ("TinyNet" in card.text) == (method == "online")
        assert "reinforcements of each image" not in card.text
        assert ("temperature" in section(card, "Training")) == (method == "online")


def test_without_an_evaluation_nothing_is_claimed(trainer_of):
    trainer = trainer_of(evaluated=False, max_steps=1)
    trainer.train()
    card, front = written(trainer, evaluation=None)
    assert "model-index" not in front and "metrics" not in front
    assert "Not measured yet" in section(card, "Results") and "Nothing was measured" in section(card, "Limitations")


def test_module_that_neither_library_knows(trainer_of):
    trainer = trainer_of(model=TinyNet(CLASSES, 0), max_steps=2)
    trainer.train()
    card, front = written(trainer, base_model="TinyNet")
    assert "library_name" not in front
    assert not blocks(card, "python") and "model.safetensors" in section(card, "Use")


def test_card_goes_to_the_hub(trained, monkeypatch):
    uploaded = {}

    def upload_folder(self, **kwargs):
        with open(f"{kwargs['folder_path']}/README.md", encoding="utf-8") as file:
            uploaded.update(kwargs, card=file.read())

    monkeypatch.setattr(HfApi, "upload_folder", upload_folder)
    monkeypatch.setattr(
        KDTrainer, "init_hf_repo", lambda self, **kwargs: setattr(self, "hub_model_id", "me/tiny-pets")
    )
    trained.args.push_to_hub, trained.args.hub_model_id = True, "me/tiny-pets"
    options = {"base_model": "test_resnet", "dataset_name": "me/pets-plus"}
    trained.create_model_card = lambda **kwargs: write_model_card(trained, **options, **kwargs)
    trained.model.model_tags = ["pets"]  # push_to_hub passes them on
    trained.push_to_hub()
    assert uploaded["repo_id"] == "me/tiny-pets"
    card = ModelCard(uploaded["card"])
    assert card.text.lstrip().startswith("# tiny-pets")
    assert 'from_pretrained("me/tiny-pets")' in card.text
    assert 'timm.create_model("hf-hub:me/tiny-pets", pretrained=True)' in card.text


def test_only_the_main_process_writes(trainer_of, tmp_path, monkeypatch):
    trainer = trainer_of()
    monkeypatch.setattr(trainer, "is_world_process_zero", lambda: False)
    write_model_card(trainer, base_model="test_resnet", dataset_name="me/pets-plus")
    assert not (tmp_path / "student" / "README.md").exists()


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
    card, front = written(trained, base_model="me/licensed")
    assert front["base_model"] == "me/licensed" and "license" not in front


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", "a|b", "a`b", "x\n\n# y", '"); import os  # '])
def test_names_change_nothing_but_themselves(trained, name):
    evaluation = Evaluation(name, name, name, name)
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
