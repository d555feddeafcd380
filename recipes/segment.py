"""Semantic segmentation with a student as the backbone: DeepLabV3 or FCN, on images with label maps.

python recipes/segment.py recipes/ade20k_segmentation/deeplabv3.yaml --model_name_or_path outputs/student
"""

from dataclasses import dataclass

from arguments import one_line_errors, option
from detect import ImagesArguments, backbone, finish, parse_transfer, rows_of


@dataclass
class SegmentationArguments(ImagesArguments):
    train_masks: str | None = option("Folder of the masks of --train_images, of the same names.")
    eval_masks: str | None = option("Folder of the masks of --eval_images.")
    image_column_name: str = option("Image column.", "image")
    mask_column_name: str = option("Column of masks: one channel, values are classes, 255 is ignored.", "annotation")
    reduce_labels: bool = option("Value 0 of the masks is no class, the others count from 1, as in ADE20K.", False)
    num_labels: int | None = option("Number of classes, instead of --class_names.")
    head: str = option("deeplabv3 or fcn.", "deeplabv3")
    image_size: int = option("Side of the training crops, and shorter side in evaluation, in pixels.", 512)
    aux_weight: float = option("Weight of the loss of an auxiliary FCN head; 0: none.", 0.4)


@one_line_errors
def main() -> None:
    model, data, args = parse_transfer(__doc__, SegmentationArguments)
    if args.per_device_train_batch_size < 2:
        raise ValueError("DeepLabV3 normalises over the batch; give --per_device_train_batch_size 2 or more.")
    args.dataloader_drop_last = True  # the last batch could hold a single image
    from hf_reinforce.transfer.masks import SegmentationDataset, read_mask_folder
    from hf_reinforce.transfer.segmenter import MeanIoU, Segmenter

    names = data.class_names or [f"LABEL_{index}" for index in range(data.num_labels or 0)]
    if not 1 <= len(names) < 255 or data.num_labels not in (None, len(names)):
        raise ValueError(
            f"Give --num_labels, from 1 to 254, or --class_names; found {data.num_labels} and "
            f"{len(data.class_names)} names."
        )

    def dataset(part):
        if (rows := rows_of(data, part, "masks", read_mask_folder)) is None:
            return None
        in_files = getattr(data, f"{part}_images") is not None
        columns = ("image", "annotation") if in_files else (data.image_column_name, data.mask_column_name)
        kind = (data.image_size, part == "train", args.seed)
        return SegmentationDataset(rows, len(names), *kind, *columns, data.reduce_labels)

    train, test = dataset("train"), dataset("eval")
    if len(train) < args.per_device_train_batch_size:
        raise ValueError(f"There are {len(train)} training images, fewer than --per_device_train_batch_size.")
    options = {"head": data.head, "image_size": data.image_size, "aux_weight": data.aux_weight}
    segmenter = Segmenter.of(backbone(model), names, **options)
    finish(segmenter, model, data, args, lambda: MeanIoU(len(names)), train, test)


if __name__ == "__main__":
    main()
