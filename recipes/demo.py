"""The first minutes: reinforce scikit-learn's digits and train the same student three ways.

    python recipes/demo.py

A teacher learns from 1,197 digits. The students' training set is 50 of these: once with its labels (plain), once with
the teacher at every step (online), once reinforced. All three draw from the same augmentation policy, take the same
number of steps and are evaluated on 600 digits that nobody has seen. Results: outputs/demo/report.md, report.json and
pictures.
"""

import io
import os
import statistics
from dataclasses import dataclass
from pathlib import Path

from arguments import one_line_errors, option, parse, write_json

METHODS = ("plain", "online", "reinforced")
HELD_OUT, OF_STUDENTS = 600, 50
TEACHER, TEACHER_EPOCHS, STUDENT = "resnet18", 12, "resnet10t"
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

![reliability](reliability.png)
"""


@dataclass
class DemoArguments:
    output_dir: str = option("Where the results go.", "outputs/demo")
    num_samples: int = option("N, reinforcements per image.", 50)
    num_epochs: int = option("Epochs of a student.", 100)
    num_seeds: int = option("Students of each method.", 3)


@one_line_errors
def main() -> None:
    os.environ["HF_HUB_OFFLINE"] = "1"  # everything is here; nothing is looked up
    (args,) = parse(__doc__, [DemoArguments])
    import transformers

    from hf_reinforce import load_policy, load_reinforced, load_teacher, reinforce, write_dataset_card, write_preview
    from hf_reinforce.evaluation.pictures import draw_reliability

    transformers.utils.logging.set_verbosity_error()
    output = Path(args.output_dir)
    policy = load_policy(str(Path(__file__).parent / "digits_plus/policy.yaml"))
    digits = load_digits()
    test, of_teacher = digits.select(range(HELD_OUT)), digits.select(range(HELD_OUT, len(digits)))
    of_students = of_teacher.select(range(OF_STUDENTS))

    print(f"Teacher: {TEACHER} learns from {len(of_teacher)} digits", flush=True)
    place = output / "teacher"
    metrics, _ = train(TEACHER, "plain", augmented(of_teacher, policy, 0), test, TEACHER_EPOCHS, 0, place)
    teacher, accuracy = load_teacher(str(place)), metrics["accuracy"]
    print(f"  accuracy {accuracy:.3f} on {HELD_OUT} held-out digits", flush=True)

    print(f"Reinforce {OF_STUDENTS} digits: {args.num_samples} augmentations of each, seen once by the teacher")
    folder = output / "digits-plus"
    options = {"num_samples": args.num_samples, "embed_images": True, "device": "cpu"}
    write_preview(reinforce(of_students, teacher, policy, folder, **options))
    write_dataset_card(folder)

    runs, diagrams = {method: [] for method in METHODS}, {}
    for seed in range(args.num_seeds):
        for method in METHODS:
            reinforced = method == "reinforced"
            data = load_reinforced(str(folder), seed=seed) if reinforced else augmented(of_students, policy, seed)
            place = output / f"students/{method}-{seed}"
            metrics, diagram = train(STUDENT, method, data, test, args.num_epochs, seed, place, teacher)
            runs[method].append(metrics)
            diagrams.setdefault(method, diagram)
            print(f"  seed {seed}, {method:10} accuracy {metrics['accuracy']:.3f}", flush=True)

    report = {method: mean_and_spread(metrics) for method, metrics in runs.items()}
    write_json(output / "report.json", report)
    row = "| {} | {accuracy:.3f} ± {accuracy_std:.3f} | {ece:.3f} ± {ece_std:.3f} | {seconds_per_epoch:.2f} |"
    rows = "\n".join(row.format(method, **found) for method, found in report.items())
    text = REPORT.format(rows=rows, args=args, accuracy=accuracy)
    (output / "report.md").write_text(text, encoding="utf-8")
    draw_reliability(diagrams, {method: runs[method][0]["ece"] for method in METHODS}, output / "reliability.png")
    print(f"\n{text}\nWritten: {output / 'report.md'}, {folder}/")


def load_digits():
    """The 1,797 digits as PNG images, in a random order."""
    import numpy as np
    from datasets import ClassLabel, Dataset, Features, Image
    from PIL import Image as PILImage
    from sklearn import datasets

    data = datasets.load_digits()
    rows = []
    for index in np.random.default_rng(0).permutation(len(data.images)):
        buffer = io.BytesIO()
        PILImage.fromarray((data.images[index] * 255 / 16).round().astype(np.uint8)).save(buffer, format="PNG")
        rows.append({"image": {"bytes": buffer.getvalue(), "path": None}, "label": int(data.target[index])})
    names = [str(digit) for digit in range(10)]
    return Dataset.from_list(rows, features=Features({"image": Image(), "label": ClassLabel(names=names)}))


def augmented(rows, policy, seed):
    from hf_reinforce import AugmentedDataset, ImageSource

    return AugmentedDataset(ImageSource.of(rows), policy, seed=seed)


def train(architecture, method, data, test, epochs, seed, folder, teacher=None):
    """Trains and evaluates one network; returns its metrics and its reliability diagram."""
    import torch
    from transformers import set_seed

    from hf_reinforce import KDTrainer, KDTrainingArguments, create_student, evaluation_policy
    from hf_reinforce.metrics import measure, reliability, score

    set_seed(seed)
    side = data.policy.image_size
    test_set = augmented(test, evaluation_policy(side), 0)
    trainer = KDTrainer(
        create_student(architecture, 10, side, test.features["label"].names),
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
        train_dataset=data,
        eval_dataset=test_set,
        teacher=teacher if method == "online" else None,
    )
    result = trainer.train()
    trainer.save_model()
    prediction = trainer.predict(test_set)
    scores = score(torch.as_tensor(prediction.predictions), torch.as_tensor(prediction.label_ids))
    return {**measure(scores), "seconds_per_epoch": result.metrics["train_runtime"] / epochs}, reliability(scores)


def mean_and_spread(runs):
    """What stands in the report of one method's runs."""
    found = {"seconds_per_epoch": statistics.fmean(run["seconds_per_epoch"] for run in runs)}
    for name in ("accuracy", "ece"):
        values = [run[name] for run in runs]
        found |= {name: statistics.fmean(values), f"{name}_std": statistics.stdev(values) if len(values) > 1 else 0.0}
    return found


if __name__ == "__main__":
    main()
