"""Every image processor of transformers, every crop of timm: what we feed and evaluate is what the libraries do."""

import json
import sys
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import timm
import torch
import transformers
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as PILImage
from recipe_modules import load_recipe
from saved_networks import CLASSES, resnet
from timm.data import create_transform, resolve_data_config
from timm.models import save_for_hf
from tiny import encode_image, tiny_dataset
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES

from hf_reinforce import AugmentedDataset, ImageSource, KDTrainer, KDTrainingArguments, load_teacher
from hf_reinforce.augmentations.policies import evaluation_policy
from hf_reinforce.evaluation.evaluator import EvaluationSettings, evaluate_task
from hf_reinforce.evaluation.suites import SuiteEntry
from hf_reinforce.evaluation.tasks import open_task
from hf_reinforce.models.preprocessing import (
    UNKNOWN,
    Preprocessing,
    preprocessing_from,
    read_processor,
    timm_preprocessing,
)
from hf_reinforce.models.students import create_student, image_processor, record_preprocessing, student_preprocessing

FRAMED_OTHERWISE = {"textnet"}  # photos keep their shape
WITHOUT = {"dinov2_with_registers", "hgnet_v2", "timm_wrapper"}  # none of their own; timm's is made from config.json


def types_by_class():
    """Types of classifiers by the class of their image processor, as `AutoImageProcessor` takes it."""
    found = {}
    for model_type in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES:
        names = IMAGE_PROCESSOR_MAPPING_NAMES.get(model_type) or {}
        name = names.get("torchvision") or names.get("pil")
        if name and model_type != "timm_wrapper":
            found.setdefault(name, []).append(model_type)
    return found


def square(side, width=None):
    return {"height": side, "width": width or side}


def cropped(shortest, side):
    return {"size": {"shortest_edge": shortest}, "crop_size": square(side)}


TYPES = types_by_class()
BAD = {"DonutImageProcessor": "2560", "ImageGPTImageProcessor": "Clusters", "Siglip2ImageProcessor": "256, 768"}
VIT, BIT = "ViTImageProcessor", "BitImageProcessor"
CHANGED = {  # processors of real repositories, and what else a file may say
    "the issue's": (VIT, {"do_rescale": False, "image_mean": [127.5] * 3, "image_std": [127.5] * 3}),
    "neither rescaled nor normalised": (VIT, {"do_rescale": False, "do_normalize": False}),
    "to [-1, 1]": (VIT, {"rescale_factor": 1 / 127.5, "image_mean": [1.0] * 3, "image_std": [1.0] * 3}),
    "offset": (
        "EfficientNetImageProcessor",
        {"size": square(224), "rescale_factor": 1 / 127.5, "rescale_offset": True, "do_normalize": False},
    ),
    "google/efficientnet": ("EfficientNetImageProcessor", {"size": square(224), "image_std": [0.47, 0.46, 0.45]}),
    "microsoft/resnet": ("ConvNextImageProcessor", {"size": {"shortest_edge": 224}, "crop_pct": 0.875, "resample": 3}),
    "crop_pct 0.95": ("ConvNextImageProcessor", {"size": {"shortest_edge": 224}, "crop_pct": 0.95}),
    "apple/mobilevit": ("MobileViTImageProcessor", {"size": {"shortest_edge": 288}, "resample": 2}),
    "not flipped": ("MobileViTImageProcessor", {**cropped(64, 56), "do_flip_channel_order": False}),
    "lanczos": (VIT, {"size": square(48), "resample": 1}),
    "box of Pillow": ("ViTImageProcessorPil", {"size": square(48), "resample": 4}),
    "nearest of Pillow": ("ViTImageProcessorPil", {"size": square(48), "resample": 0}),
    "squashed and cropped": ("DeiTImageProcessor", {"size": square(65), "crop_size": square(48)}),
    "odd": (BIT, cropped(65, 48)),
    "not resized": (BIT, {**cropped(64, 56), "do_resize": False}),
    "margin": (BIT, cropped(48, 57)),
    "tiny": (BIT, cropped(9, 8)),
    "grey deviations": (VIT, {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.3, 0.2, 0.1]}),
}
DONE = {"+".join(types): (kind, {}) for kind, types in TYPES.items() if kind not in BAD} | CHANGED


