"""Object detection with a student as the backbone: Faster or Mask R-CNN with a feature pyramid, on COCO-format data.

python recipes/detect.py recipes/coco_detection/mask_rcnn.yaml --model_name_or_path outputs/student
python recipes/detect.py --model_name_or_path outputs/student --dataset_name rishitdagli/cppe-5 --output_dir outputs/d
"""

from dataclasses import asdict, dataclass

from arguments import json_object, one_line_errors, option, parse, required
from training import check_same_run, train_and_evaluate


@dataclass
class BackboneArguments:
    model_name_or_path: str = required("Student: its folder or Hub id, or a timm architecture (random weights).")
    model_revision: str | None = option("Hub revision of the student.")
    model_args: str | None = option('Further timm arguments as JSON, e.g. {"output_stride": 8}.')


@dataclass
class ImagesArguments:
    dataset_name: str | None = option("Hub id or folder of a dataset with images and what is in them; or name files:")
    dataset_config_name: str | None = option("Hub configuration of the dataset.")
    train_split: str = option("Training split.", "train")
    eval_split: str | None = option("Split to evaluate on, none without it.")
    train_images: str | None = option("Folder of the training images.")
    eval_images: str | None = option("Folder of the images to evaluate on.")
    image_column_name: str | None = option("Image column, default the only one.")
    class_names: list[str] = option("Names of the classes, where the dataset does not have them.", [])
    max_train_samples: int | None = option("Train on the first so many images.")
    max_eval_samples: int | None = option("Evaluate on the first so many images.")


@dataclass
class DetectionArguments(ImagesArguments):
    train_annotations: str | None = option("COCO JSON of --train_images, e.g. instances_train2017.json.")
    eval_annotations: str | None = option("COCO JSON of --eval_images, e.g. instances_val2017.json.")
    objects_column_name: str = option("Column with bbox and category, and for Mask R-CNN segmentation.", "objects")
    box_format: str = option("coco (left, top, width, height) or pascal_voc (left, top, right, bottom).", "coco")
    architecture: str = option("faster_rcnn or mask_rcnn.", "faster_rcnn")
    min_size: list[int] = option("Shorter sides in pixels; training draws one, evaluation takes the last.", [800])
    max_size: int = option("Most pixels of the longer side.", 1333)
    anchor_scale: float = option("Side of the anchors in multiples of the stride.", 8.0)
    fpn_channels: int = option("Channels of the feature pyramid.", 256)
    detector_args: str | None = option('Further torchvision arguments as JSON: {"box_batch_size_per_image": 128}.')
    fixed_batch_norm: bool = option("Keep the student's batch-norm statistics and scales.", True)


FURTHER = """Further flags: --timm_optimizer, --backbone_lr_scale, --lr_milestones, and every field of
transformers.TrainingArguments (--output_dir, --num_train_epochs, --per_device_train_batch_size, --learning_rate, ...).
The same command continues an interrupted run."""


def training_classes() -> list[type]:
    from hf_reinforce.transfer.trainer import TransferArguments

    return [TransferArguments]


@one_line_errors
def main() -> None:
    model, data, args = parse_transfer(__doc__, DetectionArguments)
    from hf_reinforce.transfer.boxes import DetectionDataset, read_coco
    from hf_reinforce.transfer.detector import Detector, MeanAveragePrecision

    masks = data.architecture == "mask_rcnn"

    def dataset(part):
        if (rows := rows_of(data, part, "annotations", read_coco)) is None:
            return None
        columns = (data.image_column_name, data.objects_column_name)
        return DetectionDataset(rows, part == "train", args.seed, *columns, data.box_format, data.class_names, masks)

    train, test = dataset("train"), dataset("eval")
    if test is not None and test.class_names != train.class_names:
        raise ValueError("The categories to evaluate on are not those of training; choose annotations of one dataset.")
    settings = ("architecture", "min_size", "max_size", "anchor_scale", "fpn_channels", "fixed_batch_norm")
    options = {name: getattr(data, name) for name in settings}
    options["options"] = json_object("detector_args", data.detector_args)
    detector = Detector.of(backbone(model), train.class_names, **options)
    finish(detector, model, data, args, lambda: MeanAveragePrecision(train.class_names, masks), train, test)


def parse_transfer(description, data_class):
    """Flags of the student, the data and the training; seeds the process."""
    model, data, args = parse(description, [BackboneArguments, data_class], training_classes, FURTHER)
    from transformers import set_seed

    set_seed(args.seed)
    return model, data, args


def backbone(model):
    from hf_reinforce import load_backbone

    return load_backbone(model.model_name_or_path, json_object("model_args", model.model_args), model.model_revision)


def rows_of(data, part, files, read):
    """Rows of a part, `train` or `eval`, None where it is not named; `read` makes rows of images and their `files`."""
    from hf_reinforce.hub.load import load_source

    images, other, split = (getattr(data, f"{part}_{name}") for name in ("images", files, "split"))
    if bool(images) != bool(other):
        raise ValueError(f"Images and {files} are named together; found {images or other!r} alone.")
    if images:
        rows = read(images, other)
    elif split is None:
        return None
    elif data.dataset_name is None:
        raise ValueError(f"Name the data: --dataset_name, or --{part}_images and --{part}_{files}.")
    else:
        rows = load_source(data.dataset_name, data.dataset_config_name, split)
    limit = getattr(data, f"max_{part}_samples")
    return rows if limit is None else rows.select(range(min(limit, len(rows))))


def finish(network, model, data, args, new_metric, train, test) -> None:
    """Trains from the last checkpoint on, where there is one, and evaluates."""
    from hf_reinforce.transfer.samples import collate
    from hf_reinforce.transfer.trainer import TransferTrainer

    if test is not None:
        new_metric()  # a missing package is noticed before the work
    asked = {**asdict(model), **asdict(data)}
    check_same_run(args, {"seed": args.seed, **{key: value for key, value in asked.items() if "eval" not in key}})
    trainer = TransferTrainer(network, args, new_metric, train_dataset=train, eval_dataset=test, data_collator=collate)
    train_and_evaluate(trainer, args)
    if args.push_to_hub:
        trainer.push_to_hub()


if __name__ == "__main__":
    main()
