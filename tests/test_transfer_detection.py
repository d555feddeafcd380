"""Detection: backbones, datasets of boxes, the detector over a student, the metric, and the recipe from end to end."""

import json
import sys

import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image, List, Value
from PIL import Image as PILImage
from recipe_modules import load_recipe
from scenes import SHAPES, write_scenes
from tiny import encode_image
from transformers import AutoModelForImageClassification, ResNetConfig, ResNetForImageClassification

from hf_reinforce import Detector, create_student, load_backbone
from hf_reinforce.models.students import saved_weights
from hf_reinforce.transfer.backbones import Backbone
from hf_reinforce.transfer.boxes import DetectionDataset, read_coco, segmentation_mask
from hf_reinforce.transfer.detector import MeanAveragePrecision
from hf_reinforce.transfer.samples import collate

pytest.importorskip("pycocotools", reason="pip install 'hf-reinforce[transfer]'")
from pycocotools import mask as coco_mask

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy")  # of pycocotools

SMALL = {"channels": [16, 32, 64, 128]}
FEW = {
    "box_batch_size_per_image": 16,
    "rpn_batch_size_per_image": 64,
    "rpn_pre_nms_top_n_train": 100,
    "rpn_post_nms_top_n_train": 30,
    "rpn_pre_nms_top_n_test": 100,
    "rpn_post_nms_top_n_test": 30,
    "box_detections_per_img": 10,
}
BOX, CATEGORY = List(List(Value("float32"))), List(ClassLabel(names=list(SHAPES)))


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder, "train", 8, size=64)
    return folder


def dataset_of(*objects, fields=None, **options):
    """A dataset in memory of images of 40x30 pixels; `objects` has one dict of lists for each."""
    image = {"bytes": encode_image(PILImage.new("RGB", (40, 30))), "path": None}
    fields = {"bbox": BOX, "category": CATEGORY, **fields} if isinstance(fields, dict) else fields
    features = Features({"image": Image(), "objects": fields or {"bbox": BOX, "category": CATEGORY}})
    rows = Dataset.from_list([{"image": image, "objects": each} for each in objects], features=features)
    return DetectionDataset(rows, **options)


def new_detector(backbone=None, **options):
    torch.manual_seed(0)
    sizes = {"min_size": [64], "max_size": 64, "anchor_scale": 5, "fpn_channels": 16}
    return Detector.of(backbone or load_backbone("resnet10t", SMALL), SHAPES, options=FEW, **sizes, **options)


# -- backbones ----------------------------------------------------------------------------------------------------


def test_feature_maps_are_those_of_the_student(tmp_path):
    torch.manual_seed(1)
    student = create_student("resnet10t", 5, 32, model_args=SMALL)
    student.train()(torch.randn(4, 3, 32, 32))  # its batch norms have seen something
    student.save_pretrained(tmp_path, state_dict=saved_weights(student, student.state_dict()))
    backbone = load_backbone(str(tmp_path))
    assert all(parameter.requires_grad for parameter in backbone.parameters())
    assert (backbone.channels, backbone.strides) == (SMALL["channels"], [4, 8, 16, 32])
    images = torch.randn(2, 3, 64, 96)
    maps = backbone.eval()(images)
    assert [tuple(each.shape[1:]) for each in maps] == [(16, 16, 24), (32, 8, 12), (64, 4, 6), (128, 2, 3)]
    student = AutoModelForImageClassification.from_pretrained(tmp_path).eval()
    assert torch.equal(maps[-1], student.timm_model.forward_features(images))
    again = Backbone(**json.loads(json.dumps(backbone.spec))).eval()
    again.load_state_dict(backbone.state_dict())
    assert all(torch.equal(*pair) for pair in zip(maps, again(images), strict=True)) and again.spec == backbone.spec


