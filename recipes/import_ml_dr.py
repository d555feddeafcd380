"""Converts a reinforced dataset of the original implementation (apple/ml-dr), and joins it with its images.

    python recipes/import_ml_dr.py --archive imagenet-plus-randaug.tar.gz --output_dir outputs/imagenet-plus \\
        --source_name_or_path ILSVRC/imagenet-1k --id_map image_folder

Nothing inside the archive is executed. Run the same command again to continue after an interruption. docs/import.md
says what is needed and what is carried over.
"""

from dataclasses import dataclass
from pathlib import Path

from arguments import one_line_errors, option, parse, required


@dataclass
class ImportArguments:
    archive: list[str] = required("tar, tar.gz or extracted folder; several are put one behind the other.")
    source_name_or_path: str = required("Hub id or folder of the images that were reinforced.")
    output_dir: str = required("Folder of the Hub repository to write; the policy's name becomes its configuration.")
    source_config_name: str | None = option("Hub configuration of the images.")
    source_revision: str | None = option("Hub revision of the images.")
    split: str = option("Split that was reinforced.", "train")
    image_column_name: str | None = option("Image column, default the only one.")
    label_column_name: str | None = option("Label column, default the only ClassLabel column; '' for none.")
    id_map: str | None = option(
        "Row of each index of the archive: image_folder (sorted by class and file name), or a .json or .npy file; "
        "default: the same."
    )
    file_name_column_name: str | None = option("File names for image_folder, default the paths in the image column.")
    policy: str | None = option("Named policy, or a YAML file; default as the archive's configuration says.")
    image_size: int = option("Side of a view in pixels, for a named policy.", 224)
    num_classes: int | None = option("Classes of the targets, default those of the label column.")
    teacher_name_or_path: list[str] = option("Names of the teachers, default those in the archive.", [])
    shard_size: int | None = option("Rows per Parquet file, default about 2^20 reinforcements in each.")


@one_line_errors
def main() -> None:
    (args,) = parse(__doc__, [ImportArguments])
    from hf_reinforce import load_policy, write_dataset_card, write_preview
    from hf_reinforce.hub.load import load_source
    from hf_reinforce.hub.repository import dataset_commit
    from hf_reinforce.importers.ml_dr import import_ml_dr

    revision = dataset_commit(args.source_name_or_path, args.source_revision)
    dataset = load_source(args.source_name_or_path, args.source_config_name, args.split, revision)
    folder = import_ml_dr(
        args.archive,
        dataset,
        args.output_dir,
        id_map=read_id_map(args, dataset),
        policy=None if args.policy is None else load_policy(args.policy, args.image_size),
        teachers=args.teacher_name_or_path,
        num_classes=args.num_classes,
        image_column=args.image_column_name,
        label_column=args.label_column_name,
        source_name=args.source_name_or_path,
        source_config=args.source_config_name,
        source_revision=revision,
        split=args.split,
        shard_size=args.shard_size,
    )
    write_preview(folder, dataset)
    write_dataset_card(folder.parent)
    print(f'Done: load_dataset("{folder.parent}", "{folder.name}").')


def read_id_map(args, dataset):
    """The row of each index of the archive, None for the same."""
    import numpy as np

    from hf_reinforce.augmentations.documents import read_document
    from hf_reinforce.importers.ml_dr.images import image_folder_order

    if args.id_map is None:
        return None
    if args.id_map == "image_folder":
        return image_folder_order(dataset, args.file_name_column_name, args.image_column_name, args.label_column_name)
    if args.id_map.endswith(".npy"):
        try:
            return np.load(args.id_map, allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise ValueError(f"{args.id_map} holds no numbers ({error}); save an array of integers.") from error
    rows = read_document(Path(args.id_map))
    if not isinstance(rows, list):
        raise ValueError(f"{args.id_map} must be a JSON list with a row, or null, for each index of the archive.")
    return [-1 if row is None else row for row in rows]


if __name__ == "__main__":
    main()