def photo(height, width, seed=0):
    """A picture with fine and coarse structure, of the middle grays, where no interpolation overshoots."""
    rng = np.random.default_rng([seed, height, width])
    coarse = PILImage.fromarray(rng.integers(0, 256, (6, 7, 3), dtype=np.uint8)).resize((width, height))
    mixed = 48 + np.asarray(coarse) * 0.3 + rng.random((height, width, 3)) * 80
    return PILImage.fromarray(mixed.astype(np.uint8))


def tensor_of(picture):
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


def evaluated(preprocessing, picture):
    """What we feed a network of a photo, [1, 3, S, S]."""
    policy = evaluation_policy(**preprocessing.framing())
    image = tensor_of(picture)
    return preprocessing(policy.apply(image, policy.sample(0, 0, 0, *image.shape[1:]))[None])


def levels(found, expected, preprocessing):
    """Largest difference, and the 99.9 % quantile, in levels of a pixel."""
    assert found.shape == expected.shape
    difference = (found - expected).abs() * torch.tensor(preprocessing.std).abs().view(3, 1, 1) * 255
    return float(difference.max()), float(difference.flatten().kthvalue(int(difference.numel() * 0.999))[0])


def test_the_zoo_is_the_whole_zoo():
    types = set(MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES)
    assert sum(map(len, TYPES.values())) >= len(types) - len(WITHOUT)
    assert len(types) >= 42 and set(BAD) <= set(TYPES)


@pytest.mark.parametrize("name", DONE)
def test_a_network_is_fed_as_by_its_processor(name):
    """Our values of a square, and our view of photos, are the processor's."""
    kind, options = DONE[name]
    processor = getattr(transformers, kind)(**options)
    preprocessing = read_processor(processor, "net")
    side = preprocessing.image_size
    square = PILImage.fromarray(np.random.default_rng(1).integers(0, 256, (side, side, 3), dtype=np.uint8))
    expected = processor(images=square, return_tensors="pt", do_resize=False, do_center_crop=False)["pixel_values"]
    assert levels(preprocessing(tensor_of(square)[None]), expected, preprocessing)[0] < 0.01
    assert (preprocessing.crop_mode == UNKNOWN) == (name in FRAMED_OTHERWISE)
    for size in ((300, 400), (431, 287), (100, 140)) if preprocessing.crop_mode != UNKNOWN else ():
        picture = photo(*size)
        expected = processor(images=picture, return_tensors="pt")["pixel_values"]
        most, usual = levels(evaluated(preprocessing, picture), expected, preprocessing)
        assert most < 2.1 and usual < 1.1, (size, most, usual)


class Odd(transformers.ViTImageProcessor):
    """A processor that does something to the pixels at the end."""

    change = staticmethod(lambda pixels: pixels)

    def __call__(self, *args, **kwargs):
        return {"pixel_values": self.change(super().__call__(*args, **kwargs)["pixel_values"])}


@pytest.mark.parametrize(
    ("kind", "options", "change", "reason"),
    [
        *((kind, {}, None, f"{reason}.*preprocessing=") for kind, reason in BAD.items()),
        (VIT, {"do_resize": False}, None, "different sizes"),
        (VIT, {"size": square(32, 48)}, None, "48x32 pixels"),
        (VIT, {"image_std": [0.0, 0.0, 0.0]}, None, "net"),
        ("Odd", {}, lambda pixels: pixels.mean(1, keepdim=True).expand_as(pixels), "mixes or drops colours"),
        ("Odd", {}, lambda pixels: pixels[:, [1, 0, 2]], "mixes or drops colours"),
        ("Odd", {}, lambda pixels: (pixels + 1) ** 2, "more than a scale and an offset"),
        ("Odd", {}, lambda pixels: pixels * 0, "mixes or drops colours"),
    ],
)
def test_what_cannot_be_said_is_refused_by_name(kind, options, change, reason, monkeypatch):
    monkeypatch.setattr(Odd, "change", staticmethod(change))
    processor = Odd() if kind == "Odd" else getattr(transformers, kind)(**options)
    with pytest.raises(ValueError, match=f"^net: its image processor, {kind}.*{reason}"):
        read_processor(processor, "net")


