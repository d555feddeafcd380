"""Detection: datasets of boxes, the detector over a student, the metric, and the recipe from end to end."""

import json
import sys

import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image, List, Value
from PIL import Image as PILImage
from recipe_modules import load_recipe
from scenes import SHAPES, write_scenes
from tiny import encode_image

from hf_reinforce.transfer.backbones import load_backbone
from hf_reinforce.transfer.boxes import DetectionDataset
from hf_reinforce.transfer.coco import read_coco, segmentation_mask
from hf_reinforce.transfer.detector import Detector, MeanAveragePrecision
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


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder, "train", 8, size=64)
    return folder


def dataset_of(objects, size=(40, 30), fields=None, names=SHAPES, **options):
    """A dataset in memory; `objects` has one dict of lists for each image."""
    image = {"bytes": encode_image(PILImage.new("RGB", size)), "path": None}
    fields = fields or {"bbox": List(List(Value("float32"))), "category": List(ClassLabel(names=list(names)))}
    features = Features({"image": Image(), "objects": fields})
    rows = Dataset.from_list([{"image": image, "objects": each} for each in objects], features=features)
    return DetectionDataset(rows, **options)


def new_detector(architecture="faster_rcnn", **options):
    torch.manual_seed(0)
    backbone = load_backbone("resnet10t", SMALL)
    sizes = {"min_size": [64], "max_size": 64, "anchor_scale": 5, "fpn_channels": 16}
    return Detector.of(backbone, SHAPES, architecture=architecture, options=FEW, **sizes, **options)


def test_coco_files_give_boxes_and_masks_that_cover_each_other(scenes):
    dataset = DetectionDataset(read_coco(scenes / "images" / "train", scenes / "train.json"), masks=True)
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
            found = torch.stack([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]).float()
            assert (found - box).abs().max() < 2


def test_training_samples_flip_by_their_position_and_leave_out_crowds():
    crowd = {"iscrowd": List(Value("int8")), "area": List(Value("float32"))}
    fields = {"bbox": List(List(Value("float32"))), "category": List(ClassLabel(names=list(SHAPES))), **crowd}
    objects = {"bbox": [[0, 0, 10, 10], [5, 5, 20, 20]], "category": [0, 1], "iscrowd": [0, 1], "area": [55.0, 300.0]}
    train = dataset_of([objects], fields=fields, train=True)
    seen = {tuple(train[index]["targets"]["boxes"][0].tolist()) for index in range(20)}
    assert seen == {(0, 0, 10, 10), (30, 0, 40, 10)}
    assert all(torch.equal(train[i]["targets"]["boxes"], train[i]["targets"]["boxes"]) for i in range(5))
    evaluated = dataset_of([objects], fields=fields)[0]["targets"]
    assert (evaluated["iscrowd"].tolist(), evaluated["area"].tolist()) == ([0, 1], [55.0, 300.0])


def test_images_without_boxes_stay_and_boxes_without_area_go(caplog):
    objects = [
        {"bbox": [], "category": []},
        {"bbox": [[1, 2, 3, 4], [5, 5, 0, 9], [38, 28, 10, 10]], "category": [2, 0, 1]},
    ]
    dataset = dataset_of(objects)
    assert dataset.dropped == 1 and "1 of 3 boxes" in caplog.text and "1 of 2 images" in caplog.text
    empty, full = dataset[0]["targets"], dataset[1]["targets"]
    assert empty["boxes"].shape == (0, 4) and empty["labels"].dtype == torch.int64
    assert full["boxes"].tolist() == [[1, 2, 4, 6], [38, 28, 40, 30]], "the second is cut at the edge"
    assert full["labels"].tolist() == [3, 2]
    batch = collate([dataset[0], dataset[1]])
    losses = new_detector().train()(batch["images"], batch["targets"])
    assert all(loss.isfinite() for loss in losses.values())


def test_objects_may_be_a_list_of_structs_in_another_format():
    feature = List({"bbox": List(Value("float32")), "label": ClassLabel(names=list(SHAPES))})
    dataset = dataset_of([[{"bbox": [1, 2, 11, 22], "label": 2}]], fields=feature, box_format="pascal_voc")
    assert dataset[0]["targets"]["boxes"].tolist() == [[1, 2, 11, 22]]
    assert dataset[0]["targets"]["labels"].tolist() == [3]


def test_boxes_in_the_wrong_format_are_noticed():
    objects = [{"bbox": [[20, 15, 38, 28]], "category": [0]}]
    with pytest.raises(ValueError, match="give another --box_format"):
        dataset_of(objects).check_format()
    dataset_of(objects, box_format="pascal_voc").check_format()


