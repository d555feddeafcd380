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
from arguments import one_line_errors, option, parse, with_file, write_json
from train_kd import DataArguments, ModelArguments, training_classes

# The paper's, for CIFAR-100, Flowers-102 and Food-101, except for the number of epochs (1,000; 10,000 for Flowers).
DEFAULTS = {
    "timm_optimizer": "momentum",
    "learning_rate": 0.002,
    "weight_decay": 5e-4,
    "lr_scheduler_type": "cosine",
    "per_device_train_batch_size": 256,
    "num_train_epochs": 100,
}


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
    own, data, model, args = read_flags(sys.argv[1:])
    from hf_reinforce.hub.load import is_reinforced

    if "/" not in (name := model.model_name_or_path) and not Path(name).exists():
        raise ValueError(f"{name!r} is an architecture without weights; fine-tune a Hub id or a folder.")
    rates, seeds, output_dir = own.learning_rates or [args.learning_rate], own.seeds or [args.seed], args.output_dir
    method = "reinforced" if is_reinforced(data.dataset_name) else "plain"
    results = []
    for rate, seed in ((rate, seed) for rate in rates for seed in seeds):
        folder = output_dir if len(rates) == len(seeds) == 1 else f"{output_dir}/lr{rate:g}-seed{seed}"
        run = ["--learning_rate", str(rate), "--seed", str(seed), "--output_dir", folder]
        _, data, model, args = read_flags([*sys.argv[1:], *run], method=method)
        train_kd.train(data, model, args)
        path = Path(folder) / "eval_results.json"
        metrics = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        results.append({"learning_rate": rate, "seed": seed, "output_dir": folder, **metrics})
    if args.process_index == 0 and data.eval_split is not None:
        write_json(Path(output_dir) / "finetune.json", results)
        print_table(results)


def read_flags(argv, **further):
    """The dataclasses of the flags, with the defaults of fine-tuning; those of timm only without an `--optim`."""
    defaults = {**DEFAULTS, **further}
    if not {"-h", "--help"} & set(argv) and any(word.partition("=")[0] == "--optim" for word in with_file(argv)):
        del defaults["timm_optimizer"]
    classes = [FinetuneArguments, DataArguments, ModelArguments]
    return parse(__doc__, classes, training_classes, FURTHER, argv=argv, defaults=defaults)


def print_table(results) -> None:
    """One line per learning rate: mean and standard deviation over the seeds."""
    print("| learning rate | seeds | top-1 | NLL | ECE |\n|---|---|---|---|---|")
    for rate in dict.fromkeys(result["learning_rate"] for result in results):
        cells, of_rate = [], [result for result in results if result["learning_rate"] == rate]
        for values in ([result[f"eval_{name}"] for result in of_rate] for name in ("accuracy", "nll", "ece")):
            spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
            cells.append(f"{statistics.fmean(values):.4f}{spread}")
        print(f"| {rate:g} | {len(of_rate)} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
