"""Students: made by name or from saved weights, saved so that transformers and this package read them back."""

import pytest
import timm
import torch
from transformers import AutoModelForImageClassification, ResNetConfig, ResNetForImageClassification

from hf_reinforce import load_teacher
from hf_reinforce.classifiers import Preprocessing
from hf_reinforce.students import WHOLE_IMAGE_SIZE, create_student, student_preprocessing

NAMES = ("ant", "bee", "cat")
OTHERS = ("dog", "eel", "fox", "gnu")


def images(size=32, seed=0):
    return torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(seed))


def logits(model, inputs):
    with torch.no_grad():
        return model.eval()(inputs).logits


@pytest.fixture
def saved(tmp_path):
    """A folder with a timm student of three classes, and the student."""
    torch.manual_seed(0)
    student = create_student("test_resnet", 3, 32, NAMES)
    student.save_pretrained(tmp_path / "student")
    return str(tmp_path / "student"), student


@pytest.mark.parametrize("architecture", ["test_resnet", "test_efficientnet"])
def test_saved_student_loads_with_transformers(architecture, tmp_path):
    student = create_student(architecture, 3, 32, NAMES)
    student.save_pretrained(tmp_path)
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert torch.equal(logits(loaded, images()), logits(student, images()))
    assert loaded.config.id2label == dict(enumerate(NAMES))
    assert loaded.config.label2id == {name: index for index, name in enumerate(NAMES)}
    assert loaded.config.num_labels == 3


@pytest.mark.parametrize("architecture", ["test_resnet", "test_efficientnet"])
def test_saved_student_is_a_teacher(architecture, tmp_path):
    student = create_student(architecture, 3, 32, NAMES)
    student.save_pretrained(tmp_path)
    teacher = load_teacher(str(tmp_path))
    assert teacher.class_names == NAMES and teacher.num_classes == 3
    found, expected = teacher.members[0].preprocessing, student_preprocessing(student, 32)
    assert found == expected
    known = timm.get_pretrained_cfg(architecture)
    assert (found.mean, found.std, found.image_size) == (known.mean, known.std, 32)
    views = (images() * 255).round()
    answer = logits(student, expected(views)).log_softmax(-1)
    torch.testing.assert_close(teacher(views), answer, rtol=1e-5, atol=1e-6)


def test_small_images_are_evaluated_whole_and_photos_by_their_centre():
    small = create_student("test_resnet", 3, WHOLE_IMAGE_SIZE)
    large = create_student("test_resnet", 3, WHOLE_IMAGE_SIZE + 32)
    assert student_preprocessing(small, WHOLE_IMAGE_SIZE).crop_pct == 1.0
    assert student_preprocessing(large, WHOLE_IMAGE_SIZE + 32).crop_pct == 0.875
    assert student_preprocessing(small, 64).image_size == 64


def test_preprocessing_of_a_module_that_says_nothing_is_imagenets():
    assert student_preprocessing(torch.nn.Linear(1, 1), 48) == Preprocessing(
        48, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "bilinear", 1.0
    )


def test_names_default_to_numbers(tmp_path):
    student = create_student("test_resnet", 4, 32)
    assert student.config.id2label == {index: f"LABEL_{index}" for index in range(4)}
    assert logits(student, images()).shape == (2, 4)


def test_random_weights_are_random():
    first, second = create_student("test_resnet", 3, 32), create_student("test_resnet", 3, 32)
    assert not torch.equal(logits(first, images()), logits(second, images()))


def test_model_args_reach_timm(saved, tmp_path):
    def rates(model):
        found = {module.drop_prob for module in model.modules() if type(module).__name__ == "DropPath"}
        return max(found, default=0.0)

    student = create_student("test_resnet", 3, 32, NAMES, {"drop_path_rate": 0.5})
    assert rates(student) > 0 == rates(create_student("test_resnet", 3, 32, NAMES))
    student.save_pretrained(tmp_path / "dropping")
    assert rates(AutoModelForImageClassification.from_pretrained(tmp_path / "dropping")) == rates(student)
    folder, original = saved
    again = create_student(folder, 3, 32, NAMES, {"drop_path_rate": 0.5})
    assert rates(again) == rates(student)
    assert torch.equal(logits(again, images()), logits(original, images()))


def test_saved_student_goes_on_with_the_same_classes(saved):
    folder, student = saved
    again = create_student(folder, 3, 48, NAMES)
    assert torch.equal(logits(again, images()), logits(student, images()))
    assert student_preprocessing(again, 48).mean == student_preprocessing(student, 32).mean


def test_saved_student_gets_a_new_head_for_other_classes(saved, tmp_path):
    folder, student = saved
    other = create_student(folder, 4, 48, OTHERS)
    assert logits(other, images()).shape == (2, 4)
    before, after = student.state_dict(), other.state_dict()
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert changed and all(after[name].shape[:1] == (4,) for name in changed), "only the head is new"
    other.save_pretrained(tmp_path / "other")
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path / "other")
    assert torch.equal(logits(loaded, images()), logits(other, images()))
    teacher = load_teacher(str(tmp_path / "other"))
    assert teacher.class_names == OTHERS and teacher.members[0].preprocessing.image_size == 48


def test_student_of_transformers_own_kind(tmp_path):
    shape = {"embedding_size": 8, "hidden_sizes": [8, 8], "depths": [1, 1], "layer_type": "basic"}
    native = ResNetForImageClassification(ResNetConfig(**shape, num_labels=3))
    native.save_pretrained(tmp_path)
    same = create_student(str(tmp_path), 3, 32, NAMES)
    assert torch.equal(logits(same, images()), logits(native, images()))
    other = create_student(str(tmp_path), 4, 32, OTHERS)
    assert logits(other, images()).shape == (2, 4) and list(other.config.id2label.values()) == list(OTHERS)
    assert torch.equal(
        other.resnet.embedder.embedder.convolution.weight, native.resnet.embedder.embedder.convolution.weight
    )


def test_local_copy_of_a_hub_student(saved, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_REINFORCE_LOCAL", str(tmp_path))
    student = create_student("someone/student", 3, 32, NAMES)
    assert torch.equal(logits(student, images()), logits(saved[1], images()))


def test_unknown_students():
    with pytest.raises(ValueError, match=r"'resnet51' is neither a timm architecture .* has the form owner/name"):
        create_student("resnet51", 3, 32)
    with pytest.raises(ValueError, match="There is no image classifier 'nobody/nothing'"):
        create_student("nobody/nothing", 3, 32)


def test_folder_that_holds_no_student(tmp_path):
    with pytest.raises(ValueError, match=tmp_path.name):
        create_student(str(tmp_path), 3, 32)
