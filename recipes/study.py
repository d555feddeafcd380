"""Runs a study: many recipes over a grid of settings, one after the other, going on where it was stopped.

python recipes/study.py --study recipes/cifar100_plus/study.yaml --size cpu
"""

import functools
import itertools
import json
import os
import shlex
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from arguments import one_line_errors, option, parse, required, write_json

RECIPES = Path(__file__).parent
STAGE_KEYS = ("recipe", "config", "flags", "over", "except", "each", "alone")


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
    """One command of a study."""

    stage: str
    name: str  # stage and labels, joined by dashes; the names of its log and of its record
    command: tuple[str, ...]  # file of the recipe and its flags
    labels: dict[str, str]  # what it is called along each axis of the grid
    alone: bool = False  # whether nothing may run beside it, because it is timed


class Stopped(Exception):
    """The time is up."""


@one_line_errors
def main() -> None:
    (args,) = parse(__doc__, [StudyArguments])
    study = read_study(Path(args.study))
    runs, records = runs_of(study, args.size, args.stages), records_of(study, args.size)
    left = [run for run in runs if not is_done(run, records)]
    if args.list_runs:
        for run in runs:
            print("todo" if run in left else "done", run.name, shlex.join(run.command))
        return
    print(f"{len(runs)} runs, {len(runs) - len(left)} of them done before.")
    check_folders(left, Path(study["output_dir"]).parts[0])
    folder = Path(study["output_dir"]) / args.size
    deadline = args.minutes and time.monotonic() + 60 * args.minutes
    try:
        for _, stage in itertools.groupby(left, key=lambda run: run.stage):
            of_stage = list(stage)
            together = 1 if of_stage[0].alone else min(args.jobs, len(of_stage))
            with ThreadPoolExecutor(together) as pool:
                run = functools.partial(execute, folder=folder, records=records, deadline=deadline, together=together)
                list(pool.map(run, of_stage))
    except Stopped:
        print(f"Stopped after {args.minutes} minutes; the same command goes on.")


def read_study(path: Path) -> dict[str, Any]:
    """The contents of a study's file."""
    from hf_reinforce.augmentations.documents import read_document

    if not path.is_file():
        raise ValueError(f"There is no file {path}; recipes/cifar100_plus/study.yaml is one.")
    study = read_document(path)
    expected = {"output_dir": str, "sizes": dict, "stages": dict}
    found = study if isinstance(study, dict) else {}
    if wrong := [key for key, kind in expected.items() if not isinstance(found.get(key), kind)]:
        raise ValueError(f"{path} is no study: it needs output_dir, sizes and stages, and lacks {', '.join(wrong)}.")
    return found


def records_of(study: dict[str, Any], size: str) -> Path:
    """The folder of the records of finished runs: beside the results, or where the study says to keep them."""
    return Path(study["records"]) / size if "records" in study else Path(study["output_dir"]) / size / "done"


def runs_of(study: dict[str, Any], size: str, only: list[str]) -> list[Run]:
    """The commands of a study in their order."""
    for asked, known, what in ((size, study["sizes"], "size"), *((stage, study["stages"], "stage") for stage in only)):
        if asked not in known:
            raise ValueError(f"The study has no {what} {asked!r}; its {what}s are {', '.join(known)}.")
    values = {"output_dir": f"{study['output_dir']}/{size}", **study["sizes"][size]}
    runs: dict[str, list[Run]] = {}
    for stage, spec in study["stages"].items():
        if unknown := set(spec) - set(STAGE_KEYS):
            raise ValueError(f"Stage {stage} has unknown keys {sorted(unknown)}; expected {', '.join(STAGE_KEYS)}.")
        each = spec.get("each")
        if each is None:
            runs[stage] = grid(stage, stage, spec, values)
        elif each in runs:
            runs[stage] = []
            for run in runs[each]:
                own = grid(
                    f"{stage}{run.name.removeprefix(each)}", stage, spec, {**values, **run.labels, "run": run.name}
                )
                runs[stage] += [replace(further, labels={**run.labels, **further.labels}) for further in own]
        else:
            raise ValueError(f"Stage {stage} is for each of {each}, which is no stage before it.")
    return [run for stage, of_stage in runs.items() if not only or stage in only for run in of_stage]


