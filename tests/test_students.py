"""Students: made by name or from saved weights, saved so that transformers, timm and this package read them back."""

import copy

import pytest
import timm
import torch
from timm.data import create_transform, resolve_model_data_config
from timm.models import save_for_hf
from tiny import tiny_dataset
from torchvision.transforms.v2 import functional as F
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

CLASSES = ("ant", "bee", "cat", "dog", "eel")
OTHERS = ("dog", "eel", "fox", "gnu")


def images(size=32, seed=0):
    return torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(seed))


def logits(model, inputs):
    model = copy.deepcopy(model).to(memory_format=torch.contiguous_format)  # another order of the sums otherwise
    with torch.no_grad():
        output = model.eval()(inputs)
    return getattr(output, "logits", output)


@pytest.fixture
def saved(tmp_path):
    """A folder with a timm student of five classes, and the student."""
    torch.manual_seed(0)
    student = create_student("test_resnet", 5, 32, CLASSES)
    student.save_pretrained(tmp_path / "student")
    return str(tmp_path / "student"), student


@pytest.mark.parametrize("architecture", ["test_resnet", "test_efficientnet"])
def test_a_saved_student_is_a_teacher(architecture, tmp_path):
    student = create_student(architecture, 5, 32, CLASSES)
    student.save_pretrained(tmp_path)
    teacher = load_teacher(str(tmp_path))
    assert teacher.class_names == CLASSES and teacher.num_classes == 5
    found, known = teacher.members[0].preprocessing, timm.get_pretrained_cfg(architecture)
    assert found == student_preprocessing(student, 32)
    assert (found.mean, found.std, found.image_size) == (known.mean, known.std, 32)
    views = (images() * 255).round()
    answer = logits(student, found(views)).log_softmax(-1)
    torch.testing.assert_close(teacher(views), answer, rtol=1e-5, atol=1e-6)


def test_small_images_are_evaluated_whole_and_photos_by_their_centre():
    for size, share in ((WHOLE_IMAGE_SIZE, 1.0), (WHOLE_IMAGE_SIZE + 32, 0.875)):
        student = create_student("test_resnet", 3, size)
        assert student_preprocessing(student, size).crop_pct == share
        assert student_preprocessing(student, 64).image_size == 64
        assert student.config.id2label == {index: f"LABEL_{index}" for index in range(3)}
    nothing_said = student_preprocessing(torch.nn.Linear(1, 1), 48)
    assert nothing_said == Preprocessing(48, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "bilinear", 1.0)


def test_model_args_reach_timm(saved, tmp_path):
    def rates(model):
        found = {module.drop_prob for module in model.modules() if type(module).__name__ == "DropPath"}
        return max(found, default=0.0)

    folder, original = saved
    student = create_student("test_resnet", 5, 32, CLASSES, {"drop_path_rate": 0.5})
    assert rates(student) > 0 == rates(original)
    student.save_pretrained(tmp_path / "dropping")
    assert rates(AutoModelForImageClassification.from_pretrained(tmp_path / "dropping")) == rates(student)
    again = create_student(folder, 5, 32, CLASSES, {"drop_path_rate": 0.5})
    assert rates(again) == rates(student)
    assert torch.equal(logits(again, images()), logits(original, images()))
    with pytest.raises(ValueError, match=r"timm cannot make a test_resnet .*nonsense.*--model_args"):
        create_student("test_resnet", 5, 32, CLASSES, {"nonsense": 1})


