"""Heads of pretrained students: kept, reordered by name, or made anew; and what their weights must have."""

import logging

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tiny import NAMES

from hf_reinforce.models.students import create_student, saved_weights

C, SIZE = 5, 32
OWN = NAMES[:C]
OTHER_ORDER = ("dog", "ant", "eel", "bee", "cat")
SHAPE = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
TRANSFORMER = {"image_size": SIZE, "patch_size": 8, **SHAPE}
RESNET = {"embedding_size": 8, "hidden_sizes": [8, 12], "depths": [1, 1], "layer_type": "basic"}
NATIVE = {  # class, configuration and its options
    "resnet": ("ResNetForImageClassification", "ResNetConfig", RESNET),
    "vit": ("ViTForImageClassification", "ViTConfig", TRANSFORMER),
    "deit with a teacher's head": ("DeiTForImageClassificationWithTeacher", "DeiTConfig", TRANSFORMER),
    "mobilenet": (
        "MobileNetV2ForImageClassification",
        "MobileNetV2Config",
        {"depth_multiplier": 0.25, "image_size": SIZE},
    ),
    "levit": ("LevitForImageClassificationWithTeacher", "LevitConfig", {"image_size": 64}),
}
TIMM = {"test_resnet": {}, "test_efficientnet": {}, "test_vit": {"img_size": SIZE}, "levit_128s": {}}


def save_student(kind, folder, names=OWN):
    """A saved network of a kind, for which something is known about each class."""
    torch.manual_seed(0)
    if kind in TIMM:
        model = create_student(kind, len(names), SIZE, names, TIMM[kind])
        model.save_pretrained(folder, state_dict=saved_weights(model, model.state_dict()))
        return model
    name, config, options = NATIVE[kind]
    labels = {"id2label": dict(enumerate(names)), "label2id": {label: index for index, label in enumerate(names)}}
    model = getattr(transformers, name)(getattr(transformers, config)(**options, **labels))
    model.save_pretrained(folder)
    return model


def size_of(kind):
    return {"levit": 64, "levit_128s": 224}.get(kind, SIZE)


def logits(model, size):
    views = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model.eval()(views).logits


@pytest.fixture
def make(tmp_path, caplog):
    """`make(kind, ...)`: a student of a saved network, and the line about its head."""

    def make(count, size, names):
        with caplog.at_level(logging.INFO, "hf_reinforce"):
            student = create_student(str(tmp_path / "saved"), count, size, names)
        (line,) = [each.getMessage() for each in caplog.records if each.name == "hf_reinforce.models.students"]
        assert str(tmp_path / "saved") in line
        assert student.config.id2label == dict(enumerate(names or map("LABEL_{}".format, range(count))))
        return student, line

    return make


@pytest.mark.parametrize("kind", [*NATIVE, *TIMM])
def test_a_head_follows_the_names(kind, tmp_path, make):
    original = save_student(kind, tmp_path / "saved")
    student, line = make(C, size_of(kind), OTHER_ORDER)
    expected = logits(original, size_of(kind))[:, [OWN.index(name) for name in OTHER_ORDER]]
    torch.testing.assert_close(logits(student, size_of(kind)), expected, rtol=1e-4, atol=1e-5)
    assert "put into the order of the dataset by name" in line


@pytest.mark.parametrize("kind", ["vit", "test_resnet"])
@pytest.mark.parametrize(
    ("theirs", "names", "kept", "words"),
    [
        (OWN, OWN, True, "keeps its head of 5 classes"),
        (OWN, [name.upper() for name in OWN], True, "keeps its head of 5 classes"),
        ([f"LABEL_{index}" for index in range(C)], OWN, True, "nothing says what its 5 classes are"),
        (OWN, None, True, "nothing says what its 5 classes are"),
        (OWN, ("ant", "bee", "cat", "dog", "unicorn"), False, "gets a new head: its 5 classes (ant, bee, cat"),
        (OWN, NAMES[5:10], False, "are not those of the dataset (fox"),
        (OWN, NAMES[:7], False, "gets a new head for 7 classes (its checkpoint has 5)"),
    ],
)
def test_what_becomes_of_a_head(kind, theirs, names, kept, words, tmp_path, make):
    original = save_student(kind, tmp_path / "saved", theirs)
    count = len(names or theirs)
    student, line = make(count, SIZE, names)
    assert words in line
    before, after = original.state_dict(), student.state_dict()
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert (not changed) == kept and all(len(after[name]) == count for name in changed), "only the head may be new"
    assert all(after[name].isfinite().all() for name in changed)


def test_a_body_without_a_head_is_a_student_and_says_so(tmp_path, make):
    torch.manual_seed(0)
    body = transformers.ViTModel(transformers.ViTConfig(**TRANSFORMER))
    body.save_pretrained(tmp_path / "saved")  # with a pooler, which no classifier has
    student, line = make(C, SIZE, OWN)
    weights = body.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in student.vit.state_dict().items())
    assert "(its checkpoint has none)" in line and "classifier.weight" in line and "classifier.bias" in line


@pytest.mark.parametrize("kind", ["resnet", "vit", "test_resnet"])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: {f"module.{name}": value for name, value in state.items()}, "missing"),
        (lambda state: {n: v[:1].clone() if v.ndim == 4 else v for n, v in state.items()}, "of another shape"),
    ],
)
def test_a_body_whose_weights_do_not_fit_is_refused(kind, change, words, tmp_path):
    save_student(kind, tmp_path / "saved")
    file = tmp_path / "saved" / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"saved are not those of its network.*{words}"):
        create_student(str(tmp_path / "saved"), C, SIZE, OWN)


def test_a_network_of_transformers_takes_no_arguments_of_timm(tmp_path):
    save_student("resnet", tmp_path / "saved")
    with pytest.raises(ValueError, match=r"takes no timm arguments .*--model_args"):
        create_student(str(tmp_path / "saved"), C, SIZE, OWN, {"drop_path_rate": 0.1})
