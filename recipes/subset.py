"""Writes a class-balanced part of a dataset as a folder of Parquet, to see what a method does with few images.

python recipes/subset.py --dataset_name uoft-cs/cifar100 --label_column_name fine_label --output_dir quarter
"""

from dataclasses import dataclass
from pathlib import Path

from arguments import one_line_errors, option, parse, required


@dataclass
class SubsetArguments:
    dataset_name: str = required("Hub id or folder.")
    output_dir: str = required("New folder for the part.")
    dataset_config_name: str | None = option("Hub configuration.")
    split: str = option("Split to take it from, and its name in the part.", "train")
    image_column_name: str | None = option("Image column, default the only one.")
    label_column_name: str | None = option("Label column, default the only ClassLabel column.")
    share: float = option("Share of each class, between 0 and 1.", 0.25)
    seed: int = option("Seed of the choice.", 0)


@one_line_errors
def main() -> None:
    (args,) = parse(__doc__, [SubsetArguments])
    from sklearn.model_selection import StratifiedShuffleSplit

    from hf_reinforce.hub.load import load_source
    from hf_reinforce.sources.image_source import find_columns

    folder = Path(args.output_dir)
    if not 0 < args.share < 1:
        raise ValueError(f"--share must lie between 0 and 1, not be {args.share}.")
    if folder.exists():
        raise ValueError(f"{folder} exists already; choose another --output_dir.")
    rows = load_source(args.dataset_name, args.dataset_config_name, args.split)
    image, label = find_columns(rows.features, args.image_column_name, args.label_column_name)
    if label is None:
        raise ValueError(f"{args.dataset_name} has no labels, so a part of it cannot be balanced.")
    # the very images of HSAKD (IJCAI 2021), which trains on 0.25, 0.5 and 0.75 of CIFAR-100
    splitter = StratifiedShuffleSplit(1, train_size=args.share, test_size=1 - args.share, random_state=args.seed)
    chosen, _ = next(splitter.split(range(len(rows)), rows[label]))
    part = rows.select(sorted(chosen)).select_columns([image, label])
    folder.mkdir(parents=True)
    part.to_parquet(folder / f"{args.split}-00000-of-00001.parquet")
    print(f"{folder} has {len(part)} of {len(rows)} images.")


if __name__ == "__main__":
    main()
