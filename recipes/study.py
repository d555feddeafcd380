"""Runs a study: many recipes over a grid of settings, one after the other, going on where it was stopped.

python recipes/study.py --study recipes/cifar100_plus/study.yaml --size cpu
"""

import itertools
import json
import os
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arguments import one_line_errors, option, parse, required, write_json

RECIPES = Path(__file__).parent
RESULTS = "all_results.json"
"""What a training leaves in its folder."""


@dataclass
class StudyArguments:
    study: str = required("YAML file of the study: its sizes, and its stages in order.")
    size: str = option("Which of the file's sizes.", "cpu")
    stages: list[str] = option("Only these stages, default all of them.", [])
    jobs: int = option("Runs of one stage at the same time, with a share of the cores each; timings stay alone.", 1)
    minutes: float | None = option("Stop after so many minutes; the same command goes on from the last checkpoints.")
    list_runs: bool = option("Print the commands and which of them are done, and run nothing.", False)


@dataclass(frozen=True)
class Run:
    """One command of a study.

    Attributes:
        stage: name of its stage.
        name: stage and labels, joined by dashes; the names of its log and of its record.
        command: file of the recipe and its flags.
        labels: what it is called along each axis of the grid.
        alone: whether nothing may run beside it, because it is timed.
    """

    stage: str
    name: str
    command: tuple[str, ...]
    labels: dict[str, str]
    alone: bool = False


def read_study(path: Path) -> dict[str, Any]:
    """The contents of a study's file.

    Raises:
        ValueError: if there is none, or it lacks what a study has.
    """
    from hf_reinforce.augmentations.documents import read_document

    if not path.is_file():
        raise ValueError(f"There is no file {path}; recipes/cifar100_plus/study.yaml is one.")
    study = read_document(path)
    expected = {"output_dir": str, "sizes": dict, "stages": dict}
    wrong = [
        key for key, kind in expected.items() if not isinstance(study, dict) or not isinstance(study.get(key), kind)
    ]
    if wrong:
        raise ValueError(
            f"{path} is no study: it needs output_dir, sizes by name and stages by name, and lacks {', '.join(wrong)}."
        )
    return study


class Stopped(Exception):
    """The time is up."""


def runs_of(study: dict[str, Any], size: str, only: list[str]) -> list[Run]:
    """The commands of a study in their order.

    Raises:
        ValueError: for an unknown size or stage, or a placeholder that the size does not define.
    """
    for asked, known, what in ((size, study["sizes"], "size"), *((stage, study["stages"], "stage") for stage in only)):
        if asked not in known:
            raise ValueError(f"The study has no {what} {asked!r}; its {what}s are {', '.join(known)}.")
    values = {"output_dir": f"{study['output_dir']}/{size}", **study["sizes"][size]}
    runs: dict[str, list[Run]] = {}
    for name, stage in study["stages"].items():
        runs[name] = list(_runs_of_stage(name, stage, values, runs))
    return [run for name, of_stage in runs.items() if not only or name in only for run in of_stage]


def records_of(study: dict[str, Any], size: str) -> Path:
    """The folder of the records of finished runs: beside the results, or where the study says to keep them."""
    return Path(study["records"]) / size if "records" in study else Path(study["output_dir"]) / size / "done"


def _runs_of_stage(
    stage: str, spec: dict[str, Any], values: dict[str, Any], earlier: dict[str, list[Run]]
) -> Iterator[Run]:
    known = ("recipe", "config", "flags", "over", "except", "each", "alone")
    if unknown := set(spec) - set(known):
        raise ValueError(f"Stage {stage} has unknown keys {sorted(unknown)}; expected {', '.join(known)}.")
    axes = {axis: _axis(axis, choices, values) for axis, choices in spec.get("over", {}).items()}
    if "each" in spec:
        if spec["each"] not in earlier:
            raise ValueError(f"Stage {stage} is for each of {spec['each']}, which is no stage before it.")
        for run in earlier[spec["each"]]:
            name = run.name.removeprefix(f"{run.stage}-")
            yield from _grid(
                f"{stage}-{name}", stage, spec, axes, {**values, **run.labels, "run": run.name}, run.labels
            )
        return
    yield from _grid(stage, stage, spec, axes, values)


def _grid(
    prefix: str,
    stage: str,
    spec: dict[str, Any],
    axes: dict[str, list[tuple[str, dict[str, Any]]]],
    values: dict[str, Any],
    labels: dict[str, str] | None = None,
) -> Iterator[Run]:
    left_out = spec.get("except", [])
    if isinstance(left_out, str):
        left_out = values[left_out.strip("{}")]
    for combination in left_out:
        if any(label not in dict(axes.get(axis, [])) for axis, label in combination.items()):
            raise ValueError(f"Stage {stage} leaves out {combination}, which is not in its grid.")
    for choice in itertools.product(*axes.values()):
        own = {axis: label for axis, (label, _) in zip(axes, choice, strict=True)}
        if any(combination.items() <= own.items() for combination in left_out):
            continue
        name = "-".join([prefix, *(label for label, _ in choice)])
        flags = dict(spec.get("flags", {}))
        for _, further in choice:
            flags |= further
        known = {**values, "name": name}
        command = [os.path.relpath(RECIPES / spec["recipe"]), *([str(spec["config"])] if "config" in spec else [])]
        for flag, value in flags.items():
            if value is not None:  # null takes back a flag that an anchor has
                command += [f"--{flag}", *_filled(stage, value, known)]
        yield Run(stage, name, tuple(command), {**(labels or {}), **own}, spec.get("alone", False))


