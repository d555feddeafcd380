"""Students: made by name or from saved weights, saved so that transformers, timm and this package read them back."""

import copy

import pytest
import timm
import torch
from timm.data import create_transform, resolve_model_data_config
from timm.models import save_for_hf
from tiny import tiny_dataset
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
)

from hf_reinforce import AugmentedDataset, ImageSource, KDTrainer, KDTrainingArguments, load_policy, load_teacher
from hf_reinforce.augmentations.policies import evaluation_policy
from hf_reinforce.models.preprocessing import Preprocessing
from hf_reinforce.models.students import WHOLE_IMAGE_SIZE, create_student, student_preprocessing

NAMES = ("ant", "bee", "cat")
OTHERS = ("dog", "eel", "fox", "gnu")


def images(size=32, seed=0):
    return torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(seed))


def logits(model, inputs):
    model = copy.deepcopy(model).to(memory_format=torch.contiguous_format)  # another order of the sums otherwise
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


# -- saved by KDTrainer -------------------------------------------------------------------------------------------


@pytest.fixture
def trained(tmp_path):
    """`trained(student, **options)`: a trainer after a step on whole images of five classes."""

    def trained(student, preprocessing=None, size=32, evaluation=None, **options):
        source = ImageSource.of(tiny_dataset(8))
        options = {"max_steps": 1, "use_cpu": True, "save_strategy": "no", "disable_tqdm": True, **options}
        args = KDTrainingArguments(str(tmp_path / "run"), method="plain", per_device_train_batch_size=4, **options)
        train = AugmentedDataset(source, load_policy("rrc", size))
        trainer = KDTrainer(student, args, train, evaluation, preprocessing=preprocessing)
        trainer.train()
        return trainer

    return trained


CLASSES = ("ant", "bee", "cat", "dog", "eel")


def of_timm(folder):
    """A student that timm itself saved, with other classes."""
    torch.manual_seed(3)
    original = timm.create_model("test_resnet", num_classes=9, drop_path_rate=0.1)
    save_for_hf(original, folder, model_config={"label_names": list("abcdefghi")}, safe_serialization=True)
    return create_student(str(folder), 5, 32, CLASSES)


STUDENTS = {
    "by name": lambda folder: create_student("test_efficientnet", 5, 32, CLASSES),
    "photos": lambda folder: create_student("test_resnet", 5, 176, CLASSES),
    "transformer": lambda folder: create_student("test_vit", 5, 32, CLASSES, {"img_size": 32}),
    "saved by timm": of_timm,
}


@pytest.mark.parametrize("ema_decay", [0.0, 0.5], ids=["weights", "average"])
@pytest.mark.parametrize("kind", STUDENTS)
def test_what_is_saved_loads_in_both_libraries(kind, ema_decay, trained, tmp_path):
    student = STUDENTS[kind](tmp_path / "original")
    size = student_preprocessing(student).image_size
    trainer = trained(student, size=size, ema_decay=ema_decay, max_steps=2)
    trainer.save_model(str(tmp_path / "saved"))
    expected = logits(trainer.ema.module if ema_decay else student, images(size))
    in_transformers = AutoModelForImageClassification.from_pretrained(tmp_path / "saved")
    in_timm = timm.create_model(f"local-dir:{tmp_path / 'saved'}", pretrained=True).eval()
    assert torch.equal(logits(in_transformers, images(size)), expected)
    with torch.no_grad():
        assert torch.equal(in_timm(images(size)), expected)
    assert tuple(in_transformers.config.id2label.values()) == tuple(in_timm.pretrained_cfg["label_names"]) == CLASSES
    assert [path.suffix for path in (tmp_path / "saved").iterdir() if path.stem == "model"] == [".safetensors"]


@pytest.mark.parametrize("kind", STUDENTS)
def test_both_libraries_see_what_evaluation_sees(kind, trained, tmp_path):
    student = STUDENTS[kind](tmp_path / "original")
    own = student_preprocessing(student)
    trained(student, size=own.image_size).save_model(str(tmp_path / "saved"))
    in_timm = resolve_model_data_config(timm.create_model(f"local-dir:{tmp_path / 'saved'}", pretrained=True))
    processor = AutoImageProcessor.from_pretrained(tmp_path / "saved")
    assert {key: tuple(v) if isinstance(v, list) else v for key, v in processor.data_config.items()} == {
        key: tuple(v) if isinstance(v, list) else v for key, v in in_timm.items()
    }
    assert tuple(in_timm["input_size"]) == (3, own.image_size, own.image_size)
    assert (tuple(in_timm["mean"]), tuple(in_timm["std"])) == (own.mean, own.std)
    assert (in_timm["crop_pct"], in_timm["interpolation"]) == (own.crop_pct, own.interpolation)
    photo = tiny_dataset(1, (40, 60))[0]["image"].convert("RGB")
    expected = evaluated(photo, own)
    torch.testing.assert_close(create_transform(**in_timm)(photo)[None], expected, rtol=0, atol=0.1)
    torch.testing.assert_close(processor(photo)["pixel_values"], expected, rtol=0, atol=0.1)


