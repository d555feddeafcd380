"""Students, teachers and datasets that do not fit each other: told before anything is spent on training."""

import copy

import pytest
import timm
import torch
from tiny import NAMES, TinyNet, tiny_dataset, tiny_teacher
from torch import nn

from hf_reinforce import (
    AugmentedDataset,
    ImageSource,
    KDTrainer,
    KDTrainingArguments,
    load_policy,
    load_reinforced,
    reinforce,
)
from hf_reinforce.augmentations.policies import evaluation_policy
from hf_reinforce.models.students import check_fit, create_student

C, SIZE = 5, 32


@pytest.fixture(scope="module")
def source():
    return tiny_dataset(8, labels=C)


@pytest.fixture
def trainer_of(tmp_path, source):
    def trainer_of(model, method="plain", train=None, evaluation=None, teacher=None):
        args = KDTrainingArguments(str(tmp_path), method=method, use_cpu=True, save_strategy="no", max_steps=1)
        train = AugmentedDataset(ImageSource.of(source), load_policy("rrc", SIZE)) if train is None else train
        return KDTrainer(model, args, train, evaluation, teacher)

    return trainer_of


class Returning(nn.Module):
    """A student that returns something made of its logits."""

    def __init__(self, make):
        super().__init__()
        self.network, self.make = TinyNet(C, 0), make

    def forward(self, images):
        return self.make(self.network(images))


def test_top_k_and_classes_are_those_of_the_data(source, trainer_of, tmp_path):
    for classes in (3, 12):
        rows, folder = tiny_dataset(8, labels=classes), tmp_path / str(classes)
        reinforce(rows, tiny_teacher(classes), load_policy("rrc", SIZE), folder, num_samples=1)
        dataset = load_reinforced(str(folder), source=rows)
        assert dataset.config.classes.top_k == min(10, classes) == len(dataset.target(0, 0)["target_label"])
    for streaming in (False, True):
        dataset = load_reinforced(str(folder), source=rows, streaming=streaming)
        trainer_of(TinyNet(12, 0), "reinforced", dataset)
        with pytest.raises(ValueError, match="TinyNet answers with 1000 classes, but the training set has 12"):
            trainer_of(TinyNet(1000, 0), "reinforced", dataset)


@pytest.mark.parametrize(
    ("student", "arguments", "message"),
    [
        (lambda: TinyNet(1000, 0), {}, "The student TinyNet answers with 1000 classes, but the training set has 5"),
        (
            lambda: TinyNet(1000, 0),
            {"method": "online", "teacher": tiny_teacher(C)},
            "The student TinyNet answers with 1000 classes, but the training set has 5",
        ),
        (lambda: TinyNet(C, 0), {"method": "online", "teacher": tiny_teacher(4)}, r"Teacher \(4\)"),
        (
            lambda: TinyNet(C, 0),
            {"evaluation": AugmentedDataset(ImageSource.of(tiny_dataset(8, labels=4)), evaluation_policy(SIZE))},
            "answers with 5 classes, but the dataset to evaluate on has 4",
        ),
        (
            lambda: create_student("vit_tiny_patch16_224", C, SIZE, NAMES[:C], {"depth": 1}),
            {},
            "The student vit_tiny_patch16_224 cannot take views of 32x32 .*--input_size",
        ),
        (
            lambda: create_student("deit_tiny_patch16_224", C, SIZE, NAMES[:C], {"img_size": 64, "depth": 1}),
            {},
            "The student deit_tiny_patch16_224 cannot take views of 32x32 .*--input_size",
        ),
        (
            lambda: create_student("test_resnet", C, SIZE, NAMES[:C], {"in_chans": 1}),
            {},
            "The student test_resnet cannot take .* three channels",
        ),
        (lambda: Returning(lambda logits: (logits, logits)), {}, r"Returning .*logits.* tuple of \(2, 5\), \(2, 5\)"),
        (lambda: Returning(lambda logits: "cat"), {}, "Returning .*logits.* str"),
        (lambda: Returning(lambda logits: logits / 0), {}, "Returning .*not finite"),
    ],
)
def test_what_does_not_fit_is_refused(student, arguments, message, trainer_of):
    with pytest.raises(ValueError, match=message):
        trainer_of(student(), **arguments)


def test_logits_are_taken_out_of_dicts_and_tuples(trainer_of):
    make = lambda logits: {"loss": logits.sum(), "output": logits}
    found, expected = trainer_of(Returning(make)), trainer_of(Returning(lambda logits: logits))
    batch = found.train_dataset.collate([found.train_dataset[index] for index in range(4)])
    assert torch.equal(*(each.compute_loss(each.model.eval(), batch) for each in (found, expected)))
    found.train()


def test_a_trial_leaves_no_trace(source):
    network = timm.create_model("test_resnet", num_classes=C, drop_rate=0.5)
    network.layer1.eval()
    facts = lambda: [module.training for module in network.modules()]
    before, state, random = facts(), copy.deepcopy(network.state_dict()), torch.get_rng_state()
    check_fit(network, AugmentedDataset(ImageSource.of(source), load_policy("rrc", SIZE)), None, None, None)
    assert facts() == before
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
