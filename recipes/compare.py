"""Compares evaluated students: one table with 95 % intervals, and which differences are more than noise.

    python recipes/compare.py outputs/cifar100-plain outputs/cifar100-reinforced
    python recipes/compare.py plain=outputs/plain-0,outputs/plain-1 'reinforced=outputs/reinforced-*'

RUN [RUN ...] are folders of recipes/evaluate.py --output_dir, or students' folders with evaluation/ in them; the first
is what the others are compared with. NAME=RUN gives a name, NAME=RUN,RUN joins seeds of the same training.
"""

import glob
import json
import re
import warnings
from dataclasses import dataclass
from pathlib import Path

from arguments import one_line_errors, option, parse, required, write_json

FIRST = "runs"  # the flag that may be left out
SEED = r"[-_.]*(?:seed)?[-_.]*(\d+)$"  # at the end of a student's name


@dataclass
class CompareArguments:
    runs: list[str] = required("The runs; the flag may be left out if they come first.")
    output_dir: str = option("Folder of comparison.md and comparison.json.", "outputs/comparison")
    num_resamples: int = option("Resamples of the bootstrap over images, at least 100.", 1000)
    seed: int = option("Seed of the bootstrap.", 0)


@one_line_errors
def main() -> None:
    (args,) = parse(__doc__, [CompareArguments], first=FIRST)
    found = compare(load_groups(args.runs), args.num_resamples, args.seed)
    text = table(found)
    write_json(f"{args.output_dir}/comparison.json", found)
    Path(args.output_dir, "comparison.md").write_text(text, encoding="utf-8")
    print(f"{text}\nWritten: {args.output_dir}/comparison.md and comparison.json")


def load_groups(texts):
    """The evaluations of each `[NAME=]RUN[,RUN...]`, the baseline first: {name: {folder: evaluation}}."""
    from hf_reinforce.evaluation.results import RESULTS_FILE, Evaluation

    groups = {}
    for text in texts:
        name, words = text.split("=", 1) if "=" in text and not Path(text).is_dir() else ("", text)
        places = [Path(place) for word in words.split(",") if word for place in sorted(glob.glob(word)) or [word]]
        if missing := [place for place in places if not place.is_dir()] if places else [repr(text)]:
            raise ValueError(f"There is no run {missing[0]}; write RUN, NAME=RUN, or NAME=RUN,RUN for several seeds.")
        folders = [place if (place / RESULTS_FILE).exists() else place / "evaluation" for place in places]
        if len(trainings := {found for folder in folders if (found := training(folder))}) > 1:
            kinds = " and ".join(sorted(trainings))
            raise ValueError(f"The runs {text} are no seeds of one another ({kinds}); give each its own NAME=RUN.")
        stems = {re.sub(SEED, "", student(folder)) for folder in folders} if len(folders) > 1 else set()
        name = name or (stems.pop() if len(stems) == 1 else "") or student(folders[0])
        if name in groups:
            raise ValueError(f"Several runs are called {name!r}; name them, A=RUN B=RUN, or join seeds, A=RUN,RUN.")
        groups[name] = {folder: Evaluation.load(folder) for folder in folders}
    if len(groups) < 2:
        raise ValueError(f"Expected at least two runs to compare, found {len(groups)}; write RUN_A RUN_B.")
    return groups


def student(folder):
    """The name of the student whose evaluation lies in a folder, which may be inside the student's."""
    place = folder.resolve()
    inside = place.name == "evaluation" or (place.parent / "config.json").exists()
    return place.parent.name if inside else place.name


def training(folder):
    """Method and epochs of the student that an evaluation lies beside, as far as train_kd.py left them."""
    found = {}
    for path in (folder.resolve().parent / name for name in ("run.json", "train_results.json")):
        found |= json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return ", ".join(f"{key} {found[key]}" for key in ("method", "epoch") if key in found)