@pytest.mark.parametrize(
    ("objects", "options", "message"),
    [
        ([{"bbox": [], "category": []}], {}, "None of the 1 images has a box"),
        ([{"bbox": [[0, 0, 5, 5]], "category": [0]}], {"masks": True}, "use --architecture faster_rcnn"),
        ([{"bbox": [[0, 0, 5, 5]], "category": [2]}], {"class_names": ["one", "two"]}, "has the category 2"),
        (
            [{"bbox": [[0, 0, 5, 5]], "category": [0]}],
            {"objects_column": "boxes"},
            "has no boxes.*objects_column_name",
        ),
        ([{"bbox": [[0, 0, 5, 5]], "category": [0]}], {"box_format": "yolo"}, "one of coco, pascal_voc"),
    ],
)
def test_bad_boxes_are_refused_in_one_sentence(objects, options, message):
    with pytest.raises(ValueError, match=message):
        dataset_of(objects, **options)


def test_images_of_another_size_than_annotated_are_refused(scenes, tmp_path):
    content = json.loads((scenes / "train.json").read_text())
    content["images"][0]["width"] = 128
    (tmp_path / "other.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"Row 0: the image has 64x64 pixels, but .* 128x64"):
        DetectionDataset(read_coco(scenes / "images" / "train", tmp_path / "other.json"))[0]


def without(*keys):
    return lambda content: [content["annotations"][0].pop(key) for key in keys]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda content: content.pop("categories"),
            r"images, annotations and categories \(KeyError: 'categories'\)",
        ),
        (lambda content: content["images"].pop(), "is of image 7, which 'images' does not list; use the file that"),
        (lambda content: content["categories"].pop(), r"which 'categories' does not list; it lists the ids \[7, 17\]"),
        (without("bbox"), "id 0 has no bbox; add what it lacks, or remove the annotation"),
        (without("bbox", "image_id"), "id 0 has no image_id or bbox"),
        (without("bbox", "id"), "with keys image_id, category_id, area, iscrowd, segmentation has no bbox"),
    ],
)
def test_damaged_coco_files_are_refused(scenes, tmp_path, change, message):
    content = json.loads((scenes / "train.json").read_text())
    change(content)
    (tmp_path / "damaged.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"damaged.json is no COCO JSON of .*{message}"):
        read_coco(scenes / "images" / "train", tmp_path / "damaged.json")


def test_segmentations_in_all_their_forms_are_the_same_mask():
    polygon = [2.0, 3.0, 12.0, 3.0, 12.0, 9.0, 2.0, 9.0]
    expected = torch.zeros(16, 20, dtype=torch.uint8)
    expected[3:9, 2:12] = 1
    encoded = coco_mask.encode(expected.numpy().copy(order="F"))
    compressed = {"size": [16, 20], "counts": encoded["counts"].decode()}
    runs, value = [0], 0
    for pixel in expected.T.flatten().tolist():  # column by column, beginning with the zeros
        if pixel != value:
            runs, value = [*runs, 0], pixel
        runs[-1] += 1
    for form in ([polygon], polygon, json.dumps([polygon]), compressed, {"size": [16, 20], "counts": runs}):
        assert torch.equal(segmentation_mask(form, 16, 20), expected)
    with pytest.raises(ValueError, match="20x16 pixels cannot belong to one of 21x16"):
        segmentation_mask(compressed, 16, 21)
    with pytest.raises(ValueError, match="no polygon"):
        segmentation_mask([[1.0, 2.0]], 16, 20)


def test_average_precision_of_hand_made_detections():
    metric = MeanAveragePrecision(SHAPES)
    box = torch.tensor([[0.0, 0.0, 10.0, 10.0], [20.0, 20.0, 30.0, 30.0]])
    target = {
        "boxes": box,
        "labels": torch.tensor([1, 2]),
        "iscrowd": torch.zeros(2).long(),
        "area": torch.tensor([100.0, 100.0]),
    }
    # One box is right, the other's IoU is 0.62: it counts at the thresholds 0.50, 0.55 and 0.60 of ten.
    shifted = torch.tensor([[0.0, 0.0, 10.0, 10.0], [20.0, 20.0, 30.0, 26.2]])
    prediction = {"boxes": shifted, "labels": torch.tensor([1, 2]), "scores": torch.tensor([0.9, 0.8])}
    metric.add(metric.record(prediction, {**target, "image_id": torch.tensor(0)}))
    found = metric.compute()
    assert found["map_square"] == pytest.approx(1.0) and found["map_triangle"] == pytest.approx(0.3, abs=1e-6)
    assert found["map"] == pytest.approx(0.65, abs=1e-6) and found["map_50"] == pytest.approx(1.0)
    assert "map_disc" not in found, "none was there"


def test_detector_learns_the_scenes_it_has_seen(scenes, tmp_path):
    dataset = DetectionDataset(read_coco(scenes / "images" / "train", scenes / "train.json"))
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
    again = Detector.from_pretrained(tmp_path)
    image = [dataset[0]["images"]]
    assert torch.equal(again.eval()(image)[0]["boxes"], detector.eval()(image)[0]["boxes"])
    assert again.class_names == SHAPES


def average_precision(detector, dataset):
    metric = MeanAveragePrecision(SHAPES)
    with torch.no_grad():
        for index in range(len(dataset)):
            sample = dataset[index]
            metric.add(metric.record(detector.eval()([sample["images"]])[0], sample["targets"]))
    return metric.compute()["map_50"]


def test_fixed_batch_norm_keeps_the_students_statistics():
    backbone = load_backbone("resnet10t", SMALL)
    expected = backbone.state_dict()["network.bn1.running_mean"].fill_(0.5).clone()
    fixed = Detector.of(
        backbone, SHAPES, fixed_batch_norm=True, options=FEW, min_size=[64], max_size=64, fpn_channels=16
    )
    images = [torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)]
    fixed.train()(images, [{"boxes": torch.tensor([[8.0, 8, 30, 30]]), "labels": torch.tensor([1])}])
    assert torch.equal(fixed.backbone.state_dict()["network.bn1.running_mean"], expected)


