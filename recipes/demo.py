"""The first minutes: reinforce scikit-learn's digits and train the same student three ways.

    python recipes/demo.py

A teacher learns from 1,197 digits. The students' training set is 50 of these: once with its labels (plain), once with
the teacher at every step (online), once reinforced. All three draw from the same augmentation policy, take the same
number of steps and are evaluated on 600 digits that nobody has seen. Results: outputs/demo/report.md and report.json.
"""

import contextlib
import io
import json
import os
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import reinforce
import train_kd
from arguments import one_line_errors, option, parse, write_json

METHODS = ("plain", "online", "reinforced")
TEACHER, STUDENT, HELD_OUT, OF_STUDENTS = "resnet18", "resnet10t", 600, 50
POLICY = str(Path(__file__).parent / "digits_plus/policy.yaml")
TRAINING = """--eval_split test --per_device_train_batch_size 50 --per_device_eval_batch_size 200 --timm_optimizer sgd
--learning_rate 0.05 --weight_decay 5e-4 --lr_scheduler_type cosine --warmup_steps 0.1 --save_strategy no
--logging_strategy no --disable_tqdm True --report_to none --log_level error"""
REPORT = """# The same student, the same steps, three ways

| training | accuracy | ECE | seconds per epoch |
|---|---|---|---|
{rows}

Setting: resnet10t, {args.num_epochs} epochs on 50 handwritten digits (scikit-learn), the same augmentation policy in \
all three; mean and standard deviation over {args.num_seeds} seeds; evaluated on 600 held-out digits. The teacher, \
resnet18, has learned from the labels of 1,197 digits, the students' 50 among them, and reaches {accuracy:.3f}: as in \
the paper, it has seen more data than the students' training set holds, and that is what reinforcement passes on. \
`digits-plus/` holds N = {args.num_samples} reinforcements of each image.

![views and targets](digits-plus/digits/preview.png)
"""


@dataclass
class DemoArguments:
    output_dir: str = option("Where the results go.", "outputs/demo")
    num_samples: int = option("N, reinforcements per image.", 50)
    num_epochs: int = option("Epochs of a student.", 100)
    teacher_epochs: int = option("Epochs of the teacher.", 12)
    num_seeds: int = option("Students of each method.", 3)


@one_line_errors
def main() -> None:
    os.environ["HF_HUB_OFFLINE"] = "1"  # everything is here; nothing is looked up
    (args,) = parse(__doc__, [DemoArguments])
    output = Path(args.output_dir)
    digits, teacher, plus = (str(output / name) for name in ("digits", "teacher", "digits-plus"))
    write_digits(output)

    print(f"Teacher: {TEACHER} learns from 1,197 digits", flush=True)
    data = ["--dataset_name", f"{digits}-of-teacher", "--policy", POLICY, "--method", "plain"]
    accuracy = train(teacher, *data, model_name_or_path=TEACHER, num_train_epochs=args.teacher_epochs)["accuracy"]
    print(f"  accuracy {accuracy:.3f} on {HELD_OUT} held-out digits", flush=True)

    print(f"Reinforce {OF_STUDENTS} digits: {args.num_samples} augmentations of each, seen once by the teacher")
    run = {"dataset_name": digits, "teacher_name_or_path": teacher, "policy": POLICY, "output_dir": plus}
    call(reinforce, num_samples=args.num_samples, embed_images=True, device="cpu", **run)

    runs = {method: [] for method in METHODS}
    for seed in range(args.num_seeds):
        for method in METHODS:
            data = ["--dataset_name", plus, "--eval_dataset_name", digits, "--method", method]
            data += ["--teacher_name_or_path", teacher] if method == "online" else []
            settings = {"model_name_or_path": STUDENT, "num_train_epochs": args.num_epochs, "seed": seed}
            runs[method].append(train(f"{output}/students/{method}-{seed}", *data, **settings))
            print(f"  seed {seed}, {method:10} accuracy {runs[method][-1]['accuracy']:.3f}", flush=True)

    report = {method: mean_and_spread(metrics) for method, metrics in runs.items()}
    write_json(output / "report.json", report)
    row = "| {} | {accuracy:.3f} ± {accuracy_std:.3f} | {ece:.3f} ± {ece_std:.3f} | {seconds_per_epoch:.2f} |"
    rows = "\n".join(row.format(method, **found) for method, found in report.items())
    text = REPORT.format(rows=rows, args=args, accuracy=accuracy)
    (output / "report.md").write_text(text, encoding="utf-8")
    print(f"\n{text}\nWritten: {output / 'report.md'}, {plus}/")


def write_digits(output):
    """The digits as PNG images in Parquet files: 600 held out, the rest for the teacher, some of it for students."""
    import numpy as np
    from datasets import ClassLabel, Dataset, Features, Image
    from PIL import Image as PILImage
    from sklearn.datasets import load_digits

    data, rows = load_digits(), []
    for index in np.random.default_rng(0).permutation(len(data.images)):
        buffer = io.BytesIO()
        PILImage.fromarray((data.images[index] * 255 / 16).round().astype(np.uint8)).save(buffer, format="PNG")
        rows.append({"image": {"bytes": buffer.getvalue(), "path": None}, "label": int(data.target[index])})
    features = Features({"image": Image(), "label": ClassLabel(names=[str(digit) for digit in range(10)])})
    for folder, end in (("digits", HELD_OUT + OF_STUDENTS), ("digits-of-teacher", None)):
        (output / folder).mkdir(parents=True, exist_ok=True)
        for split, part in (("train", rows[HELD_OUT:end]), ("test", rows[:HELD_OUT])):
            Dataset.from_list(part, features=features).to_parquet(output / folder / f"{split}.parquet")


def call(recipe, *words, **flags):
    """Runs another recipe, which prints nothing."""
    argv = [*words, *(word for flag, value in flags.items() for word in (f"--{flag}", str(value)))]
    with contextlib.redirect_stdout(io.StringIO()), mock.patch.object(sys, "argv", [recipe.__name__, *argv]):
        recipe.main()


def train(folder, *words, **flags):
    """Trains and evaluates one network with `train_kd.py`; returns its figures."""
    import torch

    call(train_kd, *TRAINING.split(), *words, output_dir=folder, use_cpu=not torch.cuda.is_available(), **flags)
    found = json.loads((Path(folder) / "all_results.json").read_text(encoding="utf-8"))
    seconds = found["train_runtime"] / found["epoch"]
    return {"accuracy": found["eval_accuracy"], "ece": found["eval_ece"], "seconds_per_epoch": seconds}


def mean_and_spread(runs):
    """What stands in the report of one method's runs."""
    found = {"seconds_per_epoch": statistics.fmean(run["seconds_per_epoch"] for run in runs)}
    for name in ("accuracy", "ece"):
        values = [run[name] for run in runs]
        found |= {name: statistics.fmean(values), f"{name}_std": statistics.stdev(values) if len(values) > 1 else 0.0}
    return found


if __name__ == "__main__":
    main()
