"""Evaluates a student, a teacher or an ensemble: top-1, top-5, calibration error, log-likelihood, Brier score.

python recipes/evaluate.py --model_name_or_path outputs/student --dataset_name uoft-cs/cifar100 --split test
"""

import logging
from dataclasses import dataclass

from arguments import class_map, one_line_errors, option, parse, required, write_json


@dataclass
class EvaluateArguments:
    model_name_or_path: list[str] = required("Hub id or folder of a classifier; several are averaged.")
    dataset_name: str = required("Hub id, folder of Parquet files, or ImageFolder.")
    dataset_config_name: str | None = option("Hub configuration of the data set.")
    dataset_revision: str | None = option("Hub revision of the data set.")
    split: str = option("Split to evaluate on.", "test")
    image_column_name: str | None = option("Image column, default the only one.")
    label_column_name: str | None = option("Label column, default the only ClassLabel column.")
    model_checkpoint: str | None = option("Weights of a model that is a bare timm architecture.")
    model_revision: str | None = option("Hub revision of the model.")
    class_map: str | None = option("identity, or JSON: the model's class for each class of the data set.")
    image_size: int | None = option("Side of the evaluated square in pixels, default the model's input.")
    crop_pct: float | None = option("Share of the shorter side that is evaluated, default the model's.")
    max_samples: int | None = option("Evaluate on the first so many rows.")
    batch_size: int = option("Images per forward pass.", 64)
    num_workers: int = option("Processes that decode.", 2)
    device: str | None = option("Device, default a GPU where there is one.")
    output_json: str | None = option("File to write the metrics to.")


@one_line_errors
def main() -> None:
    (args,) = parse(__doc__, [EvaluateArguments])
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s:%(name)s: %(message)s")
    if args.output_json:
        write_json(args.output_json, {})  # a file that cannot be written is noticed before the work
    metrics = evaluate(args)
    for name, value in metrics.items():
        print(f"{name:14} {value:.4f}" if isinstance(value, float) else f"{name:14} {value}")
    if args.output_json:
        write_json(args.output_json, metrics)


def evaluate(args):
    import torch
    from torch.utils.data import DataLoader
    from tqdm.auto import tqdm

    from hf_reinforce import AugmentedDataset, ImageSource, load_teacher
    from hf_reinforce.hub import load_source
    from hf_reinforce.metrics import ClassificationMetrics
    from hf_reinforce.policies import evaluation_policy

    rows = load_source(args.dataset_name, args.dataset_config_name, args.split, args.dataset_revision)
    if args.max_samples is not None:
        rows = rows.select(range(min(args.max_samples, len(rows))))
    source = ImageSource.of(rows, args.image_column_name, args.label_column_name)
    if not len(source) or not source.has_labels:
        raise ValueError(f"{args.dataset_name}, split {args.split!r}, has no rows or no labels to evaluate on.")
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    model = load_teacher(args.model_name_or_path, checkpoint=args.model_checkpoint, revision=args.model_revision)
    model = model.with_classes(source.class_names, class_map(args.class_map)).to(device)
    # The members of an ensemble look at the same pixels; each resizes them to its own input.
    first = model.members[0].preprocessing
    size = args.image_size or max(member.preprocessing.image_size for member in model.members)
    dataset = AugmentedDataset(source, evaluation_policy(size, args.crop_pct or first.crop_pct, first.interpolation))
    loader = DataLoader(dataset, args.batch_size, num_workers=args.num_workers, collate_fn=dataset.collate)
    metrics = ClassificationMetrics()
    for batch in tqdm(loader, desc="Evaluating", unit="batch"):
        metrics.update(model(batch["pixel_values"].to(device)).cpu(), batch["labels"])
    return {
        "model": " + ".join(args.model_name_or_path),
        "dataset": args.dataset_name,
        "split": args.split,
        **metrics.compute(),
    }


if __name__ == "__main__":
    main()