def common_datasets(groups):
    """The datasets that all runs have, as the first run has them, and notes on others and on settings that differ."""
    runs = {folder: evaluation.datasets for group in groups.values() for folder, evaluation in group.items()}
    first, *others = runs.values()
    common = {name: found for name, found in first.items() if all(name in datasets for datasets in others)}
    if not common:
        raise ValueError(
            f"The runs {', '.join(map(str, runs))} have no dataset in common; evaluate all with the same --suite."
        )
    differing, source = set(), ("dataset_name", "dataset_config_name", "revision", "split")
    for name, ours in common.items():
        for theirs in (datasets[name] for datasets in others):
            if theirs.class_names != ours.class_names:
                raise ValueError(f"The runs score {name} in different classes; evaluate all on the same dataset.")
            both = ours.settings.keys() & theirs.settings.keys()  # older evaluations recorded fewer
            differing |= {key for key in both if ours.settings[key] != theirs.settings[key]}
            differing |= {key for key in source if getattr(ours, key) != getattr(theirs, key)}
    notes = [f"Differences may come of another {key}; evaluate all with the same flags." for key in sorted(differing)]
    if left_out := sorted({name for datasets in runs.values() for name in datasets} - common.keys()):
        notes.append(f"Left out, for not all runs have them: {', '.join(left_out)}.")
    return common, notes


def scores_of(runs, names, num_resamples, seed):
    """What a group scored on a dataset, or on the mean over several: the metrics of each run, [S, M]; those of
    resampled images, mean over the runs, [R, M]; checksums of the rows, only one where all runs saw the same; the
    numbers that the students' names end in, none if these are not S."""
    import numpy as np

    from hf_reinforce.metrics import checksum, measure, resample

    predictions = [[evaluation.predictions(folder, name) for name in names] for folder, evaluation in runs.items()]
    metrics = [np.mean([list(measure(found).values()) for found in of_run], axis=0) for of_run in predictions]
    resamples = np.mean([resample(found, num_resamples, seed) for of_run in predictions for found in of_run], axis=0)
    rows = {tuple(checksum(found.row) for found in of_run) for of_run in predictions}
    seeds = [int(number[1]) for folder in runs if (number := re.search(SEED, student(folder)))]
    return np.array(metrics), resamples, rows, seeds if len(set(seeds)) == len(runs) else []


def estimate(metrics, resamples, *_):
    """Mean of the runs with its 95 % interval: over seeds where there are several, else over images."""
    from scipy import stats

    if len(metrics) == 1:
        return {"over": "images", **inference(metrics[0], resamples)}
    return {"over": f"{len(metrics)} seeds", **inference(metrics.mean(0), test=stats.ttest_1samp(metrics, 0))}


def difference(ours, theirs):
    """The first scores minus the second, with 95 % interval and p: over seeds where both have several, or images."""
    import numpy as np
    from scipy import stats

    (metrics, resamples, rows, seeds), (others, other_resamples, other_rows, other_seeds) = ours, theirs
    value = metrics.mean(0) - others.mean(0)
    if min(len(metrics), len(others)) == 1:
        over = "paired images" if len(rows | other_rows) == 1 else "images"
        return {"over": over, **inference(value, resamples - other_resamples)}
    if seeds and sorted(seeds) == sorted(other_seeds):
        test = stats.ttest_rel(metrics[np.argsort(seeds)], others[np.argsort(other_seeds)])
        return {"over": "paired seeds", **inference(value, test=test)}
    return {"over": "seeds", **inference(value, test=stats.ttest_ind(metrics, others, equal_var=False))}


def inference(value, resamples=None, test=None):
    """Interval and two-sided p of one distribution, the normal one with the bootstrap's error or that of a t-test."""
    import numpy as np
    from scipy import stats

    if test is None:
        error = resamples.std(0, ddof=1)
        (low, high), p = stats.norm.interval(0.95, value, error), 2 * stats.norm.sf(np.abs(value) / error)
    else:
        (low, high), p = test.confidence_interval(0.95), test.pvalue
    found = {"value": value, "low": low, "high": high, "p": p}
    without_spread = {"low": value, "high": value, "p": (value == 0).astype(float)}  # every difference is one
    return found | {key: np.where(np.isnan(found[key]), ends, found[key]) for key, ends in without_spread.items()}