def test_backbones_without_a_pyramid_are_refused():
    with pytest.raises(ValueError, match=r"of the stride \[16\] only, and a feature pyramid needs several"):
        Detector.of(load_backbone("vit_tiny_patch16_224", {"depth": 3}), SHAPES)


def flags(scenes, folder, steps):
    return [
        *["--model_name_or_path", "resnet10t", "--model_args", json.dumps(SMALL), "--architecture", "mask_rcnn"],
        *["--train_images", str(scenes / "images" / "train"), "--train_annotations", str(scenes / "train.json")],
        *["--eval_images", str(scenes / "images" / "train"), "--eval_annotations", str(scenes / "train.json")],
        *["--min_size", "48", "64", "--max_size", "64", "--anchor_scale", "5", "--fpn_channels", "8"],
        *["--detector_args", json.dumps({**FEW, "box_batch_size_per_image": 4}), "--fixed_batch_norm", "False"],
        *["--max_eval_samples", "2", "--output_dir", str(folder), "--max_steps", str(steps), "--save_steps", "2"],
        *["--per_device_train_batch_size", "2", "--learning_rate", "0.01", "--lr_milestones", "0.5", "0.75"],
        *["--logging_steps", "1", "--disable_tqdm", "True"],
    ]


def test_recipe_resumes_as_if_it_had_not_been_interrupted(scenes, tmp_path, monkeypatch):
    recipe = load_recipe("detect")
    monkeypatch.setattr(sys, "argv", ["detect.py", *flags(scenes, tmp_path / "whole", 4), "--hub_token", "hf_secret"])
    recipe.main()
    assert b"hf_secret" not in (tmp_path / "whole" / "training_args.bin").read_bytes(), "it is published, too"
    (tmp_path / "part").mkdir()
    (tmp_path / "whole" / "checkpoint-2").rename(tmp_path / "part" / "checkpoint-2")
    monkeypatch.setattr(sys, "argv", ["detect.py", *flags(scenes, tmp_path / "part", 4)])
    recipe.main()
    whole, part = (Detector.from_pretrained(tmp_path / name).state_dict() for name in ("whole", "part"))
    assert all(torch.equal(whole[name], part[name]) for name in whole)
    metrics = json.loads((tmp_path / "part" / "eval_results.json").read_text())
    assert 0 <= metrics["eval_map"] <= 1 and 0 <= metrics["eval_segm_map"] <= 1
    rates = [
        entry["learning_rate"]
        for entry in json.loads((tmp_path / "part" / "trainer_state.json").read_text())["log_history"]
        if "loss" in entry
    ]
    assert rates == pytest.approx([0.01, 0.01, 0.001, 0.0001])
    other = [*flags(scenes, tmp_path / "part", 4), "--anchor_scale", "8"]
    monkeypatch.setattr(sys, "argv", ["detect.py", *other])
    with pytest.raises(SystemExit, match="holds another run .*anchor_scale: 8.0, not 5.0"):
        recipe.main()
