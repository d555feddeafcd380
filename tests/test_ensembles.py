"""Members of an ensemble have their classes in orders of their own: they are matched by name, or refused."""

import json
import os
import pickle
import sys
from dataclasses import replace

import pytest
import torch
from datasets import ClassLabel, load_dataset
from recipe_modules import load_recipe
from saved_networks import CLASSES, timm_folder, transformers_folder
from test_scale_out import in_processes
from timm.data import ImageNetInfo
from tiny import MEAN, STD, TinyNet, stored_rows, tiny_dataset, tiny_teacher
from torch import nn

from hf_reinforce import (
    AugmentedDataset,
    ImageSource,
    KDTrainer,
    KDTrainingArguments,
    ReinforcementConfig,
    Teacher,
    load_policy,
    load_teacher,
    reinforce,
)
from hf_reinforce.models.classes import imagenet_classes, wordnet_ids
from hf_reinforce.models.networks import Member
from hf_reinforce.models.preprocessing import Preprocessing
from hf_reinforce.models.students import create_student

ORDER = (3, 0, 4, 1, 2)
OTHER = tuple(CLASSES[index] for index in ORDER)
UNNAMED = tuple(f"LABEL_{index}" for index in range(5))
PREPROCESSING = Preprocessing(16, MEAN, STD, "bilinear")


def net(order=range(5), seed=0):
    """A network whose outputs are in some order; the seed alone decides what it answers to a class."""
    made = TinyNet(len(order), seed)
    for parameter in (made.head.weight, made.head.bias):
        parameter.data = parameter.data[list(order)]
    return made


def member(names, order=range(5), seed=0, kind="timm"):
    return Member(net(order, seed), PREPROCESSING, f"net-{seed}", kind, names)


