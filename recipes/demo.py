"""The first minutes: reinforce scikit-learn's digits and train the same student three ways.

    python recipes/demo.py

A teacher learns from 1,197 digits. The students' training set is 50 of these: once with its labels (plain), once with
the teacher at every step (online), once reinforced. All three draw from the same augmentation policy, take the same
number of steps and are evaluated on 600 digits that nobody has seen. Results: outputs/demo/report.md, report.json and
pictures.
"""

import json
import os
import statistics
from dataclasses import dataclass
from pathlib import Path

from arguments import one_line_errors, option, parse

METHODS = ("plain", "online", "reinforced")
HELD_OUT = 600
IN_TRAINING = 1797 - HELD_OUT


@dataclass
class DemoArguments:
    output_dir: str = option("Where the results go.", "outputs/demo")
    train_size: int = option("Digits in the students' training set.", 50)
    num_samples: int = option("N, reinforcements per image.", 50)
    num_epochs: int = option("Epochs of a student.", 100)
    teacher_epochs: int = option("Epochs of the teacher.", 12)
    num_seeds: int = option("Students of each method.", 3)
    student: str = option("timm architecture of the student.", "resnet10t")
    teacher: str = option("timm architecture of the teacher.", "resnet18")


@one_line_errors
def main() -> None:
    os.environ["HF_HUB_OFFLINE"] = "1"  # everything is here; nothing is looked up
    (args,) = parse(__doc__, [DemoArguments])
    import timm
    import transformers

    unknown = [name for name in (args.student, args.teacher) if not timm.is_model(name)]
    if unknown or args.train_size > IN_TRAINING:
        raise ValueError(
            f"--student and --teacher are timm architectures, and --train_size is at most {IN_TRAINING}; found "
            f"{', '.join(unknown) or args.train_size}."
        )

    from hf_reinforce import (
        load_policy,
        load_reinforced,
        load_teacher,
        reinforce,
        write_dataset_card,
        write_preview,
    )

    transformers.utils.logging.set_verbosity_error()
    output = Path(args.output_dir)
    policy = load_policy(str(Path(__file__).parent / "digits_plus/policy.yaml"))
    splits = digits(args.train_size)

    say(f"Teacher: {args.teacher} learns from {len(splits['teacher'])} digits")
    teacher_folder, metrics, _ = train(
        args.teacher, "plain", splits, "teacher", policy, args.teacher_epochs, 0, output
    )
    teacher = load_teacher(str(teacher_folder))
    say(f"  accuracy {metrics['eval_accuracy']:.3f} on {HELD_OUT} held-out digits")

    say(f"Reinforce {args.train_size} digits: {args.num_samples} augmentations of each, seen once by the teacher")
    folder = output / "digits-plus"
    options = {"num_samples": args.num_samples, "embed_images": True, "device": "cpu"}
    write_preview(reinforce(splits["train"], teacher, policy, folder, **options))
    write_dataset_card(folder)
    teacher_accuracy = metrics["eval_accuracy"]

    runs = {method: [] for method in METHODS}
    for seed in range(args.num_seeds):
        for method in METHODS:
            stored = load_reinforced(str(folder), seed=seed) if method == "reinforced" else None
            _, metrics, reliability = train(
                args.student, method, splits, "train", policy, args.num_epochs, seed, output, teacher, stored
            )
            runs[method].append({**metrics, "reliability": reliability})
            say(f"  seed {seed}, {method:10} accuracy {metrics['eval_accuracy']:.3f}")
    write_report(output, args, teacher_accuracy, runs)
    say(f"\n{(output / 'report.md').read_text(encoding='utf-8')}\nWritten: {output / 'report.md'}, {folder}/")


def say(text: str) -> None:
    print(text, flush=True)


def digits(train_size):
    """The 1,797 digits as datasets of PNG images: 600 held out, the rest for the teacher, some of it for students."""
    import io

    import numpy as np
    from datasets import ClassLabel, Dataset, Features, Image
    from PIL import Image as PILImage
    from sklearn.datasets import load_digits

    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.images))

    def encode(pixels):
        buffer = io.BytesIO()
        PILImage.fromarray((pixels * 255 / 16).round().astype(np.uint8)).save(buffer, format="PNG")
        return {"bytes": buffer.getvalue(), "path": None}

    def rows(chosen):
        return Dataset.from_dict(
            {"image": [encode(data.images[i]) for i in chosen], "label": [int(data.target[i]) for i in chosen]},
            features=Features({"image": Image(), "label": ClassLabel(names=[str(digit) for digit in range(10)])}),
        )

    return {
        "test": rows(order[:HELD_OUT]),
        "teacher": rows(order[HELD_OUT:]),
        "train": rows(order[HELD_OUT : HELD_OUT + train_size]),
    }