def test_a_saved_student_goes_on_with_the_same_classes_or_gets_a_new_head(saved, tmp_path, monkeypatch):
    folder, student = saved
    monkeypatch.setenv("HF_REINFORCE_LOCAL", str(tmp_path))
    for name in (folder, "someone/student"):  # the latter by its copy on this machine
        again = create_student(name, 5, 48, CLASSES)
        assert torch.equal(logits(again, images()), logits(student, images()))
    assert student_preprocessing(again, 48).mean == student_preprocessing(student, 32).mean
    create_student(folder, 4, 48, OTHERS).save_pretrained(tmp_path / "other")
    teacher = load_teacher(str(tmp_path / "other"))
    assert teacher.class_names == OTHERS and teacher.members[0].preprocessing.image_size == 48


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet51", r"'resnet51' is neither a timm architecture .* has the form owner/name"),
        ("nobody/nothing", "no image classifier 'nobody/nothing'"),
        ("FOLDER", "no image classifier .*neither a folder with a config.json"),
    ],
)
def test_unknown_students(name, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        create_student(str(tmp_path) if name == "FOLDER" else name, 3, 32)


@pytest.mark.parametrize(("num_labels", "names"), [(0, None), (3, ["cat"])])
def test_a_student_has_a_name_for_each_class(num_labels, names):
    with pytest.raises(ValueError, match="num_labels must be at least 1 and the number of class_names"):
        create_student("resnet10t", num_labels, 32, names)


# Saved by KDTrainer.


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


@pytest.mark.parametrize("kind", STUDENTS)
def test_what_is_saved_loads_and_sees_the_same_in_both_libraries(kind, trained, tmp_path):
    student = STUDENTS[kind](tmp_path / "original")
    own = student_preprocessing(student)
    size, ema = own.image_size, 0.5 if kind == "by name" else 0.0
    trainer = trained(student, size=size, ema_decay=ema, max_steps=2)
    trainer.save_model(str(tmp_path / "saved"))
    expected = logits(trainer.ema.module if ema else student, images(size))
    in_transformers = AutoModelForImageClassification.from_pretrained(tmp_path / "saved")
    in_timm = timm.create_model(f"local-dir:{tmp_path / 'saved'}", pretrained=True).eval()
    assert torch.equal(logits(in_transformers, images(size)), expected)
    assert torch.equal(logits(in_timm, images(size)), expected)
    assert tuple(in_transformers.config.id2label.values()) == tuple(in_timm.pretrained_cfg["label_names"]) == CLASSES
    assert in_transformers.config.label2id == {name: index for index, name in enumerate(CLASSES)}
    assert [path.suffix for path in (tmp_path / "saved").iterdir() if path.stem == "model"] == [".safetensors"]
    cfg, processor = resolve_model_data_config(in_timm), AutoImageProcessor.from_pretrained(tmp_path / "saved")
    listed = lambda data: {key: tuple(value) if isinstance(value, list) else value for key, value in data.items()}
    assert listed(processor.data_config) == listed(cfg)
    assert (
        listed(cfg).items()
        >= {
            **{"input_size": (3, size, size), "mean": own.mean, "std": own.std},
            **{"crop_pct": own.crop_pct, "interpolation": own.interpolation},
        }.items()
    )
    photo = tiny_dataset(1, (40, 60))[0]["image"].convert("RGB")
    view = evaluated(photo, own)
    torch.testing.assert_close(create_transform(**cfg)(photo)[None], view, rtol=0, atol=0.1)
    torch.testing.assert_close(processor(photo)["pixel_values"], view, rtol=0, atol=0.1)


def evaluated(photo, preprocessing):
    """What a student sees of a photo in evaluation."""
    policy = evaluation_policy(**preprocessing.framing())
    params = policy.sample(0, 0, 0, photo.height, photo.width)
    return preprocessing(policy.apply(F.pil_to_tensor(photo), params)[None])


def test_timm_gives_a_saved_student_another_head(saved):
    folder, student = saved
    student.save_pretrained(folder, state_dict=student.timm_model.state_dict())
    other = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=7, in_chans=1).eval()
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
    own = student_preprocessing(student, size)
    assert own.crop_pct == (1.0 if size == 32 else 0.875)
    trained(student, size=size).save_model(str(tmp_path / "saved"))
    in_transformers = AutoModelForImageClassification.from_pretrained(tmp_path / "saved")
    assert torch.equal(logits(in_transformers, images(size)), logits(student, images(size)))
    assert tuple(in_transformers.config.id2label.values()) == CLASSES
    photo = tiny_dataset(1, (40, 60))[0]["image"].convert("RGB")
    processor = AutoImageProcessor.from_pretrained(tmp_path / "saved")
    found = processor(photo, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(found, evaluated(photo, own), rtol=0, atol=0.1)
    assert student_preprocessing(create_student(str(tmp_path / "saved"), 5, size, CLASSES)) == own