@pytest.fixture
def views():
    return torch.randint(0, 256, (6, 3, 24, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


KINDS = {"transformers": transformers_folder, "timm": timm_folder}


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_network_in_two_orders_answers_as_one(kind, tmp_path, views):
    KINDS[kind](tmp_path / "a", CLASSES, range(5))
    KINDS[kind](tmp_path / "b", [name.upper() for name in OTHER], ORDER)
    one, both = load_teacher(str(tmp_path / "a")), load_teacher([str(tmp_path / "a"), str(tmp_path / "b")])
    assert one(views).exp().std(0).max() > 1e-3
    torch.testing.assert_close(both(views), one(views), atol=1e-5, rtol=1e-5)
    assert both.class_names == CLASSES and both.num_classes == 5
    moved = pickle.loads(pickle.dumps(both))
    assert moved.describe() == both.describe() and maps(moved) == (None, [None, [1, 3, 4, 0, 2]])
    torch.testing.assert_close(moved(views), both(views), rtol=0, atol=0)
    turned = load_teacher([str(tmp_path / "b"), str(tmp_path / "a")])
    torch.testing.assert_close(turned(views), one(views)[:, list(ORDER)], atol=1e-5, rtol=1e-5)
    assert turned.class_names == tuple(name.upper() for name in OTHER)


@pytest.mark.parametrize("kind", KINDS)
def test_a_module_brings_the_names_that_it_records(kind, tmp_path, views):
    KINDS[kind](tmp_path / "a", CLASSES, range(5))
    KINDS[kind](tmp_path / "b", OTHER, ORDER)
    alone, model = load_teacher(str(tmp_path / "a")), load_teacher(str(tmp_path / "b")).members[0].model
    both = load_teacher([str(tmp_path / "a"), model], preprocessing=alone.members[0].preprocessing)
    assert both.members[1].kind == "module" and both.members[1].class_names == OTHER
    torch.testing.assert_close(both(views), alone(views), atol=1e-5, rtol=1e-5)


def maps(teacher):
    """The class maps that are recorded: of the teacher, and of each member."""
    return teacher.class_map, [item.get("class_map") for item in teacher.describe()]


def test_each_member_gets_the_order_of_the_dataset(views):
    order = (1, 4, 0, 3, 2)
    shuffled = tuple(CLASSES[index] for index in order)
    teacher = Teacher([member(CLASSES), member(OTHER, ORDER)]).with_classes(shuffled)
    assert maps(teacher) == (None, [list(order), [3, 2, 1, 0, 4]])
    assert teacher.class_names == shuffled and teacher.num_classes == 5
    expected = Teacher([member(CLASSES)])(views)[:, list(order)]
    torch.testing.assert_close(teacher(views), expected)
    alone = Teacher([member(CLASSES)]).with_classes(shuffled)
    assert maps(alone) == (order, [None])
    torch.testing.assert_close(alone(views), expected)
    assert maps(Teacher([member(CLASSES), member(CLASSES, seed=1)]).with_classes(CLASSES)) == (None, [None, None])


@pytest.mark.parametrize("others", [UNNAMED, None, (*CLASSES[:4], "yak")])
def test_members_that_cannot_be_matched_answer_only_when_told_how(others, views):
    teacher = Teacher([member(CLASSES), member(others, seed=1)]).aligned()
    theirs = "no names" if others in (UNNAMED, None) else others[-1]
    for refused in (lambda: teacher(views), lambda: teacher.class_names, lambda: teacher.with_classes(None)):
        with pytest.raises(ValueError, match=f"net-1 has .*{theirs}.*--class_map identity"):
            refused()
    with pytest.raises(ValueError, match="net-1 differ"):
        teacher.with_classes(CLASSES)
    expected = torch.stack([Teacher([member(None, seed=seed)])(views).exp() for seed in (0, 1)]).mean(0).log()
    for told in (teacher.with_classes(CLASSES, "identity"), teacher.with_classes(None, list(range(5)))):
        torch.testing.assert_close(told(views), expected)
        assert told.class_names == CLASSES


def test_modules_without_names_are_taken_in_order_unless_that_is_shown_to_differ(views):
    plain = member(None, seed=1, kind="module")
    teacher = Teacher([member(CLASSES), plain]).aligned()
    assert teacher(views).shape == (6, 5) and teacher.with_classes(CLASSES).class_map is None
    with pytest.raises(ValueError, match="net-1 differ"):
        teacher.with_classes(OTHER)


def test_class_maps_reach_each_member_by_its_own_names(views):
    teacher = Teacher([member(CLASSES), member(OTHER, ORDER)]).aligned()
    expected = Teacher([member(CLASSES)])(views)[:, [4, 0]].log_softmax(-1)
    for class_map in ([4, 0], ["eel", "ANT"], {"p": "eel", "q": "ant"}, {"p": 4, "q": "ant"}):
        mapped = teacher.with_classes(("p", "q"), class_map)
        torch.testing.assert_close(mapped(views), expected)
        assert mapped.class_names == ("eel", "ant") and mapped.num_classes == 2
    identical = teacher.with_classes(("p", "q", "r", "s", "t"), "identity")
    torch.testing.assert_close(identical(views), Teacher([member(CLASSES)])(views))
    wrong = Teacher([member(CLASSES), member((*CLASSES[:4], "yak"))])
    with pytest.raises(ValueError, match="class map names 'eel'"):
        wrong.with_classes(("p",), {"p": "eel"})


def test_placeholders_in_another_order_are_names(tmp_path, views):
    transformers_folder(tmp_path / "one", UNNAMED, range(5))
    transformers_folder(tmp_path / "two", [UNNAMED[index] for index in ORDER], ORDER)
    expected = load_teacher(str(tmp_path / "one"))(views)
    found = load_teacher(str(tmp_path / "two")).with_classes(UNNAMED)(views)
    torch.testing.assert_close(found, expected)


# ImageNet.


@pytest.fixture(scope="module")
def imagenet():
    """WordNet ids, descriptions, and the names of the dataset on the Hub, of which no two are equal."""
    info, seen = ImageNetInfo(), {}
    described = [info.index_to_description(index) for index in range(1000)]
    apart = [f"{name}2" if seen.setdefault(name, index) != index else name for index, name in enumerate(described)]
    assert "crane2" in apart and len(set(apart)) == 1000
    return {"ids": imagenet_classes(), "descriptions": described, "apart": apart, "no names": None}


@pytest.mark.parametrize("ours", ["ids", "descriptions", "apart"])
@pytest.mark.parametrize("theirs", ["ids", "descriptions", "no names"])
def test_wordnet_ids_are_the_names_of_imagenet(imagenet, ours, theirs):
    large = replace(member(None), model=TinyNet(1000, 0), class_names=imagenet[theirs])
    teacher = Teacher([large]).with_classes(imagenet[ours])
    assert teacher.class_map is None and teacher.num_classes == 1000
    assert wordnet_ids(imagenet[ours]) == list(imagenet_classes())


def test_imagenet_in_another_order(imagenet, views):
    order = torch.randperm(1000, generator=torch.Generator().manual_seed(0)).tolist()
    ids = [imagenet["ids"][index] for index in order]
    members = [replace(member(None), model=TinyNet(1000, 0), class_names=imagenet[names]) for names in list(imagenet)]
    for each in (members[0], members[3]):
        assert Teacher([each]).with_classes(ids).class_map == tuple(order)
    together = Teacher([members[index] for index in (1, 0, 3)]).aligned()
    torch.testing.assert_close(together(views), Teacher(members[:1])(views), atol=1e-5, rtol=1e-5)
    assert maps(together) == (None, [None] * 3)


# What is made with it.


@pytest.fixture
def two(tmp_path):
    """Two folders of one network, in two orders, and a dataset in a third one."""
    timm_folder(tmp_path / "a", CLASSES, range(5))
    timm_folder(tmp_path / "b", OTHER, ORDER)
    names = [CLASSES[index] for index in (1, 4, 0, 3, 2)]
    rows = tiny_dataset(12)
    labels = [names.index(CLASSES[label]) for label in rows["label"]]
    rows = rows.remove_columns("label").add_column("label", labels).cast_column("label", ClassLabel(names=names))
    (tmp_path / "data").mkdir()
    rows.to_parquet(tmp_path / "data" / "train.parquet")
    return [str(tmp_path / "a"), str(tmp_path / "b")], load_dataset(str(tmp_path / "data"), split="train")


def run(monkeypatch, recipe, *flags):
    monkeypatch.setattr(sys, "argv", [f"{recipe}.py", *map(str, flags)])
    load_recipe(recipe).main()


def test_stored_targets_and_their_verification(two, tmp_path, monkeypatch):
    networks, rows = two
    options = {"num_samples": 2, "top_k": 5, "num_workers": 1, "source_name": str(tmp_path / "data")}
    policy = load_policy("rrc", 32)
    for name, members in (("one", networks[0]), ("both", networks)):
        reinforce(rows, load_teacher(members), policy, tmp_path / name, **options)
        run(monkeypatch, "verify", "--dataset_name", tmp_path / name, "--output_json", tmp_path / "found.json")
        assert json.loads((tmp_path / "found.json").read_text())["above_bound"] == 0
    one, both = (stored_rows(tmp_path / name / "rrc") for name in ("one", "both"))
    for row in range(12):
        for first, second in zip(one[row]["teacher_logits"], both[row]["teacher_logits"], strict=True):
            assert dict(zip(first["label"], first["value"], strict=True)) == pytest.approx(
                dict(zip(second["label"], second["value"], strict=True)), abs=1e-2
            )
    alone, together = (ReinforcementConfig.load(tmp_path / name / "rrc") for name in ("one", "both"))
    assert alone.classes.class_map == (1, 4, 0, 3, 2) and "class_map" not in alone.teachers[0]
    assert together.classes.class_map is None
    assert [item["class_map"] for item in together.teachers] == [[1, 4, 0, 3, 2], [3, 2, 1, 0, 4]]
    assert list(together.class_names) == rows.features["label"].names
    reinforce(rows, load_teacher(networks), policy, tmp_path / "both", **options)  # goes on with the same
    with pytest.raises(ValueError, match="made differently: .*teachers"):
        reinforce(rows, load_teacher(networks[::-1]), policy, tmp_path / "both", **options)


def test_evaluation_of_an_ensemble_in_two_orders(two, tmp_path, monkeypatch):
    networks, _ = two
    found = []
    for models in (networks[1:], networks):
        out = tmp_path / "found.json"
        flags = ["--dataset_name", tmp_path / "data", "--split", "train", "--device", "cpu", "--num_workers", 0]
        run(monkeypatch, "evaluate", "--model_name_or_path", *models, *flags, "--output_json", out)
        found.append(json.loads(out.read_text()))
    for key in ("accuracy", "nll", "brier"):
        assert found[0][key] == pytest.approx(found[1][key]), key


def test_an_online_teacher_has_the_classes_of_the_training_data(two, tmp_path, views):
    networks, rows = two
    names = rows.features["label"].names
    data = AugmentedDataset(ImageSource.of(rows), load_policy("rrc", 32))
    args = KDTrainingArguments(str(tmp_path / "out"), use_cpu=True, method="online")
    student = create_student("test_resnet", 5, 32, names)
    trainer = KDTrainer(student, args, data, teacher=load_teacher(networks))
    assert list(trainer.teacher.class_names) == names
    expected = load_teacher(networks[0])(views)[:, [1, 4, 0, 3, 2]]
    torch.testing.assert_close(trainer.teacher(views), expected, atol=1e-5, rtol=1e-5)
    told = load_teacher(networks).with_classes(("v", "w", "x", "y", "z"), "identity")
    assert KDTrainer(student, args, data, teacher=told).teacher.class_names == CLASSES
    with pytest.raises(ValueError, match=r"Teacher \(7\)"):
        KDTrainer(student, args, data, teacher=tiny_teacher(7))


# Several processes.


def refused_together(folder, data):
    """Each process has a network of its own, as one with random weights would be."""
    own = int(os.environ["RANK"])
    teacher = load_teacher([net(seed=7), nn.Sequential(net(seed=own))], preprocessing=PREPROCESSING)
    with pytest.raises(ValueError, match="Sequential has the weights .* in process 0, but .* in process 1"):
        reinforce(data, teacher, load_policy("rrc", 32), folder, num_samples=1, top_k=2)
    assert not folder.exists()
    args = KDTrainingArguments(str(folder), use_cpu=True, method="online")
    views = AugmentedDataset(ImageSource.of(data), load_policy("rrc", 32))
    with pytest.raises(ValueError, match="different teachers"):
        KDTrainer(net(), args, views, teacher=teacher)
    assert not folder.exists()


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_processes_with_different_teachers_stop_before_anything_is_written(tmp_path):
    in_processes(2, refused_together, tmp_path / "out", tiny_dataset(8))