def _axis(axis: str, choices: Any, values: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Labels and flags along one axis of the grid: {label: flags}, or a list of values of the flag `axis`."""
    if isinstance(choices, str):
        choices = values[choices.strip("{}")]
    if isinstance(choices, dict):
        return [(str(label), flags or {}) for label, flags in choices.items()]
    return [(f"{axis}{value}", {axis: value}) for value in choices]


def _filled(stage: str, value: Any, values: dict[str, Any]) -> list[str]:
    """The words of a flag's value, with placeholders filled in; a list is several words, an object is JSON."""
    if isinstance(value, list):
        return [word for item in value for word in _filled(stage, item, values)]
    if isinstance(value, dict):
        return [json.dumps(value)]
    try:
        if isinstance(value, str) and isinstance(whole := values.get(value.strip("{}")), list | dict):
            return _filled(stage, whole, values)
        return [str(value).format(**values)]
    except KeyError as error:
        raise ValueError(f"Stage {stage} uses {{{error.args[0]}}}, which this size does not define.") from error


def seconds_per_step(folder: Path) -> float | None:
    """Seconds of a step, the median over the entries of a training's log; None where there are none."""
    if not (path := folder / "trainer_state.json").exists():
        return None
    log = json.loads(path.read_text(encoding="utf-8"))["log_history"]
    times = [(entry["step"], entry["train_seconds"]) for entry in log if "loss" in entry and "train_seconds" in entry]
    each = [(end - begin) / (last - first) for (first, begin), (last, end) in itertools.pairwise(times)]
    return statistics.median(each) if each else None


class Runner:
    """Runs commands and remembers which are done.

    Args:
        folder: gets `logs/NAME.log`.
        records: gets `NAME.json`: command, seconds and, of a recipe that writes them, the figures.
        deadline: `time.monotonic()` at which what runs is stopped, None without one.
    """

    def __init__(self, folder: Path, records: Path, deadline: float | None) -> None:
        self._folder, self._records, self._deadline = folder, records, deadline

    def is_done(self, run: Run) -> bool:
        """Whether the command has been run to its end.

        Raises:
            ValueError: if another command of that name has been.
        """
        path = self._record(run)
        if not path.exists():
            return False
        if json.loads(path.read_text(encoding="utf-8"))["command"] != list(run.command[1:]):
            raise ValueError(
                f"{run.name} was run with other settings; remove {path} and its results to run it again, or choose "
                "another output_dir for the study."
            )
        return True

    def __call__(self, run: Run, together: int = 1) -> None:
        """Runs one command, with its share of the cores where several run `together` and `OMP_NUM_THREADS` is not set.

        Raises:
            ValueError: if it fails; the message has its last line.
            Stopped: if the time is up.
        """
        left = None if self._deadline is None else self._deadline - time.monotonic()
        if left is not None and left <= 0:
            raise Stopped
        log = self._folder / "logs" / f"{run.name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        print(f"{run.name}: {shlex.join(run.command)}", flush=True)
        share = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // together))} if together > 1 else {}
        begun = time.monotonic()
        with log.open("ab") as file:
            try:
                code = subprocess.run(
                    [sys.executable, *run.command], stdout=file, stderr=file, timeout=left, env={**share, **os.environ}
                ).returncode
            except subprocess.TimeoutExpired:
                raise Stopped from None
        if code:
            last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
            raise ValueError(f"{run.name} failed: {''.join(last)} (all of it: {log})")
        record = {"command": list(run.command[1:]), "seconds": time.monotonic() - begun}
        if (results := self._folder / run.name / RESULTS).exists():
            record["results"] = json.loads(results.read_text(encoding="utf-8"))
            record["seconds_per_step"] = seconds_per_step(self._folder / run.name)
        write_json(self._record(run), record)

    def _record(self, run: Run) -> Path:
        return self._records / f"{run.name}.json"


@one_line_errors
def main() -> None:
    (args,) = parse(__doc__, [StudyArguments])
    study = read_study(Path(args.study))
    runs = runs_of(study, args.size, args.stages)
    deadline = args.minutes and time.monotonic() + 60 * args.minutes
    folder = Path(study["output_dir"]) / args.size
    runner = Runner(folder, records_of(study, args.size), deadline)
    left = [run for run in runs if not runner.is_done(run)]
    if args.list_runs:
        for run in runs:
            print("todo" if run in left else "done", run.name, shlex.join(run.command))
        return
    print(f"{len(runs)} runs, {len(runs) - len(left)} of them done before.")
    try:
        for _, of_stage in itertools.groupby(left, key=lambda run: run.stage):
            runs = list(of_stage)
            together = 1 if runs[0].alone else min(args.jobs, len(runs))
            with ThreadPoolExecutor(together) as pool:
                list(pool.map(runner, runs, itertools.repeat(together)))
    except Stopped:
        print(f"Stopped after {args.minutes} minutes; the same command goes on.")


if __name__ == "__main__":
    main()
