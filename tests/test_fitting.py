"""Students, teachers and datasets that do not fit each other: told before anything is spent on training."""

import copy

import pytest
import timm
import torch
from tiny import NAMES, TinyNet, reinforced_rows, tiny_dataset, tiny_teacher
from torch import nn

from hf_reinforce import (
    AugmentedDataset,
    ImageSource,
    KDTrainer,
    KDTrainingArguments,
    ReinforcedDataset,
    load_policy,
    load_reinforced,
    reinforce,
)
from hf_reinforce.augmentations.policies import evaluation_policy
from hf_reinforce.models.answers import logits_of, try_network
from hf_reinforce.models.students import create_student

C, SIZE = 5, 32


@pytest.fixture(scope="module")
def source():
    return tiny_dataset(8, labels=C)


@pytest.fixture(scope="module")
def stored(source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("plus")
    return folder, reinforced_rows(source, tiny_teacher(C), load_policy("rrc", SIZE), folder, num_samples=1, top_k=2)


@pytest.fixture
def trainer_of(tmp_path, source):
    def trainer_of(model, method="plain", train=None, evaluation=None, teacher=None, **options):
        args = KDTrainingArguments(
            str(tmp_path), method=method, use_cpu=True, save_strategy="no", max_steps=1, **options
        )
        train = AugmentedDataset(ImageSource.of(source), load_policy("rrc", SIZE)) if train is None else train
        return KDTrainer(model, args, train, evaluation, teacher)

    return trainer_of


class Returning(nn.Module):
    """A student that returns something made of its logits."""

    def __init__(self, make, classes=C):
        super().__init__()
        self.network, self.make = TinyNet(classes, 0), make

    def forward(self, images):
        return self.make(self.network(images))


@pytest.mark.parametrize("method", ["plain", "online", "reinforced", "stream"])
def test_students_with_other_classes_than_the_targets_are_refused(method, trainer_of, source, stored):
    folder, rows = stored
    train = {
        "reinforced": lambda: ReinforcedDataset(*rows, source=source),
        "stream": lambda: load_reinforced(str(folder), source=source, streaming=True),
    }.get(method, lambda: None)()
    teacher = tiny_teacher(C) if method == "online" else None
    method = "reinforced" if method == "stream" else method
    trainer_of(TinyNet(C, 0), method, train, teacher=teacher)
    with pytest.raises(ValueError, match="The student TinyNet answers with 1000 classes, but the training set has 5"):
        trainer_of(TinyNet(1000, 0), method, train, teacher=teacher)


def test_an_online_teacher_with_other_classes_is_refused(trainer_of):
    with pytest.raises(ValueError, match=r"4"):
        trainer_of(TinyNet(C, 0), "online", teacher=tiny_teacher(4))


def test_evaluation_with_other_classes_is_refused(trainer_of):
    other = AugmentedDataset(ImageSource.of(tiny_dataset(8, labels=4)), evaluation_policy(SIZE))
    with pytest.raises(ValueError, match="answers with 5 classes, but the dataset to evaluate on has 4"):
        trainer_of(TinyNet(C, 0), evaluation=other)


@pytest.mark.parametrize(
    ("architecture", "model_args"), [("vit_tiny_patch16_224", None), ("deit_tiny_patch16_224", {"img_size": 64})]
)
def test_a_network_that_cannot_take_the_views_is_refused(architecture, model_args, trainer_of):
    student = create_student(architecture, C, SIZE, NAMES[:C], model_args)
    with pytest.raises(ValueError, match=f"The student {architecture} cannot take views of 32 x 32 .*--input_size"):
        trainer_of(student)


def test_a_student_of_grey_images_is_refused(trainer_of):
    student = create_student("test_resnet", C, SIZE, NAMES[:C], {"in_chans": 1})
    with pytest.raises(ValueError, match="The student test_resnet cannot take .* three channels"):
        trainer_of(student)


@pytest.mark.parametrize(
    "make",
    [
        lambda logits: {"logits": logits, "features": logits[:, :, None]},
        lambda logits: {"loss": logits.sum(), "output": logits},
        lambda logits: (logits, logits[:, :, None]),
        lambda logits: [logits],
    ],
)
def test_logits_are_taken_out_of_dicts_and_tuples(make, trainer_of, source):
    torch.manual_seed(0)
    found, expected = trainer_of(Returning(make)), trainer_of(Returning(lambda logits: logits))
    batch = found.train_dataset.collate([found.train_dataset[index] for index in range(4)])
    assert torch.equal(*(each.compute_loss(each.model.eval(), batch) for each in (found, expected)))
    found.train()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda logits: (logits, logits), "tuple of (2, 5), (2, 5)"),
        (lambda logits: {"first": logits, "second": logits}, "dict of"),
        (lambda logits: logits[:, :, None], "(2, 5, 1)"),
        (lambda logits: logits.argmax(-1), "(2,)"),
        (lambda logits: "cat", "str"),
        (lambda logits: None, "NoneType"),
        (lambda logits: (), "nothing"),
    ],
)
def test_answers_that_are_no_logits_are_refused(make, words, trainer_of):
    with pytest.raises(ValueError, match="should answer with logits") as error:
        trainer_of(Returning(make))
    assert "The student Returning" in str(error.value) and words in str(error.value)


def test_answers_that_are_not_finite_are_refused(trainer_of):
    with pytest.raises(ValueError, match="not finite"):
        trainer_of(Returning(lambda logits: logits / 0))


def test_a_trial_leaves_no_trace():
    network = timm.create_model("test_resnet", num_classes=C, drop_rate=0.5)
    network.layer1.eval()
    before = copy.deepcopy(network.state_dict()), [m.training for m in network.modules()], torch.get_rng_state()
    assert try_network(network, lambda views: logits_of(network(views), "it"), "it", SIZE, "") == C
    assert all(torch.equal(value, before[0][name]) for name, value in network.state_dict().items())
    assert [module.training for module in network.modules()] == before[1]
    assert torch.equal(torch.get_rng_state(), before[2])


def test_top_k_is_at_most_the_number_of_classes(source, tmp_path):
    for classes in (3, 12):
        rows = tiny_dataset(8, labels=classes)
        reinforce(rows, tiny_teacher(classes), load_policy("rrc", SIZE), tmp_path / str(classes), num_samples=1)
        dataset = load_reinforced(str(tmp_path / str(classes)), source=rows)
        assert dataset.config.classes.top_k == min(10, classes) == len(dataset.target(0, 0)["target_label"])
