"""Segmentation: datasets of label maps, the segmenter over a student, mean IoU, and the recipe from end to end."""

import json
import sys

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Image
from PIL import Image as PILImage
from recipe_modules import load_recipe
from scenes import SHAPES, write_scenes
from sklearn.metrics import jaccard_score
from tiny import encode_image
from torchvision import tv_tensors
from torchvision.transforms import v2

from hf_reinforce import Segmenter, load_backbone
from hf_reinforce.transfer.masks import IGNORE, SegmentationDataset, read_mask_folder, training_crop
from hf_reinforce.transfer.samples import collate
from hf_reinforce.transfer.segmenter import MeanIoU

SMALL = {"channels": [16, 32, 64, 128]}
NAMES = ("background", *SHAPES)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder, "train", 8, size=64)
    return folder


def dataset_of(mask, num_classes=4, **options):
    """A dataset of one image of 20x16 pixels and its mask, an array or a PIL image."""
    mask = PILImage.fromarray(mask) if isinstance(mask, np.ndarray) else mask
    pictures = {"image": PILImage.new("RGB", (20, 16)), "annotation": mask}
    row = {name: {"bytes": encode_image(picture), "path": None} for name, picture in pictures.items()}
    rows = Dataset.from_list([row], features=Features({"image": Image(), "annotation": Image()}))
    return SegmentationDataset(rows, num_classes, **options)


def new_segmenter(head="fcn", **options):
    torch.manual_seed(0)
    backbone = load_backbone("resnet10t", {**SMALL, "output_stride": 8})
    return Segmenter.of(backbone, NAMES, head=head, image_size=64, **options)


def test_folders_are_joined_by_name(scenes, tmp_path):
    dataset = SegmentationDataset(read_mask_folder(scenes / "images/train", scenes / "masks/train"), 4)
    stored = np.asarray(PILImage.open(scenes / "masks/train/00003.png"))
    assert len(dataset) == 8 and np.array_equal(dataset[3]["targets"].numpy(), stored)
    assert dataset[3]["images"].shape == (3, 64, 64)
    (tmp_path / "00000.png").write_bytes((scenes / "masks/train/00000.png").read_bytes())
    with pytest.raises(ValueError, match="7 of 8 images have none, such as 00001"):
        read_mask_folder(scenes / "images/train", tmp_path)


def test_masks_of_every_kind_give_the_same_classes():
    values = np.arange(320, dtype=np.uint8).reshape(16, 20) % 4
    paletted = PILImage.new("P", (20, 16))
    paletted.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255])
    paletted.putdata(values.flatten().tolist())
    for mask in (values, values.astype(np.uint16), paletted):
        assert np.array_equal(dataset_of(mask)[0]["targets"].numpy(), values)
    reduced = dataset_of(values, 3, reduce_labels=True)[0]["targets"].numpy()
    assert np.array_equal(reduced, np.where(values == 0, IGNORE, values - 1))


@pytest.mark.parametrize(
    ("mask", "options", "message"),
    [
        (np.zeros((16, 10), np.uint8), {}, "Row 0: the image has 20x16 pixels and its mask 10x16"),
        (np.full((16, 20), 7, np.uint8), {}, "holds the class 7, but there are 4 classes"),
        (np.zeros((16, 20, 3), np.uint8), {}, "has the channels RGB; expected one channel"),
        (np.zeros((16, 20), np.uint8), {"mask_column": "label"}, "no column 'label' of images.*--mask_column_name"),
    ],
)
def test_bad_masks_are_refused_in_one_sentence(mask, options, message):
    with pytest.raises(ValueError, match=message):
        dataset_of(mask, **options)[0]


def test_masks_are_of_the_formats_that_images_may_have(tmp_path):
    """Pillow reads others too, some by starting a program."""
    PILImage.new("RGB", (20, 16)).save(tmp_path / "image.png")
    PILImage.new("L", (20, 16)).save(tmp_path / "mask.eps")
    files = {"image": [str(tmp_path / "image.png")], "annotation": [str(tmp_path / "mask.eps")]}
    rows = Dataset.from_dict(files, features=Features({name: Image() for name in files}))
    with pytest.raises(ValueError, match="Row 0: the image cannot be decoded: its bytes are none of JPEG"):
        SegmentationDataset(rows, 4)[0]


def test_crops_move_image_and_mask_together():
    image = torch.full((3, 90, 120), 50, dtype=torch.uint8)
    image[:, 20:70, 10:50] = 200
    mask = (image[0] == 200).to(torch.uint8)
    transforms, flipped = v2.Compose(training_crop(64)), set()
    torch.manual_seed(0)
    for _ in range(20):
        crop, labels = transforms(tv_tensors.Image(image), tv_tensors.Mask(mask))
        assert crop.shape == (3, 64, 64) and labels.shape == (64, 64)
        inside = labels != IGNORE
        agrees = (crop[0] > 125) == (labels == 1)
        assert agrees[inside].float().mean() > 0.95 and not crop[:, ~inside].any()
        flipped.add(bool(inside[:, 0].any()) != bool(inside[:, -1].any()))
    assert set(labels.unique().tolist()) <= {0, 1, IGNORE} and flipped == {True, False}


