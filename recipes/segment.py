"""Semantic segmentation with a student as the backbone: DeepLabV3 or FCN, on images with label maps.

python recipes/segment.py recipes/ade20k_segmentation/deeplabv3.yaml --model_name_or_path outputs/student
"""

from dataclasses import asdict, dataclass

from arguments import given, one_line_errors, option, parse
from detect import FURTHER, BackboneArguments, backbone, finish, rows_of, training_classes
from unused import SEGMENT, say_unused


@dataclass
class SegmentationArguments:
    dataset_name: str | None = option("Hub id or folder of a dataset with images and masks; or name folders:")
    dataset_config_name: str | None = option("Hub configuration of the dataset.")
    train_split: str = option("Training split.", "train")
    eval_split: str | None = option("Split to evaluate on, none without it.")
    train_images: str | None = option("Folder of the training images, for --train_masks.")
    train_masks: str | None = option("Folder of their masks, of the same names.")
    eval_images: str | None = option("Folder of the images to evaluate on.")
    eval_masks: str | None = option("Folder of their masks.")
    image_column_name: str = option("Image column.", "image")
    mask_column_name: str = option("Column of masks: one channel, values are classes, 255 is ignored.", "annotation")
    reduce_labels: bool = option("Value 0 of the masks is no class, the others count from 1, as in ADE20K.", False)
    num_labels: int | None = option("Number of classes.")
    class_names: list[str] = option("Names of the classes, instead of their number.", [])
    max_train_samples: int | None = option("Train on the first so many images.")
    max_eval_samples: int | None = option("Evaluate on the first so many images.")
    head: str = option("deeplabv3 or fcn.", "deeplabv3")
    image_size: int = option("Side of the training crops, and shorter side in evaluation, in pixels.", 512)
    aux_weight: float = option("Weight of the loss of an auxiliary FCN head; 0: none.", 0.4)


@one_line_errors
def main() -> None:
    model, data, args = parse(__doc__, [BackboneArguments, SegmentationArguments], training_classes, FURTHER)
    say_unused(SEGMENT, (model, data, args), given())
    if args.per_device_train_batch_size < 2:
        raise ValueError("DeepLabV3 normalises over the batch; give --per_device_train_batch_size 2 or more.")
    args.dataloader_drop_last = True  # the last batch could hold a single image
    from transformers import set_seed

    from hf_reinforce.transfer.segmenter import MeanIoU, Segmenter

    set_seed(args.seed)
    names = data.class_names or [f"LABEL_{index}" for index in range(data.num_labels or 0)]
    if not 1 <= len(names) < 255 or data.num_labels not in (None, len(names)):
        raise ValueError(
            f"Give --num_labels, from 1 to 254, or --class_names; found {data.num_labels} and "
            f"{len(data.class_names)} names."
        )
    train, test = dataset(data, "train", len(names), args.seed), dataset(data, "eval", len(names), args.seed)
    if len(train) < args.per_device_train_batch_size:
        raise ValueError(f"There are {len(train)} training images, fewer than --per_device_train_batch_size.")
    options = {"head": data.head, "image_size": data.image_size, "aux_weight": data.aux_weight}
    segmenter = Segmenter.of(backbone(model), names, **options)
    finish(segmenter, args, lambda: MeanIoU(len(names)), train, test, {**asdict(model), **asdict(data)})


def dataset(data, part, num_labels, seed):
    from hf_reinforce.transfer.masks import SegmentationDataset, read_mask_folder

    rows = rows_of(data, part, "masks", read_mask_folder)
    if rows is None:
        return None
    of_files = getattr(data, f"{part}_images") is not None
    columns = ("image", "annotation") if of_files else (data.image_column_name, data.mask_column_name)
    return SegmentationDataset(rows, num_labels, data.image_size, part == "train", seed, *columns, data.reduce_labels)


if __name__ == "__main__":
    main()
