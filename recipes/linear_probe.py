"""Linear probe: how good are a frozen network's features for another dataset?

python recipes/linear_probe.py --model_name_or_path outputs/student --dataset_name flwrlabs/caltech101
"""

from dataclasses import dataclass, replace

from arguments import check_device, one_line_errors, option, parse, required, write_json


@dataclass
class ProbeArguments:
    model_name_or_path: list[str] = required("Hub id or folder of an image classifier; each one is probed.")
    dataset_name: str = required("Hub id, folder of Parquet files, or ImageFolder.")
    dataset_config_name: str | None = option("Hub configuration of the dataset.")
    train_split: str = option("Split that the probe is fitted on.", "train")
    eval_split: str = option("Split that it is evaluated on.", "test")
    image_column_name: str | None = option("Image column, default the only one.")
    label_column_name: str | None = option("Label column, default the only ClassLabel column.")
    model_checkpoint: str | None = option("Weights of a model that is a bare timm architecture.")
    model_revision: str | None = option("Hub revision of the model.")
    image_size: int | None = option("Side that the network sees in pixels, default the model's own.")
    crop_pct: float | None = option("Share of the shorter side that is seen, default the model's.")
    strengths: list[float] = option("Values of C to choose from, default 1e-4 to 1.", [])
    max_train_samples: int | None = option("Fit on so many images, a random choice.")
    max_eval_samples: int | None = option("Evaluate on the first so many images.")
    seed: int = option("Of the held-out part on which C is chosen.", 0)
    batch_size: int = option("Images per forward pass.", 64)
    num_workers: int = option("Processes that decode.", 2)
    device: str | None = option("Device, default a GPU where there is one.")
    output_json: str | None = option("File to write the metrics to.")


@one_line_errors
def main() -> None:
    (args,) = parse(__doc__, [ProbeArguments])
    check_device(args.device)
    if any(strength <= 0 for strength in args.strengths):
        raise ValueError(f"--strengths are values of C > 0, not {args.strengths}.")
    from hf_reinforce.transfer.samples import optional

    optional("sklearn.linear_model")  # a missing package, too
    results = []
    for name in args.model_name_or_path:
        results.append(probe(args, name, *splits(args)))
        if args.output_json:
            write_json(args.output_json, results)
    print("| model | pixels | features | C | top-1 | top-5 | NLL | ECE |\n|---|---|---|---|---|---|---|---|")
    line = "| {model} | {image_size} | {features} | {C:g} | {accuracy:.4f} | {accuracy_top5:.4f} | {nll:.3f} "
    line += "| {ece:.3f} |"
    for row in results:
        print(line.format_map(row))


def splits(args):
    """The images to fit on and to evaluate on; their classes must be the same."""
    from hf_reinforce import ImageSource
    from hf_reinforce.hub.load import load_source

    sources = []
    for split, limit in ((args.train_split, args.max_train_samples), (args.eval_split, args.max_eval_samples)):
        rows = load_source(args.dataset_name, args.dataset_config_name, split)
        if limit is not None and limit < len(rows):
            rows = rows.shuffle(args.seed).select(range(limit)) if not sources else rows.select(range(limit))
        names = sources[0].class_names if sources else None
        source = ImageSource.of(rows, args.image_column_name, args.label_column_name, names)
        place = f"{args.dataset_name}, split {split!r}"
        if not len(source) or not source.has_labels or not source.class_names:
            raise ValueError(
                f"{place} has no rows or no ClassLabel column; choose another --label_column_name or split."
            )
        source.check_labels(name=place)
        sources.append(source)
    names = [source.class_names for source in sources]
    if names[0] != names[1]:
        raise ValueError(
            f"The splits {args.train_split!r} and {args.eval_split!r} have different classes; choose others."
        )
    return sources


def probe(args, name, train, test):
    import torch

    from hf_reinforce import AugmentedDataset, evaluation_policy
    from hf_reinforce.models.networks import named_member
    from hf_reinforce.transfer.probe import STRENGTHS, extract_features, fit_probe

    member = named_member(name, args.model_checkpoint, args.model_revision, head=False)
    own = member.preprocessing
    if own is None:
        raise ValueError(f"{name} does not say how it wants its images; add its preprocessor_config.json.")
    size = args.image_size or own.image_size
    member = replace(member, preprocessing=replace(own, image_size=size))
    policy = evaluation_policy(**own.framing(size, args.crop_pct))
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    (features, labels), (test_features, test_labels) = (
        extract_features(member, AugmentedDataset(source, policy), args.batch_size, args.num_workers, device)
        for source in (train, test)
    )
    fitted = fit_probe(features, labels, len(train.class_names), args.strengths or STRENGTHS, args.seed)
    about = {"model": name, "dataset": args.dataset_name, "train_split": args.train_split}
    about |= {"eval_split": args.eval_split, "image_size": size, "num_train": len(labels)}
    about |= {"features": features.shape[1], "C": fitted.strength, "held_out_nll": fitted.held_out_nll}
    return {**about, **fitted.evaluate(test_features, test_labels)}


if __name__ == "__main__":
    main()
