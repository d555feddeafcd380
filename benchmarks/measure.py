"""What a benchmark is made of: settings, variants measured in turn, rows of the table."""

import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from datasets import Dataset

Measure = Callable[[], float]
"""Runs a variant once and returns what it took, in the unit of its row."""

T = TypeVar("T")


@dataclass(frozen=True)
class Settings:
    """What the benchmarks share.

    Attributes:
        photos: the photos, columns `image` (not decoded) and `label`.
        data: which photos they are.
        cache: folder for what is made once and used again.
        tiny: everything as small as it gets, to see that it runs.
        repetitions: measured runs of each variant.
        reinforced_images: photos that a real teacher reinforces.
        device: where the networks run.
        box_decoder: value of HF_REINFORCE_DECODER for box-only decoding; None where no libturbojpeg >= 3 is found.
        start_method: of processes that measure memory; `spawn` for a fresh one.
        workers: processes of a loader.
        image_size: side of the views in pixels.
    """

    photos: Dataset
    data: str
    cache: Path
    tiny: bool = False
    repetitions: int = 7
    reinforced_images: int = 512
    device: str = "cpu"
    box_decoder: str | None = None
    start_method: str = "spawn"
    workers: int = 2
    image_size: int = 224

    def pick(self, full: T, tiny: T) -> T:
        """The value for the size of this run."""
        return tiny if self.tiny else full


@dataclass(frozen=True)
class Row:
    """One row of the table.

    Attributes:
        name: what is measured.
        against: what it is compared with.
        ratio: how many times faster or smaller it is; with a `unit`, the value itself. None: not measured.
        target: the least that `ratio` should be, or the most.
        medians: what was measured, by variant.
        at_most: whether the target is an upper bound.
        unit: of `ratio`, where it is no ratio.
        note: what else to know, e.g. why it was not measured.
    """

    name: str
    against: str
    ratio: float | None
    target: float
    medians: dict[str, float]
    at_most: bool = False
    unit: str = "x"
    note: str = ""

    @property
    def ok(self) -> bool | None:
        """Whether the target is met; None if it was not measured."""
        if self.ratio is None:
            return None
        return self.ratio <= self.target if self.at_most else self.ratio >= self.target


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
    """A variant that needs a process of its own: for the decoder, which a process cannot change, or for its memory.

    Args:
        settings: say how the process is started.
        decoder: value of HF_REINFORCE_DECODER there; None for this process's own.
        setup: function of a module, called in the process with `arguments`; returns what is measured.
        arguments: of `setup`.

    Yields:
        A function that measures in the process and returns the result.
    """
    context = multiprocessing.get_context(settings.start_method if decoder is None else "spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(there, multiprocessing.get_start_method(), setup, arguments))
    previous = os.environ.get("HF_REINFORCE_DECODER")
    try:
        if decoder is not None:
            os.environ["HF_REINFORCE_DECODER"] = decoder
        process.start()
    finally:
        os.environ.pop("HF_REINFORCE_DECODER", None)
        if previous is not None:
            os.environ["HF_REINFORCE_DECODER"] = previous
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