def test_values_at_other_places_are_another_framing(monkeypatch):
    monkeypatch.setattr(Odd, "change", staticmethod(lambda pixels: pixels.roll(3, -1)))
    assert read_processor(Odd(), "net").crop_mode == UNKNOWN


# Evaluation: figures of `evaluate.py` and of the libraries on the same photos.


@cache
def photos(count=10):
    """Photos of many shapes, as a dataset."""
    rng, files = np.random.default_rng(0), []
    for row in range(count):
        width, height = (int(side) for side in rng.integers(120, 420, 2))
        tinted = np.asarray(photo(height, width, row)) * rng.uniform(0.3, 1, 3)
        files.append({"bytes": encode_image(PILImage.fromarray(tinted.astype(np.uint8))), "path": None})
    columns = {"image": files, "label": [row % 5 for row in range(count)]}
    return Dataset.from_dict(columns, features=Features({"image": Image(), "label": ClassLabel(names=list(CLASSES))}))


def seeded(model):
    """The model with weights that tell photos apart."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                fan_in = parameter[0].numel()
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * (2 / fan_in) ** 0.5)
        shown = torch.stack([tensor_of(row["image"].resize((96, 96))) for row in photos()]) / 64 - 2
        output = model.eval()(shown)
        logits = getattr(output, "logits", output)
        head = [module for module in model.modules() if isinstance(module, torch.nn.Linear)][-1]
        head.weight /= logits.std(0).mean()
        head.bias.copy_(-logits.mean(0) / logits.std(0).mean())  # so that no class has all photos
    return model


def small_resnet(folder):
    seeded(resnet()).save_pretrained(folder)


def ours(folder, rows, **settings):
    """Predictions and losses of `evaluate.py`'s evaluator."""
    model = load_teacher(str(folder))
    task = open_task(rows, SuiteEntry("photos"), model.class_names or CLASSES, model.num_classes)
    predictions = evaluate_task(model, task, EvaluationSettings(4, 0, "cpu", progress=False, **settings))
    return predictions.prediction.tolist(), predictions.nll


def of_pipeline(folder, rows):
    """Those of transformers' pipeline."""
    pipe = transformers.pipeline("image-classification", model=str(folder), device="cpu")
    found = [pipe(row["image"], top_k=None, function_to_apply="softmax") for row in rows]
    scores = [{item["label"]: item["score"] for item in each} for each in found]
    names = list(CLASSES)
    losses = [-np.log(each[names[label]]) for each, label in zip(scores, rows["label"], strict=True)]
    return [names.index(max(each, key=each.get)) for each in scores], np.array(losses)


def agree(found, expected, tolerance=0.01):
    """Same top-1, and losses that differ by what a level of a pixel makes."""
    assert np.std(expected[1]) > 20 * tolerance, "photos are told apart"
    assert found[0] == expected[0]
    np.testing.assert_allclose(found[1], expected[1], atol=tolerance, rtol=0)


