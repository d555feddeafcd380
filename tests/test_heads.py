"""Heads of pretrained students: kept, reordered by name, or made anew; and what their weights must have."""

import logging

import pytest
import timm
import torch
import transformers
from safetensors.torch import load_file, save_file
from tiny import NAMES

from hf_reinforce.models.heads import class_dimensions
from hf_reinforce.models.students import create_student, saved_weights

C, SIZE = 5, 32
OWN = NAMES[:C]
OTHER_ORDER = ("dog", "ant", "eel", "bee", "cat")
SHAPE = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
NATIVE = {
    "resnet": lambda: (
        "ResNetForImageClassification",
        transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], layer_type="basic"),
    ),
    "vit": lambda: ("ViTForImageClassification", transformers.ViTConfig(image_size=SIZE, patch_size=8, **SHAPE)),
    "deit with a teacher's head": lambda: (
        "DeiTForImageClassificationWithTeacher",
        transformers.DeiTConfig(image_size=SIZE, patch_size=8, **SHAPE),
    ),
    "mobilenet": lambda: (
        "MobileNetV2ForImageClassification",
        transformers.MobileNetV2Config(depth_multiplier=0.25, image_size=SIZE),
    ),
    "levit": lambda: ("LevitForImageClassificationWithTeacher", transformers.LevitConfig(image_size=64)),
}
TIMM = {"test_resnet": {}, "test_efficientnet": {}, "test_vit": {"img_size": SIZE}, "levit_128s": {}}
KINDS = [*NATIVE, *TIMM]


def save_student(kind, folder, names=OWN):
    """A saved network of a kind, for which something is known about each class."""
    torch.manual_seed(0)
    if kind in TIMM:
        model = create_student(kind, len(names), SIZE, names, TIMM[kind])
        model.save_pretrained(folder, state_dict=saved_weights(model, model.state_dict()))
        return model
    name, config = NATIVE[kind]()
    config.id2label, config.label2id = dict(enumerate(names)), {label: index for index, label in enumerate(names)}
    model = getattr(transformers, name)(config)
    model.save_pretrained(folder)
    return model


def size_of(kind):
    return {"levit": 64, "levit_128s": 224}.get(kind, SIZE)


def logits(model, size):
    views = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model.eval()(views).logits


def said(caplog):
    return [record.getMessage() for record in caplog.records if record.name.startswith("hf_reinforce.models.heads")]


@pytest.mark.parametrize("kind", KINDS)
def test_a_head_follows_the_names(kind, tmp_path, caplog):
    original = save_student(kind, tmp_path / "saved")
    with caplog.at_level(logging.INFO, "hf_reinforce"):
        student = create_student(str(tmp_path / "saved"), C, size_of(kind), OTHER_ORDER)
    places = [OWN.index(name) for name in OTHER_ORDER]
    expected = logits(original, size_of(kind))[:, places]
    torch.testing.assert_close(logits(student, size_of(kind)), expected, rtol=1e-4, atol=1e-5)
    assert list(student.config.id2label.values()) == list(OTHER_ORDER)
    (line,) = said(caplog)
    assert "put into the order of the dataset by name" in line and str(tmp_path) in line


@pytest.mark.parametrize("kind", ["vit", "test_resnet"])
@pytest.mark.parametrize(
    ("theirs", "names", "kept", "words"),
    [
        (OWN, OWN, True, "keeps its head of 5 classes"),
        (OWN, [name.upper() for name in OWN], True, "keeps its head of 5 classes"),
        ([f"LABEL_{index}" for index in range(C)], OWN, True, "nothing says what its 5 classes are"),
        (OWN, None, True, "nothing says what its 5 classes are"),
        (OWN, ("ant", "bee", "cat", "dog", "unicorn"), False, "gets a new head: its 5 classes (ant, bee, cat"),
        (OWN, NAMES[5:10], False, "are not the 5 of the dataset (fox"),
    ],
)
def test_what_becomes_of_a_head_of_as_many_classes(kind, theirs, names, kept, words, tmp_path, caplog):
    original = save_student(kind, tmp_path / "saved", theirs)
    with caplog.at_level(logging.INFO, "hf_reinforce"):
        student = create_student(str(tmp_path / "saved"), C, SIZE, names)
    (line,) = said(caplog)
    assert words in line
    before, after = original.state_dict(), student.state_dict()
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert (not changed) == kept and changed <= set(class_dimensions(student))  # a new bias may be zero, as before
    assert all(after[name].isfinite().all() for name in changed)
    assert student.config.id2label == dict(enumerate(names or map("LABEL_{}".format, range(C))))


@pytest.mark.parametrize("kind", ["vit", "test_resnet"])
def test_a_head_of_another_number_of_classes_is_new_and_says_so(kind, tmp_path, caplog):
    save_student(kind, tmp_path / "saved")
    with caplog.at_level(logging.INFO, "hf_reinforce"):
        student = create_student(str(tmp_path / "saved"), 7, SIZE, NAMES[:7])
    assert logits(student, SIZE).shape == (2, 7)
    (line,) = said(caplog)
    assert "gets a new head for 7 classes (its checkpoint has 5)" in line and ".weight" in line


def test_a_body_without_a_head_is_a_student_and_says_so(tmp_path, caplog):
    torch.manual_seed(0)
    body = transformers.ViTModel(transformers.ViTConfig(image_size=SIZE, patch_size=8, **SHAPE))
    body.save_pretrained(tmp_path / "body")  # with a pooler, which no classifier has
    with caplog.at_level(logging.INFO, "hf_reinforce"):
        student = create_student(str(tmp_path / "body"), C, SIZE, OWN)
    assert torch.equal(student.vit.layernorm.weight, body.layernorm.weight)
    weights = body.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in student.vit.state_dict().items())
    (line,) = said(caplog)
    assert "(its checkpoint has none)" in line and "classifier.weight" in line and "classifier.bias" in line


def change_weights(folder, change):
    file = folder / "model.safetensors"
    state = load_file(file)
    save_file(change(state), file, metadata={"format": "pt"})


@pytest.mark.parametrize("kind", ["resnet", "vit", "test_resnet"])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: {f"module.{name}": value for name, value in state.items()}, "missing"),
        (lambda state: dict(sorted(state.items())[len(state) // 2 :]), "missing"),
        (lambda state: {n: v[:1].clone() if v.ndim == 4 else v for n, v in state.items()}, "of another shape"),
    ],
)
def test_a_body_whose_weights_do_not_fit_is_refused(kind, change, words, tmp_path):
    save_student(kind, tmp_path / "saved")
    change_weights(tmp_path / "saved", change)
    with pytest.raises(ValueError, match=words) as error:
        create_student(str(tmp_path / "saved"), C, SIZE, OWN)
    assert str(tmp_path / "saved") in str(error.value)


def test_arguments_that_no_network_takes(tmp_path):
    with pytest.raises(ValueError, match=r"timm cannot make a test_resnet .*nonsense.*--model_args"):
        create_student("test_resnet", C, SIZE, OWN, {"nonsense": 1})
    save_student("resnet", tmp_path / "saved")
    with pytest.raises(ValueError, match=r"takes no timm arguments .*--model_args"):
        create_student(str(tmp_path / "saved"), C, SIZE, OWN, {"drop_path_rate": 0.1})


def test_the_rows_of_the_classes_are_found():
    student = create_student("levit_128s", C, 224, OWN)
    assert set(class_dimensions(student)) == {
        f"timm_model.{head}.linear.{part}" for head in ("head", "head_dist") for part in ("weight", "bias")
    }
    assert timm.create_model("levit_128s", num_classes=C).num_classes == C
