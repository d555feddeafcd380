"""Evaluates a student, a teacher or an ensemble: accuracy, calibration error, log-likelihood, Brier score, robustness.

python recipes/evaluate.py --model_name_or_path outputs/student --dataset_name uoft-cs/cifar100 --split test
python recipes/evaluate.py --suite cifar_robustness --model_name_or_path outputs/student --output_dir outputs/figures
"""

from dataclasses import dataclass
from pathlib import Path

from arguments import check_device, class_map, one_line_errors, option, parse, process, required, write_json


@dataclass
class EvaluateArguments:
    model_name_or_path: list[str] = required("Hub id or folder of a classifier; several are averaged.")
    dataset_name: str | None = option("Hub id, folder of Parquet files, or ImageFolder; or name a --suite.")
    suite: str | None = option("imagenet_robustness, cifar_robustness, or a YAML file; see docs/evaluation.md.")
    dataset_config_name: str | None = option("Hub configuration of the dataset.")
    dataset_revision: str | None = option("Hub revision of the dataset.")
    split: str = option("Split to evaluate on.", "test")
    image_column_name: str | None = option("Image column, default the only one.")
    label_column_name: str | None = option("Label column, default the only ClassLabel column.")
    model_checkpoint: str | None = option("Weights of a model that is a bare timm architecture.")
    model_revision: str | None = option("Hub revision of the model.")
    class_map: str | None = option("identity, or JSON: the model's class for each class of the dataset.")
    classes_from: str | None = option("Column of the model's classes (indices, names, WordNet ids), or a file.")
    scoring: str | None = option("restricted to the dataset's classes, where it declares any the default, or full.")
    image_size: int | None = option("Side of the evaluated square in pixels, default the model's input.")
    crop_pct: float | None = option("Share of the shorter side that is evaluated, default the model's.")
    max_samples: int | None = option("Evaluate on the first so many rows.")
    batch_size: int = option("Images per forward pass.", 64)
    num_workers: int = option("Processes that decode and corrupt.", 2)
    device: str | None = option("Device, default a GPU where there is one.")
    dtype: str = option("float32, bfloat16 or float16.", "float32")
    seed: int = option("Seed of the corruptions.", 0)
    output_json: str | None = option("File to write the metrics to.")
    output_dir: str | None = option("Folder to write all figures, predictions and a report with a picture to.")


@one_line_errors
def main() -> None:
    (args,) = parse(__doc__, [EvaluateArguments])
    if (args.dataset_name is None) == (args.suite is None):
        raise ValueError("Name either a dataset with --dataset_name, or a --suite.")
    check_device(args.device)
    import torch
    from accelerate import PartialState

    from hf_reinforce import EvaluationSettings, load_teacher
    from hf_reinforce.evaluation.evaluator import is_main_process
    from hf_reinforce.evaluation.report import write_report

    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if process()[1] > 1:  # started by accelerate launch or torchrun
        device = str(PartialState(cpu=device == "cpu").device)
    sizes = (args.image_size, args.crop_pct)
    settings = EvaluationSettings(args.batch_size, args.num_workers, device, *sizes, args.seed)
    model = load_teacher(args.model_name_or_path, checkpoint=args.model_checkpoint, revision=args.model_revision)
    evaluate = evaluate_datasets if args.suite else evaluate_dataset
    evaluation, figures = evaluate(args, model.to(device, args.dtype), settings)
    if is_main_process():
        for name, value in figures.items():
            print(f"{name:14} {value:.4f}" if isinstance(value, float) else f"{name:14} {value}")
        if args.output_json:
            write_json(args.output_json, figures)
        if args.output_dir:
            evaluation.save(args.output_dir)
            if evaluation.datasets:
                write_report(args.output_dir)
    if evaluation.skipped:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in evaluation.skipped.items())
        raise ValueError(f"{len(evaluation.skipped)} datasets of the suite could not be evaluated: {reasons}")


def evaluate_datasets(args, model, settings):
    from hf_reinforce import evaluate_suite, load_suite
    from hf_reinforce.evaluation.evaluator import is_main_process

    suite, names = load_suite(args.suite), " + ".join(args.model_name_or_path)
    found = evaluate_suite(model, names, suite, settings, args.output_dir, args.max_samples)
    if is_main_process():
        for name, result in found.datasets.items():
            print(f"{name:40} accuracy {result.metrics['accuracy']:.4f}")
    return found, {"model": names, "suite": suite.name, **found.summary}


def evaluate_dataset(args, model, settings):
    from hf_reinforce import ImageSource, SuiteEntry
    from hf_reinforce.evaluation import evaluator
    from hf_reinforce.evaluation.tasks import open_rows, open_task
    from hf_reinforce.models.classes import tables

    rows, commit = open_rows(args.dataset_name, args.dataset_config_name, args.split, args.dataset_revision)
    label_column, classes, named, given = args.label_column_name, None, args.classes_from, class_map(args.class_map)
    if named in rows.column_names:
        label_column = named
    elif named is not None:
        if named != "index" and named not in tables() and not Path(named).is_file():
            raise ValueError(
                f"--classes_from {named}: there is no such column, table or file; the columns are "
                f"{', '.join(rows.column_names)}, the tables {', '.join(tables())}."
            )
        classes = named
    elif given is not None:
        model = model.with_classes(ImageSource.of(rows, args.image_column_name, label_column).class_names, given)
        classes = list(range(model.num_classes))
    entry = SuiteEntry(
        args.dataset_name,
        dataset_config_name=args.dataset_config_name,
        revision=commit,
        split=args.split,
        image_column=args.image_column_name,
        label_column=label_column,
        classes=classes,
        scoring=args.scoring,
    )
    task = open_task(rows, entry, model.class_names, model.num_classes, args.max_samples)
    found = evaluator.new_evaluation(" + ".join(args.model_name_or_path), None, settings)
    name = Path(args.dataset_name).name
    evaluator.evaluate_entry(model, name, entry, {"": task}, settings, found, args.output_dir)
    result = found.datasets[name]
    figures = {"model": found.model, "dataset": args.dataset_name, "split": args.split, **result.metrics}
    return found, {**figures, "num_samples": result.num_samples, "classes": result.class_map}


if __name__ == "__main__":
    main()
