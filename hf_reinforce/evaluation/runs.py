"""Runs that are compared: evaluations, how long their students trained, and which of them are seeds of one another."""

import glob
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_reinforce.evaluation.results import RESULTS_FILE, Evaluation, Predictions

EVALUATION_FOLDER = "evaluation"
_NAMED = 8  # data sets in a sentence


@dataclass(frozen=True)
class Training:
    """How a student was trained.

    Attributes:
        method: reinforced, online or plain; None where it wasn't recorded.
        epochs: passes over the training set.
        seconds: wall-clock time of the training, evaluations on the way included.
        history: (seconds, accuracy in [0, 1]) of every evaluation on the way.
    """

    method: str | None
    epochs: float
    seconds: float
    history: list[tuple[float, float]]

    @classmethod
    def load(cls, folder: Path) -> "Training | None":
        """Reads what `train_kd.py` left in a student's folder; None if there is no `train_results.json`.

        An evaluation on the way says itself when it was (`train_seconds`), or is placed by its share of the steps.
        """
        results, state, run = (_json(folder / f"{name}.json") for name in ("train_results", "trainer_state", "run"))
        if "train_runtime" not in results or "epoch" not in results:
            return None
        log = state.get("log_history", [])
        seconds = max([results["train_runtime"], *(entry.get("train_seconds", 0.0) for entry in log)])
        history = [
            (entry.get("train_seconds", seconds * entry["step"] / state["max_steps"]), entry["eval_accuracy"])
            for entry in log
            if "eval_accuracy" in entry
        ]
        return cls(run.get("method"), float(results["epoch"]), float(seconds), history)


@dataclass(frozen=True)
class Run:
    """One evaluation.

    Attributes:
        folder: of `evaluation.json`.
        evaluation: its content.
        training: of the student, None where nothing is known of it.
    """

    folder: Path
    evaluation: Evaluation
    training: Training | None

    @classmethod
    def load(cls, folder: str | Path) -> "Run":
        """Opens an evaluation, or a student's folder that holds one in `evaluation/`.

        Raises:
            ValueError: if the folder is neither.
        """
        folder = Path(folder)
        found = [place for place in (folder, folder / EVALUATION_FOLDER) if (place / RESULTS_FILE).exists()]
        if not found:
            what = "is neither an evaluation nor a student's folder with one" if folder.is_dir() else "does not exist"
            raise ValueError(
                f"{folder} {what}: expected {folder / RESULTS_FILE} or {folder / EVALUATION_FOLDER / RESULTS_FILE}. "
                f"Write it with recipes/evaluate.py --model_name_or_path {folder} --output_dir "
                f"{folder / EVALUATION_FOLDER} and the data set's flags."
            )
        evaluation = Evaluation.load(found[0])
        students = (Training.load(place) for place in (folder, folder.resolve().parent, Path(evaluation.model)))
        return cls(found[0], evaluation, next((training for training in students if training), None))

    def predictions(self, name: str) -> Predictions:
        """The predictions for one data set.

        Raises:
            ValueError: if they are missing, damaged or not as many as `evaluation.json` says.
        """
        found = self.evaluation.predictions(self.folder, name)
        expected = self.evaluation.datasets[name].num_samples
        if len(found) != expected:
            raise ValueError(
                f"{self.folder} has {len(found)} predictions for {name}, but its {RESULTS_FILE} says {expected}; "
                "evaluate again with recipes/evaluate.py, to a new folder."
            )
        return found


@dataclass(frozen=True)
class Group:
    """Runs that differ in nothing but the seed, often a single one.

    Attributes:
        name: what tables and pictures call it.
        runs: at least one.
    """

    name: str
    runs: list[Run]

    @property
    def method(self) -> str:
        """The training method if it was recorded, else the name: what one line of accuracy against time is of."""
        training = self.runs[0].training
        return (training.method if training else None) or self.name

    @classmethod
    def load(cls, text: str) -> "Group":
        """Opens `[NAME=]RUN[,RUN...]`, where a RUN may have the wildcards of a shell.

        Raises:
            ValueError: if a run can't be opened, or the runs aren't seeds of one another.
        """
        name, equals, folders = text.partition("=")
        if not equals or Path(text).is_dir():
            name, folders = "", text
        paths = [path for word in folders.split(",") if word for path in (sorted(glob.glob(word)) or [word])]
        if not paths:
            raise ValueError(f"{text!r} names no run; write NAME=RUN, or NAME=RUN,RUN for several seeds.")
        runs = [Run.load(path) for path in paths]
        lengths = {run.training.epochs for run in runs if run.training}
        methods = {run.training.method for run in runs if run.training}
        if len(lengths) > 1 or len(methods) > 1:
            raise ValueError(
                f"The runs of {text!r} are no seeds of one another: their trainings have {_listed(lengths)} epochs "
                f"and the methods {_listed(methods)}. Give each its own NAME=RUN."
            )
        return cls(name or _name([Path(path) for path in paths]), runs)


def load_groups(texts: Sequence[str]) -> list[Group]:
    """Opens the runs of a command line, see `Group.load`; the first is what the others are compared with.

    Raises:
        ValueError: if there are fewer than two groups, or two of one name.
    """
    groups = [Group.load(text) for text in texts]
    names = [group.name for group in groups]
    if len(groups) < 2:
        raise ValueError(f"Expected at least two runs to compare, found {len(groups)}; write RUN_A RUN_B.")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(
            f"Several runs are called {twice[0]!r}; name them apart, {twice[0]}-a=RUN {twice[0]}-b=RUN, or join seeds "
            f"with a comma, {twice[0]}=RUN,RUN."
        )
    return groups


def other_settings(runs: Sequence[Run], names: Iterable[str]) -> list[str]:
    """A sentence for every setting of the evaluations that differs, such as the image size; empty if none does.

    Args:
        runs: which are compared.
        names: of data sets that all runs have; what an older evaluation did not record is not compared.
    """
    differing: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for name in names:
        settings = [run.evaluation.datasets[name].settings for run in runs]
        for key in settings[0]:
            values = tuple(json.dumps(found[key], sort_keys=True) for found in settings if key in found)
            if len(values) == len(runs) and len(set(values)) > 1:
                differing.setdefault((key, values), []).append(name)
    return [
        f"{key.replace('_', ' ').capitalize()} differs, so differences on {shortened(found)} may come of it: "
        f"{', '.join(f'{run.folder} {value}' for run, value in zip(runs, values, strict=True))}. "
        "Evaluate all with the same flags."
        for (key, values), found in differing.items()
    ]


def shortened(names: Iterable[str]) -> str:
    """The first few names, and how many more there are."""
    first, rest = list(names)[:_NAMED], list(names)[_NAMED:]
    return (", ".join(first) or "none") + (f" and {len(rest)} more" if rest else "")


def _name(paths: Sequence[Path]) -> str:
    """The folder's name; of seeds what is left of all of them without their number."""
    places = [path.resolve() for path in paths]
    names = [place.parent.name if place.name == EVALUATION_FOLDER else place.name for place in places]
    if len(names) == 1:
        return names[0]
    common = {re.sub(r"[-_.]*(seed)?[-_.]*\d+$", "", name) for name in names}
    return common.pop() if len(common) == 1 and "" not in common else names[0]


def _listed(values: set[Any]) -> str:
    return " and ".join(sorted(f"{value:g}" if isinstance(value, float) else str(value) for value in values))


def _json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}); restore it or take it away.") from error