def test_maps_of_other_layouts_and_networks_without():
    tiny = {"img_size": 64, "window_size": 2, "embed_dim": 8, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 1, 1)}
    maps = load_backbone("swin_tiny_patch4_window7_224", tiny)(torch.randn(1, 3, 64, 64))  # channels last
    assert [tuple(each.shape[1:]) for each in maps] == [(8, 16, 16), (16, 8, 8), (32, 4, 4), (64, 2, 2)]
    backbone = load_backbone("resnet10t", {**SMALL, "output_stride": 8})  # one map for each stride
    assert (backbone.channels, backbone.strides) == ([16, 128], [4, 8])
    assert [each.shape[-1] for each in backbone(torch.randn(1, 3, 64, 64))] == [16, 8]
    with pytest.raises(ValueError, match=r"of the stride \[16\] only, and a feature pyramid needs several"):
        new_detector(load_backbone("vit_tiny_patch16_224", {"depth": 3}))


def test_networks_without_feature_maps_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"'efficientvit_b0' no feature maps .* take other --model_args"):
        load_backbone("efficientvit_b0", {"output_stride": 8})
    with pytest.raises(ValueError, match="neither a timm architecture"):
        load_backbone("resnet10")
    shape = {"embedding_size": 8, "hidden_sizes": [8, 12], "depths": [1, 1], "layer_type": "basic"}
    ResNetForImageClassification(ResNetConfig(**shape)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is no network of timm, .*take timm's of its kind"):
        load_backbone(str(tmp_path))


# -- boxes --------------------------------------------------------------------------------------------------------


def test_coco_files_give_boxes_and_masks_that_cover_each_other(scenes):
    dataset = DetectionDataset(read_coco(scenes / "images/train", scenes / "train.json"), masks=True)
    content = json.loads((scenes / "train.json").read_text())
    assert dataset.class_names == SHAPES
    for index in range(len(dataset)):
        target = dataset[index]["targets"]
        listed = [a for a in content["annotations"] if a["image_id"] == index]
        assert target["labels"].tolist() == [(a["category_id"] - 7) // 10 + 1 for a in listed]
        for box, mask, shape in zip(target["boxes"], target["masks"], listed, strict=True):
            left, top, width, height = shape["bbox"]
            assert box.tolist() == pytest.approx([left, top, left + width, top + height], abs=1e-3)
            ys, xs = torch.where(mask)
            assert (torch.stack([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]) - box).abs().max() < 2


def test_training_samples_flip_by_their_position_and_leave_out_crowds():
    fields = {"iscrowd": List(Value("int8")), "area": List(Value("float32"))}
    objects = {"bbox": [[0, 0, 10, 10], [5, 5, 20, 20]], "category": [0, 1], "iscrowd": [0, 1], "area": [55.0, 300.0]}
    train = dataset_of(objects, fields=fields, train=True)
    seen = [tuple(train[index]["targets"]["boxes"][0].tolist()) for index in range(20)]
    assert set(seen) == {(0, 0, 10, 10), (30, 0, 40, 10)}
    assert seen == [tuple(train[index]["targets"]["boxes"][0].tolist()) for index in range(20)]
    evaluated = dataset_of(objects, fields=fields)[0]["targets"]
    assert (evaluated["iscrowd"].tolist(), evaluated["area"].tolist()) == ([0, 1], [55.0, 300.0])


def test_images_without_boxes_stay_and_boxes_without_area_go(caplog):
    full = {"bbox": [[1, 2, 3, 4], [5, 5, 0, 9], [38, 28, 3, 3]], "category": [2, 0, 1]}
    dataset = dataset_of({"bbox": [], "category": []}, full)
    assert "1 of 3 boxes" in caplog.text and "1 of 2 images" in caplog.text
    empty, full = dataset[0]["targets"], dataset[1]["targets"]
    assert empty["boxes"].shape == (0, 4) and empty["labels"].dtype == torch.int64
    assert full["boxes"].tolist() == [[1, 2, 4, 6], [38, 28, 40, 30]], "the last is cut at the edge"
    assert full["labels"].tolist() == [3, 2]
    batch = collate([dataset[0], dataset[1]])
    losses = new_detector().train()(batch["images"], batch["targets"])
    assert all(loss.isfinite() for loss in losses.values())


def test_objects_may_be_a_list_of_structs_in_another_format():
    feature = List({"bbox": List(Value("float32")), "label": ClassLabel(names=list(SHAPES))})
    dataset = dataset_of([{"bbox": [1, 2, 11, 22], "label": 2}], fields=feature, box_format="pascal_voc")
    target = dataset[0]["targets"]
    assert (target["boxes"].tolist(), target["labels"].tolist()) == ([[1, 2, 11, 22]], [3])


@pytest.mark.parametrize(
    ("box", "options", "message"),
    [
        ([], {}, "None of the 1 images has a box"),
        ([[20, 15, 38, 28]], {}, "1 of the first 1 boxes leave their images, .* give another --box_format"),
        ([[0, 0, 5, 5]], {"masks": True}, "use --architecture faster_rcnn"),
        ([[0, 0, 5, 5]], {"class_names": ["one", "two"]}, "has the category 2"),
        ([[0, 0, 5, 5]], {"objects_column": "boxes"}, "has no boxes.*objects_column_name"),
        ([[0, 0, 5, 5]], {"box_format": "yolo"}, "one of coco, pascal_voc"),
    ],
)
def test_bad_boxes_are_refused_in_one_sentence(box, options, message):
    with pytest.raises(ValueError, match=message):
        dataset_of({"bbox": box, "category": [2] * len(box)}, **options)


def without(*keys):
    return lambda content: [content["annotations"][0].pop(key) for key in keys]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content.pop("categories"), r"no COCO JSON with images.*\(KeyError: 'categories'\)"),
        (lambda content: content["images"].pop(), r"names an image or category 7 that is not listed; mend"),
        (lambda content: content["categories"].pop(), r"category 27 that is not listed"),
        (without("bbox"), "the annotation 0 has no 'bbox'"),
        (without("bbox", "id"), r"annotation \['image_id', 'category_id', .*\] has no 'bbox'"),
        (lambda content: content["images"][0].update(width=128), "Row 0: the image has 64x64 .* for 128x64; use"),
    ],
)
def test_damaged_coco_files_are_refused(scenes, tmp_path, change, message):
    content = json.loads((scenes / "train.json").read_text())
    change(content)
    (tmp_path / "damaged.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        DetectionDataset(read_coco(scenes / "images/train", tmp_path / "damaged.json"))[0]


def test_segmentations_in_all_their_forms_are_the_same_mask():
    polygon = [2.0, 3.0, 12.0, 3.0, 12.0, 9.0, 2.0, 9.0]
    expected = torch.zeros(16, 20, dtype=torch.uint8)
    expected[3:9, 2:12] = 1
    encoded = coco_mask.encode(expected.numpy().copy(order="F"))
    compressed = {"size": [16, 20], "counts": encoded["counts"].decode()}
    runs = {"size": [16, 20], "counts": [35, *[6, 10] * 9, 6, 135]}  # column by column, beginning with the zeros
    for form in ([polygon], polygon, json.dumps([polygon]), compressed, runs):
        assert torch.equal(segmentation_mask(form, 16, 20), expected)
    with pytest.raises(ValueError, match="20x16 pixels cannot belong to one of 21x16"):
        segmentation_mask(compressed, 16, 21)
    with pytest.raises(ValueError, match="no polygon"):
        segmentation_mask([[1.0, 2.0]], 16, 20)


# -- the detector -------------------------------------------------------------------------------------------------


def test_average_precision_of_hand_made_detections():
    metric = MeanAveragePrecision(SHAPES)
    box, labels = torch.tensor([[0.0, 0.0, 10.0, 10.0], [20.0, 20.0, 30.0, 30.0]]), torch.tensor([1, 2])
    target = {"boxes": box, "labels": labels, "iscrowd": torch.zeros(2).long(), "area": torch.tensor([100.0, 100.0])}
    # One box is right, the other's IoU is 0.62: it counts at the thresholds 0.50, 0.55 and 0.60 of ten.
    shifted = torch.tensor([[0.0, 0.0, 10.0, 10.0], [20.0, 20.0, 30.0, 26.2]])
    prediction = {"boxes": shifted, "labels": labels, "scores": torch.tensor([0.9, 0.8])}
    metric.add(metric.record(prediction, {**target, "image_id": torch.tensor(0)}))
    found = metric.compute()
    assert found["map_square"] == pytest.approx(1.0) and found["map_triangle"] == pytest.approx(0.3, abs=1e-6)
    assert found["map"] == pytest.approx(0.65, abs=1e-6) and found["map_50"] == pytest.approx(1.0)
    assert "map_disc" not in found, "none was there"


def average_precision(detector, dataset):
    metric = MeanAveragePrecision(SHAPES)
    with torch.no_grad():
        for sample in (dataset[index] for index in range(len(dataset))):
            metric.add(metric.record(detector.eval()([sample["images"]])[0], sample["targets"]))
    return metric.compute()["map_50"]


def test_detector_learns_the_scenes_it_has_seen(scenes, tmp_path):
    dataset = DetectionDataset(read_coco(scenes / "images/train", scenes / "train.json"))
    detector = new_detector().train()
    optimizer, losses = torch.optim.AdamW(detector.parameters(), 1e-3), []
    for step in range(40):
        batch = collate([dataset[(4 * step + i) % 8] for i in range(4)])
        loss = sum(detector(batch["images"], batch["targets"]).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-8:]) < 0.6 * sum(losses[:8])
    assert average_precision(detector, dataset) > 10 * average_precision(new_detector(), dataset) + 0.05
    detector.save_pretrained(tmp_path)
    again, image = Detector.from_pretrained(tmp_path), [dataset[0]["images"]]
    assert torch.equal(again.eval()(image)[0]["boxes"], detector.eval()(image)[0]["boxes"])
    assert again.class_names == SHAPES


