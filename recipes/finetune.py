"""Fine-tunes a pretrained student on another dataset, plain or reinforced, once or with several rates and seeds.

python recipes/finetune.py --model_name_or_path outputs/student --dataset_name outputs/flowers102-plus
python recipes/finetune.py --model_name_or_path outputs/student --dataset_name flwrlabs/caltech101 --policy randaug \\
    --learning_rates 0.002 0.02 --seeds 0 1 2 --eval_split test --output_dir outputs/caltech101
"""

import json
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path

import train_kd
from arguments import flag_parser, given, known_words, one_line_errors, option, parse, write_json
from checks import check_values
from train_kd import DataArguments, ModelArguments, training_classes
from unused import FINETUNE, say_unused

# The paper's, for CIFAR-100, Flowers-102 and Food-101, except for the number of epochs (1,000; 10,000 for Flowers).
DEFAULTS = {
    "timm_optimizer": "momentum",
    "learning_rate": 0.002,
    "weight_decay": 5e-4,
    "lr_scheduler_type": "cosine",
    "per_device_train_batch_size": 256,
    "num_train_epochs": 100,
}
INSTEAD = {"timm_optimizer": "optim", "num_train_epochs": "max_steps"}
"""Defaults that are left out where another flag is given."""


@dataclass
class FinetuneArguments:
    learning_rates: list[float] = option("Learning rates, one run each, default --learning_rate.", [])
    seeds: list[int] = option("Seeds, one run each, default --seed.", [])


FURTHER = (
    f"{train_kd.FURTHER}\nDefaults where --help of train_kd.py has none: "
    + ", ".join(f"--{name} {value}" for name, value in DEFAULTS.items())
    + ", and --method plain for a dataset that is not reinforced."
)


@one_line_errors
def main() -> None:
    classes = [FinetuneArguments, DataArguments, ModelArguments]
    if {"-h", "--help"} & set(sys.argv):
        parse(__doc__, classes, training_classes, FURTHER)
    own, data, flags, args = read_flags(sys.argv[1:], classes)
    runs = [(rate, seed) for rate in own.learning_rates or [args.learning_rate] for seed in own.seeds or [args.seed]]
    results = []
    for rate, seed in runs:
        folder = args.output_dir if len(runs) == 1 else f"{args.output_dir}/lr{rate:g}-seed{seed}"
        run = ["--learning_rate", str(rate), "--seed", str(seed), "--output_dir", folder]
        # Each run is one of train_kd.py.
        sys.argv = ["recipes/train_kd.py", *flags, *run]
        train_kd.main()
        path = Path(folder) / "eval_results.json"
        metrics = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        results.append({"learning_rate": rate, "seed": seed, "output_dir": folder, **metrics})
    if args.process_index == 0 and data.eval_split is not None:
        write_json(Path(args.output_dir) / "finetune.json", results)
        print_table(results)


def read_flags(argv, classes):
    """The recipe's own flags, those of the data, and all others with the defaults of fine-tuning; and their values."""
    from transformers import HfArgumentParser

    from hf_reinforce.hub.load import is_reinforced

    parser, asked = flag_parser([*classes, *training_classes()]), given()
    argv = known_words(argv, parser)
    replaced = {name for name, other in INSTEAD.items() if other in asked}
    defaults = {name: value for name, value in DEFAULTS.items() if name not in asked | replaced}
    argv = [*argv, *(word for name, value in defaults.items() for word in (f"--{name}", str(value)))]
    own, data, model, args = parser.parse_args_into_dataclasses(args=argv, look_for_args_file=False)
    check_values((own, data, model, args))
    say_unused(FINETUNE, (own, args), asked)
    if "/" not in model.model_name_or_path and not Path(model.model_name_or_path).exists():
        raise ValueError(
            f"{model.model_name_or_path!r} is an architecture without weights; fine-tune a Hub id or a folder, or "
            "train from random weights with recipes/train_kd.py."
        )
    flags = HfArgumentParser([FinetuneArguments]).parse_args_into_dataclasses(
        args=argv, look_for_args_file=False, return_remaining_strings=True
    )[1]
    if "method" not in asked:
        flags += ["--method", "reinforced" if is_reinforced(data.dataset_name) else "plain"]
    return own, data, flags, args


def print_table(results) -> None:
    """One line per learning rate: mean and standard deviation over the seeds."""
    print("| learning rate | seeds | top-1 | NLL | ECE |\n|---|---|---|---|---|")
    for rate in dict.fromkeys(result["learning_rate"] for result in results):
        of_rate = [result for result in results if result["learning_rate"] == rate]
        cells = [spread([result[f"eval_{name}"] for result in of_rate]) for name in ("accuracy", "nll", "ece")]
        print(f"| {rate:g} | {len(of_rate)} | {' | '.join(cells)} |")


def spread(values) -> str:
    mean = f"{statistics.fmean(values):.4f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.4f}"


if __name__ == "__main__":
    main()