def holm(p):
    """Holm's correction (1979) of p [D, M] for D differences, each metric by itself."""
    import numpy as np

    order = np.argsort(p, axis=0)
    scaled = np.take_along_axis(p, order, axis=0) * np.arange(len(p), 0, -1)[:, None]
    adjusted = np.maximum.accumulate(scaled, axis=0).clip(None, 1)
    return np.take_along_axis(adjusted, np.argsort(order, axis=0), axis=0)


def compare(groups, num_resamples=1000, seed=0):
    """The content of `comparison.json`: rows for each dataset, of every group and of its difference to the first."""
    import numpy as np
    from tqdm.auto import tqdm

    from hf_reinforce.metrics import METRICS

    if num_resamples < 100:
        raise ValueError(f"--num_resamples must be >= 100, not {num_resamples}; 1000 is usual.")
    common, notes = common_datasets(groups)
    units = [(found.title, [name]) for name, found in common.items() if not found.corruption]
    if corrupted := [name for name, found in common.items() if found.corruption]:
        units.append((f"mean over {len(corrupted)} corrupted sets", corrupted))
    rows, differences, (first, *others) = [], [], groups
    largest = [metric.largest for metric in METRICS.values()]
    higher_is_better = [metric.higher_is_better for metric in METRICS.values()]
    with warnings.catch_warnings(), np.errstate(divide="ignore", invalid="ignore"):
        warnings.simplefilter("ignore", RuntimeWarning)  # of scipy, about seeds without any spread
        for title, names in tqdm(units, desc="Comparing", unit="dataset", disable=None):
            about = {"dataset": title, "num_samples": sum(common[name].num_samples for name in names)}
            scores = {name: scores_of(runs, names, num_resamples, seed) for name, runs in groups.items()}
            for name, found in scores.items():
                row = about | {"student": name} | estimate(*found)
                del row["p"]
                rows.append(row | {"low": row["low"].clip(0), "high": np.minimum(row["high"], largest)})
            here = [about | {"student": n, "minus": first} | difference(scores[n], scores[first]) for n in others]
            rows, differences = rows + here, differences + here
    for row, p in zip(differences, holm(np.array([row["p"] for row in differences])), strict=True):
        better = (row["value"] > 0) == higher_is_better
        row |= {"p_adjusted": p, "verdict": np.where(p >= 0.05, "noise", np.where(better, "better", "worse"))}
    for row in rows:
        arrays = {key: values for key, values in row.items() if isinstance(values, np.ndarray)}
        row |= {key: dict(zip(METRICS, values.tolist(), strict=True)) for key, values in arrays.items()}
    runs = {name: [str(folder) for folder in runs] for name, runs in groups.items()}
    return {"runs": runs, "num_resamples": num_resamples, "seed": seed, "rows": rows, "notes": notes}


def table(found):
    """The table in Markdown, and how to read it."""
    from hf_reinforce.cards import markdown
    from hf_reinforce.evaluation.report import metric_text
    from hf_reinforce.metrics import METRICS

    rows = []
    for row in found["rows"]:
        name = markdown.text(row["student"])
        name += f" \N{MINUS SIGN} {markdown.text(row['minus'])}" if "minus" in row else ""
        cells = []
        for metric in METRICS:
            ends = [metric_text(metric, row[key][metric], "minus" in row) for key in ("value", "low", "high")]
            verdict = row["verdict"][metric] if "minus" in row else ""
            bold = "**" if verdict in ("better", "worse") else ""
            cells.append(f"{bold}{ends[0]}{bold} [{ends[1]}, {ends[2]}] {verdict}".rstrip())
        title = f"{markdown.text(row['dataset'])}, {row['num_samples']:,} images"
        again = "minus" in row or row["student"] != next(iter(found["runs"]))
        rows.append(["" if again else title, f"{name}, over {row['over']}", *cells])
    lines = [
        "Better or worse is what has a p below 0.05 after Holm's correction for all differences of the metric, which "
        "intervals are without.",
        "An interval over images is about these very students; several seeds are joined as NAME=RUN,RUN.",
        *map(markdown.text, found["notes"]),
    ]
    shown = markdown.table(
        ["dataset", "student, 95 % interval", *(metric.heading for metric in METRICS.values())], rows
    )
    return "\n".join([shown, "", *(f"- {line}" for line in lines), ""])


if __name__ == "__main__":
    main()