def evaluated(photo, preprocessing):
    """What a student sees of a photo in evaluation."""
    from torchvision.transforms.v2 import functional as F

    policy = evaluation_policy(**preprocessing.framing())
    params = policy.sample(0, 0, 0, photo.height, photo.width)
    return preprocessing(policy.apply(F.pil_to_tensor(photo), params)[None])


def test_timm_gives_a_saved_student_another_head(trained, tmp_path):
    student = create_student("test_resnet", 5, 32, CLASSES)
    trained(student).save_model(str(tmp_path / "saved"))
    other = timm.create_model(f"local-dir:{tmp_path / 'saved'}", pretrained=True, num_classes=7, in_chans=1).eval()
    assert other(images()[:, :1]).shape == (2, 7)
    weights = student.timm_model.state_dict()
    changed = {name for name, value in other.state_dict().items() if not torch.equal(value, weights[name])}
    assert changed == {"conv1.0.weight", "fc.weight", "fc.bias"}


def test_preprocessing_that_was_trained_with_is_saved(trained, tmp_path):
    chosen = Preprocessing(48, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "bicubic", 0.75)
    trained(create_student("test_resnet", 5, 32, CLASSES), chosen).save_model(str(tmp_path / "saved"))
    assert load_teacher(str(tmp_path / "saved")).members[0].preprocessing == chosen


def test_checkpoints_of_a_wrapped_student_are_read(trained, tmp_path):
    """A name that did not fit would leave the weights as they are, without an error."""
    trainer = trained(
        create_student("test_resnet", 5, 32, CLASSES),
        evaluation=AugmentedDataset(ImageSource.of(tiny_dataset(8)), evaluation_policy(32)),
        max_steps=2,
        save_strategy="steps",
        save_steps=1,
        eval_strategy="steps",
        eval_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="num_samples",  # the same at every step, so the first stays the best
    )
    fresh = create_student("test_resnet", 5, 32, CLASSES)
    trainer._load_from_checkpoint(str(tmp_path / "run" / "checkpoint-2"), fresh)
    for step, model in ((1, trainer.model), (2, fresh)):
        stored = timm.create_model(f"local-dir:{tmp_path / 'run' / f'checkpoint-{step}'}", pretrained=True)
        found = model.timm_model.state_dict()
        assert all(torch.equal(value, found[name]) for name, value in stored.state_dict().items())
    assert not torch.equal(trainer.model.timm_model.fc.weight, fresh.timm_model.fc.weight)


@pytest.mark.parametrize("size", [32, 168])
def test_student_of_transformers_own_kind_is_saved_with_its_preprocessing(size, trained, tmp_path):
    shape = {"embedding_size": 8, "hidden_sizes": [8, 8], "depths": [1, 1], "layer_type": "basic"}
    ResNetForImageClassification(ResNetConfig(**shape, num_labels=3)).save_pretrained(tmp_path / "original")
    student = create_student(str(tmp_path / "original"), 5, size, CLASSES)
    trainer = trained(student, size=size)
    trainer.save_model(str(tmp_path / "saved"))
    in_transformers = AutoModelForImageClassification.from_pretrained(tmp_path / "saved")
    assert torch.equal(logits(in_transformers, images(size)), logits(student, images(size)))
    assert tuple(in_transformers.config.id2label.values()) == CLASSES
    own = student_preprocessing(student, size)
    assert own.crop_pct == (1.0 if size == 32 else 0.875)
    photo = tiny_dataset(1, (40, 60))[0]["image"].convert("RGB")
    processor = AutoImageProcessor.from_pretrained(tmp_path / "saved")
    torch.testing.assert_close(
        processor(photo, return_tensors="pt")["pixel_values"], evaluated(photo, own), rtol=0, atol=0.1
    )
    again = create_student(str(tmp_path / "saved"), 5, size, CLASSES)
    assert student_preprocessing(again) == own
    assert load_teacher(str(tmp_path / "saved")).members[0].preprocessing.mean == own.mean