def test_fixed_batch_norm_keeps_the_students_statistics():
    backbone = load_backbone("resnet10t", SMALL)
    expected = backbone.state_dict()["network.bn1.running_mean"].fill_(0.5).clone()
    fixed = new_detector(backbone, fixed_batch_norm=True)
    images = [torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)]
    fixed.train()(images, [{"boxes": torch.tensor([[8.0, 8, 30, 30]]), "labels": torch.tensor([1])}])
    assert torch.equal(fixed.backbone.state_dict()["network.bn1.running_mean"], expected)


def test_recipe_resumes_as_if_it_had_not_been_interrupted(scenes, tmp_path, monkeypatch):
    whole, part = tmp_path / "whole", tmp_path / "part"

    def run(folder, *further):
        flags = [
            *["--model_name_or_path", "resnet10t", "--model_args", json.dumps(SMALL), "--architecture", "mask_rcnn"],
            *["--train_images", scenes / "images/train", "--train_annotations", scenes / "train.json"],
            *["--eval_images", scenes / "images/train", "--eval_annotations", scenes / "train.json"],
            *["--min_size", 48, 64, "--max_size", 64, "--anchor_scale", 5, "--fpn_channels", 8],
            *["--detector_args", json.dumps({**FEW, "box_batch_size_per_image": 4}), "--fixed_batch_norm", False],
            *["--max_eval_samples", 2, "--output_dir", folder, "--max_steps", 4, "--save_steps", 2],
            *["--per_device_train_batch_size", 2, "--learning_rate", 0.01, "--lr_milestones", 0.5, 0.75],
            *["--logging_steps", 1, "--disable_tqdm", True, *further],
        ]
        monkeypatch.setattr(sys, "argv", ["detect.py", *map(str, flags)])
        load_recipe("detect").main()

    run(whole, "--hub_token", "hf_secret")
    assert b"hf_secret" not in (whole / "training_args.bin").read_bytes(), "it is published, too"
    part.mkdir()
    (whole / "checkpoint-2").rename(part / "checkpoint-2")
    run(part)
    states = [Detector.from_pretrained(folder).state_dict() for folder in (whole, part)]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    metrics = json.loads((part / "eval_results.json").read_text())
    assert 0 <= metrics["eval_map"] <= 1 and 0 <= metrics["eval_segm_map"] <= 1
    history = json.loads((part / "trainer_state.json").read_text())["log_history"]
    rates = [entry["learning_rate"] for entry in history if "loss" in entry]
    assert rates == pytest.approx([0.01, 0.01, 0.001, 0.0001])
    with pytest.raises(SystemExit, match="holds another run .*anchor_scale: 8.0, not 5.0"):
        run(part, "--anchor_scale", 8)
