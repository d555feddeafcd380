"""`python -m benchmarks.soak`: does a long training grow? Memory, file handles, threads and processes over time.

A small student trains on reinforced photos with persistent workers, is evaluated and saved as it goes. After a warm-up
nothing may grow: not the handles, threads and processes, and the memory of the main process and of its workers by at
most a byte for each image that was trained on and 4 MiB that an allocator may move. The exit code is 1 if it did.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from scipy.stats import theilslopes
from transformers import PrinterCallback, TrainerCallback

from benchmarks.measure import machine
from benchmarks.photos import generated_photos
from benchmarks.records import generate, made_up_teacher
from hf_reinforce import AugmentedDataset, ImageSource, KDTrainer, KDTrainingArguments, load_policy, load_reinforced
from hf_reinforce.augmentations.policies import evaluation_policy
from hf_reinforce.models.students import create_student

OUTPUT, IMAGES, SIDE, BATCH_SIZE, WORKERS = Path("outputs/soak"), 512, 32, 32, 2
MIB = 2**20
WARM_UP = 0.25  # of the images that are trained on
SLACK, BYTES_PER_IMAGE = 4 * MIB, 1.0
SERIES = ("main", "workers", "handles", "threads", "processes")


class Watch(TrainerCallback):
    """Notes what the training holds at the end of every epoch.

    Args:
        finished: whether a sample is the last; then training ends.
    """

    def __init__(self, finished: Callable[[dict[str, float]], bool]) -> None:
        self.finished, self.start = finished, time.monotonic()
        self.samples: list[dict[str, float]] = []
        self.others = set(psutil.Process().children(recursive=True))  # which are none of the training

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        main = psutil.Process()
        workers = [process for process in main.children(recursive=True) if process not in self.others]
        everybody = [main, *workers]
        self.samples.append(
            {
                "seconds": time.monotonic() - self.start,
                "images": state.global_step * args.train_batch_size,
                "main": main.memory_info().rss,
                "workers": sum(process.memory_info().rss for process in workers),
                "handles": sum(process.num_fds() for process in everybody),
                "threads": sum(process.num_threads() for process in everybody),
                "processes": len(everybody),
            }
        )
        control.should_evaluate = control.should_save = round(state.epoch) % 10 == 1  # what they start belongs to it
        control.should_training_stop |= self.finished(self.samples[-1])


def growth(samples: list[dict[str, float]], warm_up: float = WARM_UP) -> dict[str, dict[str, Any]]:
    """By how much each series grew after the warm-up, by the Theil-Sen slope over the images, and whether it may."""
    last = samples[-1]["images"]
    kept = [sample for sample in samples if sample["images"] >= warm_up * last]
    kept = kept[:: len(kept) // 500 + 1]
    images = np.array([sample["images"] for sample in kept])
    span, found = float(np.ptp(images)), {}
    for name in SERIES:
        values = [sample[name] for sample in kept]
        grew = float(theilslopes(values, images).slope) * span if len(kept) > 1 else 0.0
        limit = SLACK + BYTES_PER_IMAGE * span if name in ("main", "workers") else 0.5
        found[name] = {"first": values[0], "last": values[-1], "grew": grew, "limit": limit, "ok": grew <= limit}
    return found


def soak(
    folder: Path,
    finished: Callable[[dict[str, float]], bool],
    images: int = IMAGES,
    change: Callable[[Any], Any] = lambda dataset: dataset,
) -> list[dict[str, float]]:
    """Trains with so many images in an epoch until a sample of its `Watch` is the last, and returns all samples.

    `change` makes another training set of the reinforced one.
    """
    source, plus = generated_photos(images, folder, (96, 60, 72)), folder / f"plus-{images}"
    generate(source, made_up_teacher(SIDE), load_policy("randaug", SIDE), plus, num_samples=4, embed_images=True)
    train = change(load_reinforced(str(plus)))
    torch.manual_seed(0)
    args = KDTrainingArguments(
        output_dir=str(folder / "student"),
        num_train_epochs=10**6,
        per_device_train_batch_size=BATCH_SIZE,
        dataloader_num_workers=WORKERS,
        dataloader_persistent_workers=True,
        timm_optimizer="sgd",
        learning_rate=0.01,
        ema_decay=0.99,
        save_total_limit=1,
        save_strategy="no",  # the watch decides
        logging_steps=10**6,
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
    )
    watch = Watch(finished)
    evaluation = AugmentedDataset(ImageSource.of(source.select(range(min(64, images)))), evaluation_policy(SIDE))
    student = create_student("test_resnet", 1000, SIDE)
    trainer = KDTrainer(student, args, train, evaluation, callbacks=[watch])
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return watch.samples


def draw(samples: list[dict[str, float]], path: Path) -> None:
    """Draws memory, handles, threads and processes over time."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 6), layout="constrained")
    minutes = [sample["seconds"] / 60 for sample in samples]
    panels = ((SERIES[:2], MIB, "resident memory, MiB"), (SERIES[2:], 1, "number, all processes"))
    for axes, (names, scale, label) in zip(figure.subplots(2, 1, sharex=True), panels, strict=True):
        for name in names:
            axes.plot(minutes, [sample[name] / scale for sample in samples], label=name)
        axes.set(ylim=(0, None), ylabel=label, xlabel="minutes of training")
        axes.legend()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--minutes", type=float, default=60.0, help="how long to train")
    parser.add_argument("--output_dir", type=Path, default=OUTPUT, help="for soak.json, soak.png and what is trained")
    args = parser.parse_args()
    samples = soak(args.output_dir, lambda sample: sample["seconds"] > args.minutes * 60)
    verdict = growth(samples)
    content = {"machine": machine(), "verdict": verdict, "samples": samples}
    (args.output_dir / "soak.json").write_text(json.dumps(content) + "\n", encoding="utf-8")
    draw(samples, args.output_dir / "soak.png")
    print(f"{samples[-1]['images']:,.0f} images in {samples[-1]['seconds'] / 60:.1f} minutes")
    for name, row in verdict.items():
        unit, scale = (" MiB", MIB) if name in SERIES[:2] else ("", 1)
        first, last, grew, limit = (f"{row[key] / scale:.4g}{unit}" for key in ("first", "last", "grew", "limit"))
        print(f"{name}: {first} to {last}, grew by {grew} of at most {limit}: {'ok' if row['ok'] else 'GROWS'}")
    print(f"Written: {args.output_dir}/soak.json, soak.png")
    raise SystemExit(0 if all(row["ok"] for row in verdict.values()) else 1)


if __name__ == "__main__":
    main()
