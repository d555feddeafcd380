"""What all benchmarks share: settings, variants measured in turn, rows of the table, and the file that keeps them."""

import json
import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar
from unittest.mock import patch

import psutil
import torch
from datasets import Dataset

from hf_reinforce.evaluation import results
from hf_reinforce.images.jpeg import DECODER
from hf_reinforce.store.atomic import write_whole

LIBRARIES = ("torch", "torchvision", "pillow", "numpy", "datasets", "pyarrow", "timm", "transformers", "accelerate")
Measure = Callable[[], float]
"""Runs a variant once and returns what it took, in the unit of its row."""

T = TypeVar("T")


@dataclass(frozen=True)
class Settings:
    """What the benchmarks share."""

    photos: Dataset  # columns `image` (not decoded) and `label`
    data: str  # which photos they are
    cache: Path  # folder for what is made once and used again
    tiny: bool = False  # everything as small as it gets, to see that it runs
    repetitions: int = 7  # measured runs of each variant
    reinforced_images: int = 512  # photos that a real teacher reinforces
    device: str = "cpu"  # where the networks run
    box_decoder: str | None = None  # HF_REINFORCE_DECODER for box-only decoding; None without libturbojpeg >= 3
    start_method: str = "spawn"  # of processes that measure memory; `spawn` for a fresh one
    workers: int = 2  # processes of a loader
    image_size: int = 224  # side of the views in pixels

    def pick(self, full: T, tiny: T) -> T:
        """The value for the size of this run."""
        return tiny if self.tiny else full


@dataclass(frozen=True)
class Row:
    """One row of the table."""

    name: str  # what is measured
    against: str  # what it is compared with
    ratio: float | None  # how many times faster or smaller; with a `unit`, the value itself; None: not measured
    target: float  # the least that `ratio` should be, or the most
    medians: dict[str, float]  # what was measured, by variant
    at_most: bool = False  # whether the target is an upper bound
    unit: str = "x"  # of `ratio`, where it is no ratio
    note: str = ""  # what else to know, e.g. why it was not measured

    @property
    def ok(self) -> bool | None:
        """Whether the target is met; None if it was not measured."""
        if self.ratio is None:
            return None
        return self.ratio <= self.target if self.at_most else self.ratio >= self.target


def faster(name: str, against: str, medians: dict[str, float], ours: str, target: float, other: str = "") -> Row:
    """The row of how many times less the variant `ours` takes than the variant `other`, named as in `against`."""
    return Row(name, against, medians[other or against] / medians[ours], target, medians)


def interleave(variants: dict[str, Measure], repetitions: int) -> dict[str, float]:
    """Medians of variants that are measured in turn, A B C C B A ..., after a first turn that is not counted."""
    runs: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(repetitions + 1):
        for name in list(variants)[:: -1 if turn % 2 else 1]:
            value = variants[name]()
            if turn:
                runs[name].append(value)
    return {name: statistics.median(values) for name, values in runs.items()}


def timed(function: Callable[[], Any], count: int = 1, unit: float = 1e3) -> Measure:
    """Measures a function: time for each of `count` things, in ms (`unit` = 1e3), us (1e6) or s (1)."""

    def measure() -> float:
        start = time.perf_counter()
        function()
        return (time.perf_counter() - start) / count * unit

    return measure


@contextmanager
def in_own_process(
    settings: Settings, decoder: str | None, setup: Any, *arguments: Any
) -> Iterator[Callable[[], Any]]:
    """A variant in a process of its own: for another HF_REINFORCE_DECODER than this process's, or for its memory.

    There `setup`, a function of a module, is called with `arguments`, and returns what is measured.
    """
    context = multiprocessing.get_context(settings.start_method if decoder is None else "spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(there, multiprocessing.get_start_method(), setup, arguments))
    with patch.dict(os.environ, {} if decoder is None else {"HF_REINFORCE_DECODER": decoder}):
        process.start()
    there.close()

    def measure() -> Any:
        here.send(True)
        return here.recv()

    try:
        here.recv()
        yield measure
    except EOFError:
        raise RuntimeError(f"The process of {setup.__name__} has died; its error is printed above.") from None
    finally:
        with suppress(OSError):
            here.send(False)
        process.join()
        here.close()


def _serve(connection: Any, start_method: str, setup: Any, arguments: Any) -> None:
    multiprocessing.set_start_method(start_method, force=True)  # of the loader's workers: as in the other processes
    measure = setup(*arguments)
    connection.send("ready")
    while connection.recv():
        connection.send(measure())


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    found = results.machine("cuda" if torch.cuda.is_available() else "cpu")
    memory = round(psutil.virtual_memory().total / 1e9)
    return {"gpu": None, **found, "memory_gb": memory, "date": datetime.now(UTC).date().isoformat()}


def save(rows: list[Row], path: Path, data: str) -> None:
    """Puts rows into the file, in the place of earlier ones of the same name against the same with the same photos."""
    earlier = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []
    kept = {(row["data"], row["name"], row["against"]): row for row in earlier}
    for row in rows:
        kept[data, row.name, row.against] = {**asdict(row), "ok": row.ok, "data": data}
    versions = {"python": platform.python_version(), "decoder": DECODER, **{name: version(name) for name in LIBRARIES}}
    content = {"machine": machine(), "versions": versions, "rows": list(kept.values())}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(content, indent=1) + "\n")


def table(path: Path) -> str:
    """The rows of a file as Markdown, a table for each set of photos."""
    tables: dict[str, list[str]] = {}
    for row in json.loads(path.read_text(encoding="utf-8"))["rows"]:
        unit = "x" if row["unit"] == "x" else f" {row['unit']}"
        measured = row["note"] if row["ratio"] is None else f"{_figure(row['ratio'])}{unit}"
        target = f"{'at most' if row['at_most'] else 'at least'} {_figure(row['target'])}{unit}"
        ok = {True: "yes", False: "no", None: ""}[row["ok"]]
        head = ["| what | against | measured | target | ok |", "|---|---|---|---|---|"]
        line = f"| {row['name']} | {row['against']} | {measured} | {target} | {ok} |"
        tables.setdefault(row["data"], head).append(line)
    return "\n\n".join("\n".join([f"{data}:", "", *lines]) for data, lines in tables.items())


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