def train(architecture, method, splits, split, policy, epochs, seed, output, teacher=None, stored=None):
    """Trains and evaluates one network; returns its folder, its metrics and its reliability diagram."""
    import torch
    from transformers import set_seed

    from hf_reinforce import (
        AugmentedDataset,
        ImageSource,
        KDTrainer,
        KDTrainingArguments,
        create_student,
        evaluation_policy,
    )
    from hf_reinforce.metrics import measure, reliability, score

    set_seed(seed)
    folder = output / ("teacher" if split == "teacher" else f"students/{method}-{seed}")
    train_set = stored or AugmentedDataset(ImageSource.of(splits[split]), policy, seed=seed)
    test_set = AugmentedDataset(ImageSource.of(splits["test"]), evaluation_policy(policy.image_size))
    trainer = KDTrainer(
        create_student(architecture, 10, policy.image_size, splits["test"].features["label"].names),
        KDTrainingArguments(
            output_dir=str(folder),
            method=method,
            num_train_epochs=epochs,
            per_device_train_batch_size=50,
            per_device_eval_batch_size=200,
            timm_optimizer="sgd",
            learning_rate=0.05,
            weight_decay=5e-4,
            lr_scheduler_type="cosine",
            warmup_steps=0.1,
            save_strategy="no",
            logging_strategy="no",
            seed=seed,
            use_cpu=not torch.cuda.is_available(),
            disable_tqdm=True,
            report_to="none",
        ),
        train_dataset=train_set,
        eval_dataset=test_set,
        teacher=teacher if method == "online" else None,
    )
    result = trainer.train()
    trainer.save_model()
    prediction = trainer.predict(test_set)
    scores = score(torch.as_tensor(prediction.predictions), torch.as_tensor(prediction.label_ids))
    found = {f"eval_{name}": value for name, value in measure(scores).items()}
    return folder, {**found, "seconds_per_epoch": result.metrics["train_runtime"] / epochs}, reliability(scores)


def write_report(output, args, teacher_accuracy, runs):
    """report.json, report.md and reliability.png."""
    from hf_reinforce.evaluation.pictures import draw_reliability

    def mean(method, name):
        return statistics.fmean(run[name] for run in runs[method])

    def spread(method, name):
        return statistics.stdev(run[name] for run in runs[method]) if args.num_seeds > 1 else 0.0

    report = {
        method: {
            "accuracy": mean(method, "eval_accuracy"),
            "accuracy_std": spread(method, "eval_accuracy"),
            "ece": mean(method, "eval_ece"),
            "ece_std": spread(method, "eval_ece"),
            "seconds_per_epoch": mean(method, "seconds_per_epoch"),
        }
        for method in METHODS
    }
    (output / "report.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    rows = [
        f"| {method} | {row['accuracy']:.3f} ± {row['accuracy_std']:.3f} | {row['ece']:.3f} ± {row['ece_std']:.3f} | "
        f"{row['seconds_per_epoch']:.2f} |"
        for method, row in report.items()
    ]
    setting = (
        f"Setting: {args.student}, {args.num_epochs} epochs on {args.train_size} handwritten digits (scikit-learn), "
        f"the same augmentation policy in all three; mean and standard deviation over {args.num_seeds} seeds; "
        f"evaluated on {HELD_OUT} held-out digits. The teacher, {args.teacher}, has learned from the labels of 1,197 "
        f"digits, the students' {args.train_size} among them, and reaches {teacher_accuracy:.3f}: as in the paper, it "
        "has seen more data than the students' training set holds, and that is what reinforcement passes on. "
        f"`digits-plus/` holds N = {args.num_samples} reinforcements of each image."
    )
    lines = [
        "# The same student, the same steps, three ways",
        "",
        "| training | accuracy | ECE | seconds per epoch |",
        "|---|---|---|---|",
        *rows,
        "",
        setting,
        "",
        "![views and targets](digits-plus/digits/preview.png)",
        "",
        "![reliability](reliability.png)",
    ]
    (output / "report.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    first = {method: runs[method][0] for method in METHODS}
    errors = {method: run["eval_ece"] for method, run in first.items()}
    draw_reliability({method: run["reliability"] for method, run in first.items()}, errors, output / "reliability.png")


if __name__ == "__main__":
    main()