def test_mean_iou_agrees_with_scikit_learn():
    rng = np.random.default_rng(0)
    target, prediction = rng.integers(0, 4, (2, 6, 30, 20))
    target[rng.random(target.shape) < 0.1] = IGNORE
    metric = MeanIoU(5)  # the fifth class never occurs
    for wanted, found in zip(torch.from_numpy(target), torch.from_numpy(prediction), strict=True):
        metric.add(metric.record(found.to(torch.uint8), wanted.to(torch.uint8)))
    values, known = metric.compute(), target != IGNORE
    expected = jaccard_score(target[known], prediction[known], average=None)
    assert [values[f"iou_{index}"] for index in range(4)] == pytest.approx(expected.tolist(), abs=1e-9)
    assert values["miou"] == pytest.approx(expected.mean(), abs=1e-9) and "iou_4" not in values
    assert values["pixel_accuracy"] == pytest.approx((target == prediction)[known].mean(), abs=1e-9)
    with pytest.raises(ValueError, match="no labelled pixel"):
        MeanIoU(3).compute()


@torch.no_grad()
@pytest.mark.parametrize("head", ["deeplabv3", "fcn"])
def test_segmenter_gives_a_class_to_every_pixel_of_any_image(head):
    images = [torch.randint(0, 256, (3, *size), dtype=torch.uint8) for size in ((40, 70), (64, 64))]
    maps = new_segmenter(head).eval()(images)
    assert [tuple(each.shape) for each in maps] == [(40, 70), (64, 64)] and max(int(each.max()) for each in maps) < 4


def test_ignored_pixels_have_no_part_in_the_loss():
    segmenter = new_segmenter(aux_weight=0.0).train()
    images = [torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8) for _ in range(2)]
    masks = [torch.full((64, 64), IGNORE, dtype=torch.uint8) for _ in range(2)]
    assert segmenter(images, masks)["loss"].item() == 0
    masks[0][:32] = 2
    one = segmenter(images, masks)["loss"]
    assert one.item() > 0 and one.isfinite()


def mean_iou(segmenter, dataset):
    metric = MeanIoU(4)
    with torch.no_grad():
        for sample in (dataset[index] for index in range(len(dataset))):
            metric.add(metric.record(segmenter.eval()([sample["images"]])[0], sample["targets"]))
    return metric.compute()["miou"]


def test_segmenter_learns_the_scenes_it_has_seen(scenes, tmp_path):
    rows = read_mask_folder(scenes / "images/train", scenes / "masks/train")
    train, test = (SegmentationDataset(rows, 4, 64, train=train) for train in (True, False))
    segmenter = new_segmenter().train()
    optimizer, losses = torch.optim.AdamW(segmenter.parameters(), 2e-3), []
    for step in range(30):
        batch = collate([train[8 * (step // 2) + (4 * step + i) % 8] for i in range(4)])
        loss = sum(segmenter(batch["images"], batch["targets"]).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-8:]) < 0.65 * sum(losses[:8])
    assert mean_iou(segmenter, test) > 0.45, "0.25 if all pixels are called background"
    segmenter.save_pretrained(tmp_path)
    again, image = Segmenter.from_pretrained(tmp_path).eval(), [test[0]["images"]]
    assert torch.equal(again(image)[0], segmenter.eval()(image)[0])


@pytest.fixture
def run(scenes, tmp_path, monkeypatch):
    """`run(folder, flags)`: the recipe, whose output goes to a folder of this name."""

    def run(folder, *further):
        flags = [
            *["--model_name_or_path", "resnet10t", "--model_args", json.dumps({**SMALL, "output_stride": 16})],
            *["--train_images", scenes / "images/train", "--train_masks", scenes / "masks/train"],
            *["--eval_images", scenes / "images/train", "--eval_masks", scenes / "masks/train"],
            *["--class_names", *NAMES, "--image_size", 64, "--head", "deeplabv3", "--max_eval_samples", 3],
            *["--output_dir", tmp_path / folder, "--max_steps", 4, "--save_steps", 2, "--learning_rate", 0.01],
            *["--per_device_train_batch_size", 3, "--lr_scheduler_type", "cosine", "--disable_tqdm", True, *further],
        ]
        monkeypatch.setattr(sys, "argv", ["segment.py", *map(str, flags)])
        load_recipe("segment").main()
        return tmp_path / folder

    return run


def test_recipe_resumes_as_if_it_had_not_been_interrupted(run, tmp_path, monkeypatch):
    seen, read = [], SegmentationDataset.__getitem__
    monkeypatch.setattr(SegmentationDataset, "__getitem__", lambda self, i: (seen.append(i), read(self, i))[1])
    whole = run("whole")
    assert {index // 8 for index in seen[:12]} == {0, 1}, "the second epoch has samples of its own"
    (tmp_path / "part").mkdir()
    (whole / "checkpoint-2").rename(tmp_path / "part/checkpoint-2")
    states = [Segmenter.from_pretrained(folder).state_dict() for folder in (whole, run("part"))]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    metrics = json.loads((tmp_path / "part/eval_results.json").read_text())
    assert 0 <= metrics["eval_miou"] <= 1 and metrics["eval_pixel_accuracy"] <= 1


@pytest.mark.parametrize(
    ("further", "message"),
    [
        (["--num_labels", 3], "from 1 to 254, or --class_names; found 3 and 4 names"),
        (["--per_device_train_batch_size", 1], "per_device_train_batch_size 2 or more"),
        (["--per_device_train_batch_size", 9], "8 training images, fewer than"),
        (["--train_masks", ""], "--train_masks is empty"),
    ],
)
def test_recipe_refuses_what_does_not_fit(run, further, message):
    with pytest.raises(SystemExit, match=message):
        run("out", *further)