def grid(prefix: str, stage: str, spec: dict[str, Any], values: dict[str, Any]) -> list[Run]:
    """The runs of a stage: one for each choice along its axes, but for those that it leaves out.

    An axis is {label: flags}, or a list of values of the flag that it is named after, or a {placeholder} of these.
    """
    axes: dict[str, dict[str, dict[str, Any]]] = {}
    for axis, choices in spec.get("over", {}).items():
        found = values[choices.strip("{}")] if isinstance(choices, str) else choices
        found = found if isinstance(found, dict) else {f"{axis}{value}": {axis: value} for value in found}
        axes[axis] = {str(label): flags or {} for label, flags in found.items()}
    left_out = spec.get("except", [])
    left_out = values[left_out.strip("{}")] if isinstance(left_out, str) else left_out
    for combination in left_out:
        if any(label not in axes.get(axis, {}) for axis, label in combination.items()):
            raise ValueError(f"Stage {stage} leaves out {combination}, which is not in its grid.")
    runs = []
    for choice in itertools.product(*(choices.items() for choices in axes.values())):
        labels = {axis: label for axis, (label, _) in zip(axes, choice, strict=True)}
        if any(combination.items() <= labels.items() for combination in left_out):
            continue
        name = "-".join([prefix, *labels.values()])
        command = [os.path.relpath(RECIPES / spec["recipe"]), *([str(spec["config"])] if "config" in spec else [])]
        flags = dict(spec.get("flags", {}))
        for _, further in choice:
            flags |= further
        for flag, value in flags.items():
            if value is not None:  # null takes back a flag that an anchor has
                command += [f"--{flag}", *filled(stage, value, {**values, "name": name})]
        runs.append(Run(stage, name, tuple(command), labels, spec.get("alone", False)))
    return runs


def filled(stage: str, value: Any, values: dict[str, Any]) -> list[str]:
    """The words of a flag's value, with placeholders filled in; a list is several words, an object is JSON."""
    if isinstance(value, list):
        return [word for item in value for word in filled(stage, item, values)]
    if isinstance(value, dict):
        return [json.dumps(value)]
    try:
        if isinstance(value, str) and isinstance(whole := values.get(value.strip("{}")), list | dict):
            return filled(stage, whole, values)
        return [str(value).format(**values)]
    except KeyError as error:
        raise ValueError(f"Stage {stage} uses {{{error.args[0]}}}, which this size does not define.") from error


def is_done(run: Run, records: Path) -> bool:
    """Whether the command has been run to its end; an error if another command of that name has been."""
    path = records / f"{run.name}.json"
    if not path.exists():
        return False
    if json.loads(path.read_text(encoding="utf-8"))["command"] != list(run.command[1:]):
        raise ValueError(f"{run.name} was run with other settings; remove {path} and its results to run it again.")
    return True


def check_folders(left: list[Run], root: str) -> None:
    """Refuses a run that reads a folder under `root` that is not there and that no run before it writes."""
    written: set[str] = set()
    for run in left:
        flag = ""
        for word in run.command:
            flag = word if word.startswith("--") else flag
            if flag == "--output_dir":
                written.add(word)
            elif Path(word).parts[:1] == (root,) and word not in written and not Path(word).exists():
                raise ValueError(
                    f"{run.name} needs {word}, which is not there and which no run before it writes; make it first."
                )


def execute(run: Run, folder: Path, records: Path, deadline: float | None, together: int) -> None:
    """Runs one command, and records command, seconds and, of a recipe that writes them, the figures.

    It has its share of the cores where several run `together` and `OMP_NUM_THREADS` is not set.
    """
    left = None if deadline is None else deadline - time.monotonic()
    if left is not None and left <= 0:
        raise Stopped
    log = folder / "logs" / f"{run.name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    print(f"{run.name}: {shlex.join(run.command)}", flush=True)
    share = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // together))} if together > 1 else {}
    command, begun = [sys.executable, *run.command], time.monotonic()
    with log.open("ab") as file:
        try:
            ended = subprocess.run(command, stdout=file, stderr=file, timeout=left, env={**share, **os.environ})
        except subprocess.TimeoutExpired:
            raise Stopped from None
    if ended.returncode:
        last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
        raise ValueError(f"{run.name} failed: {''.join(last)} (all of it: {log})")
    record: dict[str, Any] = {"command": list(run.command[1:]), "seconds": time.monotonic() - begun}
    if (results := folder / run.name / "all_results.json").exists():
        record["results"] = json.loads(results.read_text(encoding="utf-8"))
        record["seconds_per_step"] = seconds_per_step(folder / run.name)
    write_json(records / f"{run.name}.json", record)


def seconds_per_step(folder: Path) -> float | None:
    """Seconds of a step, the median over the entries of a training's log; None where there are none."""
    if not (path := folder / "trainer_state.json").exists():
        return None
    log = json.loads(path.read_text(encoding="utf-8"))["log_history"]
    times = [(entry["step"], entry["train_seconds"]) for entry in log if "loss" in entry and "train_seconds" in entry]
    each = [(end - begin) / (last - first) for (first, begin), (last, end) in itertools.pairwise(times)]
    return statistics.median(each) if each else None


if __name__ == "__main__":
    main()