def with_processor(folder, processor):
    small_resnet(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", ["the issue's", "google/efficientnet", "microsoft/resnet", "apple/mobilevit"])
def test_figures_are_those_of_the_pipeline(name, tmp_path):
    kind, options = CHANGED[name]
    folder, rows = with_processor(tmp_path / "net", getattr(transformers, kind)(**options)), photos()
    agree(ours(folder, rows), of_pipeline(folder, rows))


def test_photos_that_are_framed_otherwise_are_evaluated_as_told(tmp_path):
    folder, rows = with_processor(tmp_path / "net", transformers.TextNetImageProcessor()), photos()
    with pytest.raises(ValueError, match="net: .*way of its own"):
        ours(folder, rows)
    assert len(ours(folder, rows, crop_pct=1.0)[0]) == len(rows)


CROPS = {
    "center": {"crop_mode": "center", "crop_pct": 0.9},
    "odd": {"crop_mode": "center", "crop_pct": 0.95, "interpolation": "bilinear"},
    "squash": {"crop_mode": "squash", "crop_pct": 1.0},
    "squash and crop": {"crop_mode": "squash", "crop_pct": 0.9},
    "border": {"crop_mode": "border", "crop_pct": 1.0},
    "border and crop": {"crop_mode": "border", "crop_pct": 0.8},
    "lanczos": {"interpolation": "lanczos"},
    "nearest": {"interpolation": "nearest"},
    "says little": {"crop_pct": None, "mean": None, "std": None, "crop_mode": None, "interpolation": None},
}


@pytest.mark.parametrize("name", CROPS)
def test_timms_crops(name):
    cfg = {**timm.create_model("test_resnet").pretrained_cfg, "input_size": (3, 65, 65), **CROPS[name]}
    preprocessing = timm_preprocessing(cfg)
    transform = create_transform(**resolve_data_config(pretrained_cfg=cfg))
    for size in ((300, 400), (431, 287), (100, 140), (50, 41)):
        picture = photo(*size)
        most, usual = levels(evaluated(preprocessing, picture), transform(picture)[None], preprocessing)
        assert most < 2.1 and usual < 1.1, (size, most, usual)


def timm_network(**cfg):
    torch.manual_seed(0)
    overlay = {"input_size": (3, 64, 64), "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4), **cfg}
    return seeded(timm.create_model("test_resnet", num_classes=5, pretrained_cfg_overlay=overlay))


@pytest.mark.parametrize("mode", ["center", "squash", "border"])
def test_figures_of_a_network_of_timm_are_those_of_its_validation(mode, tmp_path):
    """timm's `validate.py` takes the size for tests, where there is one."""
    sizes = {"test_input_size": (3, 96, 96), "test_crop_pct": 1.0}
    model, rows = timm_network(crop_mode=mode, crop_pct=0.875, **sizes), photos()
    save_for_hf(model, tmp_path / "net", safe_serialization=True, model_config={"label_names": list(CLASSES)})
    config = json.loads((tmp_path / "net" / "config.json").read_text())
    config.pop("model_args", None)  # has the number of classes, which transformers then finds twice
    (tmp_path / "net" / "config.json").write_text(json.dumps(config))

    def expected(use_test_size):
        config = resolve_data_config(model=model, use_test_size=use_test_size)
        assert config["input_size"][-1] == (96 if use_test_size else 64)
        transform = create_transform(**config)
        with torch.no_grad():
            answers = model(torch.stack([transform(row["image"]) for row in rows])).log_softmax(-1)
        return answers.argmax(-1).tolist(), -answers[range(len(rows)), rows["label"]].numpy()

    agree(ours(tmp_path / "net", rows), expected(True))
    agree(ours(tmp_path / "net", rows, image_size=64), expected(False))  # transformers' pipeline does this
    agree(of_pipeline(tmp_path / "net", rows), expected(False))
    assert load_teacher(str(tmp_path / "net")).members[0].preprocessing.image_size == 64  # and a teacher


def test_a_network_of_timm_that_wants_no_square_is_refused():
    with pytest.raises(ValueError, match="test_resnet takes inputs of 96x64 pixels"):
        timm_preprocessing({"input_size": (3, 64, 96), "architecture": "test_resnet"})


# Students: what training evaluates, `evaluate.py` and the pipeline are one.


@pytest.mark.parametrize("kind", ["timm", "transformers", "mobilevit"])
def test_a_student_is_evaluated_alike_everywhere(kind, tmp_path):
    if kind == "timm":
        name = "test_resnet"
    else:
        name = str(tmp_path / "original")
        small_resnet(name)
        flipped = transformers.MobileViTImageProcessor(**cropped(64, 56))
        (flipped if kind == "mobilevit" else transformers.ViTImageProcessor()).save_pretrained(name)
    student = create_student(name, 5, 176, CLASSES)
    if kind == "timm":
        seeded(student)
    rows, own = photos(), student_preprocessing(student, 176)
    assert own.crop_pct == 0.875 and own.channels == ("BGR" if kind == "mobilevit" else "RGB")
    held_out = AugmentedDataset(ImageSource.of(rows), evaluation_policy(**own.framing()))
    options = {"report_to": [], "per_device_eval_batch_size": 4, "use_cpu": True, "disable_tqdm": True}
    arguments = KDTrainingArguments(str(tmp_path / "run"), method="plain", dataloader_num_workers=0, **options)
    trainer = KDTrainer(student, arguments, held_out, held_out)
    metrics = trainer.evaluate()
    trainer.save_model(str(tmp_path / "saved"))
    found, expected = ours(tmp_path / "saved", rows), of_pipeline(tmp_path / "saved", rows)
    agree(found, expected)
    assert metrics["eval_nll"] == pytest.approx(float(np.mean(found[1])), abs=1e-4)
    assert metrics["eval_accuracy"] == pytest.approx(np.mean(np.array(found[0]) == np.array(rows["label"])))
    again = load_teacher(str(tmp_path / "saved")).members[0].preprocessing
    assert replace(again, crop_pct=own.crop_pct) == own and int(176 / again.crop_pct) == int(176 / own.crop_pct)


def test_a_student_that_could_not_be_saved_is_refused_before_it_is_trained(tmp_path):
    small_resnet(tmp_path / "net")
    transformers.ViTImageProcessor(size={"height": 64, "width": 64}).save_pretrained(tmp_path / "net")
    student = create_student(str(tmp_path / "net"), 5, 64, CLASSES)
    record_preprocessing(student, Preprocessing(64, channels="BGR"))  # MobileViT's is BGR, but doesn't normalise
    with pytest.raises(ValueError, match="cannot be saved"):
        image_processor(student)
    with pytest.raises(ValueError, match="timm cannot be saved"):
        record_preprocessing(create_student("test_resnet", 5, 64, CLASSES), Preprocessing(64, channels="BGR"))


# Teachers, and what is recorded.


@pytest.mark.parametrize(
    "text",
    [
        "{",
        '{"image_processor_type": "NoSuchImageProcessor"}',
        '{"image_processor_type": "ViTImageProcessor", "size": 3.5}',
        '{"image_processor_type": "Siglip2ImageProcessor"}',
    ],
)
def test_a_processor_that_is_refused_can_be_replaced(text, tmp_path):
    small_resnet(tmp_path / "net")
    (tmp_path / "net" / "preprocessor_config.json").write_text(text)
    with pytest.raises(ValueError, match="net: its image processor.*preprocessing="):
        load_teacher(str(tmp_path / "net"))
    teacher = load_teacher(str(tmp_path / "net"), preprocessing=Preprocessing(32))
    assert teacher(tensor_of(photo(32, 32))[None]).shape == (1, 5)


def test_interpolations_of_views_of_another_size():
    view = tensor_of(photo(40, 40))[None]
    nearest = Preprocessing(20, (0.0,) * 3, (1.0,) * 3, "nearest")(view) * 255
    expected = np.array(photo(40, 40).resize((20, 20), PILImage.Resampling.NEAREST))
    assert torch.equal(nearest.round()[0], torch.from_numpy(expected).permute(2, 0, 1).float())
    with pytest.raises(ValueError, match="'lanczos'.*--image_size 20"):
        Preprocessing(20, interpolation="lanczos")(view)
    for wrong in ({"interpolation": "area"}, {"channels": "GBR"}, {"crop_mode": "middle"}, {"crop_rounding": "up"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Preprocessing(20, **wrong)


def test_fields_are_recorded_where_they_are_not_the_default():
    plain = Preprocessing(224)
    assert list(plain.record()) == ["image_size", "mean", "std", "interpolation", "crop_pct"]
    other = Preprocessing(224, channels="BGR", crop_mode="squash", crop_rounding="down")
    assert list(other.record())[5:] == ["channels", "crop_mode", "crop_rounding"]
    for each in (plain, other):
        assert preprocessing_from(json.loads(json.dumps(each.record()))) == each


def test_the_settings_of_an_evaluation_say_how_photos_were_framed(tmp_path, monkeypatch):
    folder = with_processor(tmp_path / "net", transformers.ViTImageProcessor(size={"height": 32, "width": 32}))
    (tmp_path / "data").mkdir()
    tiny_dataset(5).to_parquet(tmp_path / "data" / "test-00000-of-00001.parquet")
    flags = {"model_name_or_path": folder, "dataset_name": tmp_path / "data", "output_dir": tmp_path / "out"}
    flags |= {"num_workers": 0, "device": "cpu"}
    argv = [part for key, value in flags.items() for part in (f"--{key}", str(value))]
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *argv])
    load_recipe("evaluate").main()
    (result,) = json.loads((tmp_path / "out" / "evaluation.json").read_text())["datasets"].values()
    assert result["settings"].items() >= {"crop_mode": "squash", "crop_rounding": "down", "crop_pct": 1.0}.items()
