"""Comparisons: intervals that cover, differences that are found and others that are noise, and the recipe."""

import json
import re
import shlex
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from recipe_modules import load_recipe
from scipy import stats
from simulated import NAMES, predictions_of, simulated_logits, write_evaluation
from test_evaluation_report import is_drawn, tables

from hf_reinforce.evaluation import bootstrap, comparison_pictures, comparison_report, pictures
from hf_reinforce.evaluation.bootstrap import METRICS, measure, resample
from hf_reinforce.evaluation.comparison import compare
from hf_reinforce.evaluation.confusions import largest_changes
from hf_reinforce.evaluation.results import Corruption, Evaluation, Predictions, ReliabilityDiagram
from hf_reinforce.evaluation.runs import Group, Run, Training, load_groups
from hf_reinforce.evaluation.significance import BETTER, NOISE, WORSE, Difference, Sample, judge
from hf_reinforce.metrics import ClassificationMetrics, adaptive_calibration_error

ROOT = Path(__file__).parent.parent
RESAMPLES = 100
WORDNET = (1440764, 1443537, 1484850, 1491361, 1494475, 1496331, 1498041, 1514668, 1514859, 1518878)


def simulated(**student):
    return predictions_of(*simulated_logits(**student))


def student(folder, name, **arguments):
    return str(write_evaluation(folder / name, **arguments))


def change(folder, name, **columns):
    """Replaces columns of stored predictions."""
    path = Path(folder) / "evaluation" / "predictions" / f"{name}.parquet"
    replace(Predictions.load(path), **columns).save(path)


# -- the bootstrap ------------------------------------------------------------------------------------------------


def test_metrics_are_those_of_the_accumulator():
    logits, labels = simulated_logits(num_images=1003, sharpness=2)
    metrics = ClassificationMetrics()
    metrics.update(logits, labels)
    expected = metrics.compute()
    assert measure(predictions_of(logits, labels)) == pytest.approx([expected[name] for name in METRICS], abs=1e-6)


def test_adaptive_error_of_equal_confidences():
    predictions = simulated(num_images=1003)
    coarse = replace(predictions, confidence=predictions.confidence.round(1))
    expected = adaptive_calibration_error(torch.tensor(coarse.confidence), torch.tensor(coarse.correct))
    assert measure(coarse)[METRICS.index("ece_adaptive")] == pytest.approx(expected, abs=1e-9)


def test_a_resample_is_what_the_drawn_images_score():
    predictions = simulated(num_images=200)
    (weights,) = bootstrap._weights(predictions.row, 3, seed=0)
    for counts, found in zip(weights, resample(predictions, 3, seed=0), strict=True):
        drawn = np.repeat(np.arange(200), counts.astype(int))
        columns = {name: values[drawn] for name, values in vars(predictions).items() if values is not None}
        assert len(drawn) == 200 and found == pytest.approx(measure(Predictions(**columns)), abs=1e-9)


def test_resamples_come_in_blocks(monkeypatch):
    predictions = simulated(num_images=50)
    whole = resample(predictions, 7, seed=1)
    monkeypatch.setattr(bootstrap, "_BLOCK", 100)
    assert np.allclose(resample(predictions, 7, seed=1), whole, atol=1e-12)
    assert not np.allclose(resample(predictions, 7, seed=2), whole)


def ends(estimates):
    """Lower and upper ends, [6] each."""
    return np.array([[found.low, found.high] for found in estimates.values()]).T


CALIBRATED = 1.5 / (1 + 0.6**2)  # the sharpness with which simulated logits are the log-posterior


def true_metrics(sharpness):
    truth = measure(simulated(num_images=100_000, images=10_000, sharpness=sharpness))
    truth[[METRICS.index("ece"), METRICS.index("ece_adaptive")]] *= sharpness != CALIBRATED
    return truth


def test_intervals_of_differences_cover_the_truth():
    truth, covered, trials = true_metrics(2) - true_metrics(CALIBRATED), np.zeros(len(METRICS)), 40
    for trial in range(trials):
        pair = [simulated(num_images=1000, images=trial, sharpness=value) for value in (CALIBRATED, 2)]
        first, other = (Sample(measure(p)[None], resample(p, 100, seed=0), {"": {0}}) for p in pair)
        low, high = ends(other.difference(first)[0])
        covered += (low <= truth) & (truth <= high)
    assert (covered >= 0.75 * trials).all(), dict(zip(METRICS, covered, strict=True))


@pytest.mark.parametrize(("sharpness", "least"), [(3, 0.88), (2, 0.88), (CALIBRATED, 0.75)])
def test_intervals_over_images_cover_the_truth(sharpness, least):
    truth = true_metrics(sharpness)
    trials, covered = 100, np.zeros(len(METRICS))
    for trial in range(trials):
        predictions = simulated(images=trial, sharpness=sharpness)
        estimate = measure(predictions)
        low, high = ends(Sample(estimate[None], resample(predictions, 150, seed=0), {}).estimates())
        assert ((low < estimate) & (estimate < high)).all(), "an end at the estimate reads as certainty"
        covered += (low <= truth) & (truth <= high)
    assert (covered >= least * trials).all() and covered.mean() < trials, dict(zip(METRICS, covered, strict=True))


def test_no_interval_leaves_what_a_metric_can_be():
    estimate, resamples = measure(simulated(num_images=14)), resample(simulated(num_images=14), 100, seed=0)
    for sign in (-9, 9):
        runs = np.stack([estimate, estimate + sign])
        for sample in (
            Sample(estimate[None], estimate + 9 * (resamples - estimate), {"": {0}}),
            Sample(runs, runs, {}),
        ):
            low, high = ends(sample.estimates())
            assert (low >= 0).all() and (high <= [1, 1, np.inf, 2, 1, 1]).all()
    wide, first = Sample(estimate[None], 9 * resamples, {"": {0}}), Sample(estimate[None], resamples, {"": {0}})
    low, high = ends(wide.difference(first)[0])
    assert (np.maximum(-low, high) <= [1, 1, np.inf, 2, 1, 1]).all() and (low < high).all()


def test_intervals_over_seeds_cover_the_truth():
    rng = np.random.default_rng(0)
    trials, covered, bootstrapped = 300, 0, 0
    for _ in range(trials):
        runs = rng.normal(0.5, 0.01, (3, len(METRICS)))
        found = Sample(runs, np.zeros((2, 6)), {}).estimates().values()
        covered += sum(estimate.low <= 0.5 <= estimate.high for estimate in found)
        means = runs[rng.integers(0, 3, (200, 3))].mean(1)
        bootstrapped += (np.abs(runs.mean(0) - 0.5) <= 1.96 * means.std(0)).sum()
    assert 0.93 < covered / (6 * trials) < 0.97
    assert bootstrapped / (6 * trials) < 0.85, "if a bootstrap of three seeds covered, it would be the simpler way"


def test_pairs_are_tighter_than_independent_images(tmp_path):
    plain, other = student(tmp_path, "plain"), student(tmp_path, "other", seed=1)
    moved = shutil.copytree(other, tmp_path / "moved")
    change(moved, "pets", row=np.arange(300) + 300)
    found = compare(load_groups([plain, other, str(moved)]), RESAMPLES).datasets["pets"]
    assert found.differences_over == {"other": "paired images", "moved": "images"}
    for metric in ("accuracy", "nll", "brier"):
        paired, apart = (found.differences[name][metric] for name in ("other", "moved"))
        assert paired.value == apart.value and paired.high - paired.low < 0.85 * (apart.high - apart.low)


# -- what is noise ------------------------------------------------------------------------------------------------


def test_a_difference_is_found_and_none_is_noise(tmp_path):
    folders = [
        student(tmp_path, "plain"),
        student(tmp_path, "same"),
        student(tmp_path, "lucky", seed=1),
        student(tmp_path, "stronger", seed=2, strength=2.5),
        student(tmp_path, "overconfident", seed=3, sharpness=4),
    ]
    found = compare(load_groups(folders), RESAMPLES).datasets["pets"].differences
    assert {item.verdict for item in found["same"].values()} == {NOISE}
    assert {(item.value, item.low, item.high, item.p) for item in found["same"].values()} == {(0, 0, 0, 1)}
    assert {item.verdict for item in found["lucky"].values()} == {NOISE}
    assert {found["stronger"][name].verdict for name in ("accuracy", "nll", "brier")} == {BETTER}
    assert {found["overconfident"][name].verdict for name in ("nll", "ece", "ece_adaptive")} == {WORSE}
    assert found["overconfident"]["accuracy"].verdict == NOISE


def test_students_of_equal_skill_are_rarely_called_different():
    called = 0
    for trial in range(60):
        first, other = (simulated(seed=seed, images=trial, num_images=200) for seed in (0, 1))
        samples = [Sample(measure(p)[None], resample(p, 100, seed=trial), {"": {0}}) for p in (first, other)]
        differences = [samples[1].difference(samples[0])[0]]
        judge(differences)
        called += differences[0]["accuracy"].verdict != NOISE
    assert called <= 8, "of 60, 3 are expected"


def test_holm_by_hand():
    by_group = [
        {metric: Difference(-1.0, -2.0, 0.0, p, p, NOISE) for metric in METRICS} for p in (0.01, 0.04, 0.03, 0.005)
    ]
    judge(by_group)
    assert [found["nll"].p_adjusted for found in by_group] == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert [found["nll"].verdict for found in by_group] == [BETTER, NOISE, NOISE, BETTER]
    assert [found["accuracy"].verdict for found in by_group] == [WORSE, NOISE, NOISE, WORSE]


def test_differences_over_seeds_are_welchs():
    rng = np.random.default_rng(0)
    first, other = rng.normal(0.5, 0.02, (4, 6)), rng.normal(0.52, 0.01, (3, 6))
    found, over = Sample(other, np.zeros((2, 6)), {}).difference(Sample(first, np.zeros((2, 6)), {}))
    expected = stats.ttest_ind(other, first, equal_var=False)
    ends = expected.confidence_interval(0.95)
    assert over == "seeds"
    for index, item in enumerate(found.values()):
        assert (item.p, item.low, item.high) == pytest.approx(
            (expected.pvalue[index], ends.low[index], ends.high[index])
        )


def test_seeds_without_spread():
    sample = Sample(np.full((3, 6), 0.5), np.zeros((2, 6)), {})
    assert all(item.p == 1 for item in sample.difference(sample)[0].values())
    assert all(item.low == item.value == item.high for item in sample.estimates().values())


def test_what_is_significant_has_no_interval_that_holds_zero():
    rng = np.random.default_rng(0)
    for skew in (0.3, 1, 3):  # of the resamples, on which quantiles and standard errors disagree
        noise = rng.gamma(1 / skew, size=(200, 6))
        noise, scale = noise - noise.mean(0), noise.std(0, ddof=1)
        for share in (1.8, 1.95, 1.97, 2.2, -1.95, -1.97):
            first = Sample(np.zeros((1, 6)), np.zeros((200, 6)), {"": {0}})
            resamples = 1.2 * share * scale + noise  # biased, as calibration errors are
            other = Sample(share * scale[None] / 1e3, resamples / 1e3, {"": {0}})
            differences = other.difference(first)[0]
            judge([differences])
            for found in differences.values():
                assert (found.verdict != NOISE) == (found.low > 0 or found.high < 0)
            assert (differences["nll"].verdict != NOISE) == (abs(share) > 1.96)


# -- what is compared ---------------------------------------------------------------------------------------------


def test_corruptions_are_one_mean_over_shared_images(tmp_path):
    kinds = [("fog", 1), ("fog", 3)]
    folders = [student(tmp_path, name, corruptions=kinds, seed=seed) for seed, name in enumerate("ab")]
    found = compare(load_groups(folders), RESAMPLES)
    assert list(found.datasets) == ["pets", "corrupted"] and found.datasets["corrupted"].num_samples == 600
    stored = Evaluation.load(Path(folders[0]) / "evaluation").datasets
    mean = np.mean([result.metrics["nll"] for name, result in stored.items() if name != "pets"])
    assert found.datasets["corrupted"].estimates["a"]["nll"].value == pytest.approx(mean, abs=1e-6)
    wide = [item.datasets["corrupted"].estimates["a"]["nll"] for item in (found, compare_with_other_rows(folders))]
    assert wide[0].high - wide[0].low > 1.1 * (wide[1].high - wide[1].low), "the same images are not twice as many"


def compare_with_other_rows(folders):
    for folder in folders:
        change(folder, "pets-fog-3", row=np.arange(300) + 300)
    return compare(load_groups(folders), RESAMPLES)


def test_changed_pairs_by_hand(tmp_path):
    labels = np.array([0, 0, 0, 1, 2, 2] * 50)
    folders = [student(tmp_path, name) for name in ("before", "after")]
    taken = {"before": [1, 1, 0, 1, 2, 2] * 50, "after": [0, 1, 0, 1, 0, 0] * 50}
    for folder in folders:
        change(folder, "pets", label=labels, prediction=np.array(taken[Path(folder).name]))
    found = compare(load_groups(folders), RESAMPLES).datasets["pets"].confusions["after"]
    pairs = {key: [(p.label, p.prediction, p.baseline, p.found) for p in found[key]] for key in found}
    assert pairs == {"fewer": [("ant", "bee_fly", 100, 50)], "more": [("cat", "ant", 0, 100)]}


def test_a_change_by_one_image_is_not_named():
    before, after = np.zeros((3, 3)), np.array([[0, 1, 0], [2, 0, 0], [0, 1.5, 0]])
    (pair,) = largest_changes(before, after, "abc", 1)
    assert (pair.label, pair.prediction, pair.found) == ("b", "a", 2)


def edit_result(student, **changes):
    evaluation = Evaluation.load(f"{student}/evaluation")
    datasets = {name: replace(found, **changes) for name, found in evaluation.datasets.items()}
    replace(evaluation, datasets=datasets).save(f"{student}/evaluation")


def test_wordnet_ids_are_shown_in_words(tmp_path):
    folders = [student(tmp_path, name, seed=seed) for seed, name in enumerate("ab")]
    for folder in folders:
        edit_result(folder, class_names=[f"n{number:08}" for number in WORDNET])
    change(folders[1], "pets", label=np.zeros(300, int), prediction=np.ones(300, int))
    change(folders[0], "pets", label=np.zeros(300, int), prediction=np.zeros(300, int))
    (pair,) = compare(load_groups(folders), RESAMPLES).datasets["pets"].confusions["b"]["more"]
    assert (pair.label, pair.prediction) == ("tench, Tinca tinca", "goldfish, Carassius auratus")


def test_other_settings_are_named(tmp_path):
    folders = [student(tmp_path, name, corruptions=[("fog", 1)], seed=seed) for seed, name in enumerate("abc")]
    settings = [{"image_size": 32, "dtype": "float32"}, {"image_size": 64, "dtype": "float32", "seed": 1}, {}]
    for folder, found in zip(folders, settings, strict=True):
        edit_result(folder, settings=found)
    groups = load_groups(folders)
    (note,) = compare(groups[:2], RESAMPLES).notes
    assert note.startswith("Image size differs, so differences on pets, pets-fog-1 may come of it: ")
    assert "a/evaluation 32, " in note and "b/evaluation 64. Evaluate all with the same flags" in note
    assert not compare([groups[0], groups[2]], RESAMPLES).notes, "an older evaluation says nothing"


def test_few_images_are_told(tmp_path):
    folders = [student(tmp_path, name, num_images=14, seed=seed) for seed, name in enumerate("ab")]
    (note,) = compare(load_groups(folders), RESAMPLES).notes
    assert note.startswith("Pets: no interval over 14 images is to be trusted")


def test_same_input_same_bytes(tmp_path):
    folders = [student(tmp_path, name, seed=seed) for seed, name in enumerate("ab")]
    for name, seed in (("first", 0), ("second", 0), ("third", 1)):
        compare(load_groups(folders), RESAMPLES, seed).save(tmp_path / name)
    files = [(tmp_path / name / "comparison.json").read_bytes() for name in ("first", "second", "third")]
    assert files[0] == files[1] != files[2]


def test_groups_of_seeds(tmp_path):
    for method, strength in (("plain", 1.5), ("better", 2.2)):
        for seed in range(3):
            training = {"method": method, "epochs": 2.0, "seconds": 60.0 + seed}
            student(tmp_path, f"{method}-{seed}", seed=10 * len(method) + seed, strength=strength, training=training)
    groups = load_groups([f"{tmp_path}/plain-*", f"B={tmp_path}/better-0,{tmp_path}/better-1/evaluation"])
    assert [(group.name, len(group.runs), group.method) for group in groups] == [
        ("plain", 3, "plain"),
        ("B", 2, "better"),
    ]
    found = compare(groups, RESAMPLES)
    assert found.groups["plain"]["seconds"] == 61 and found.groups["B"]["epochs"] == 2
    assert found.datasets["pets"].over == {"plain": "3 seeds", "B": "2 seeds"}
    assert found.datasets["pets"].differences_over == {"B": "seeds"}
    assert found.datasets["pets"].differences["B"]["accuracy"].value > 0.05
    text = " ".join(comparison_report.sentences(found))
    assert "(over seeds)" in text and "Several seeds are joined" not in text


def test_time_and_history_of_a_training(tmp_path):
    (tmp_path / "train_results.json").write_text('{"epoch": 2.0, "train_runtime": 100.0}')
    log = [
        {"step": 5, "loss": 1.0},
        {"step": 10, "eval_accuracy": 0.5},
        {"step": 40, "eval_accuracy": 0.75, "train_seconds": 150.0},
    ]
    (tmp_path / "trainer_state.json").write_text(json.dumps({"max_steps": 40, "log_history": log}))
    found = Training.load(tmp_path)
    assert found == Training(None, 2.0, 150.0, [(37.5, 0.5), (150.0, 0.75)]), "a resumed run counts all its time"
    assert Training.load(tmp_path / "nowhere") is None
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(ValueError, match="run.json is damaged"):
        Training.load(tmp_path)


def test_diagrams_of_seeds_are_pooled():
    first = ReliabilityDiagram([None, 0.6], [None, 0.5], [0, 10])
    other = ReliabilityDiagram([0.2, 0.9], [0.1, 1.0], [5, 30])
    pooled = comparison_report._pooled([first, other])
    assert pooled.count == [5, 40] and pooled.confidence == pytest.approx([0.2, 0.825])
    assert pooled.accuracy == pytest.approx([0.1, 0.875])


# -- mistakes -----------------------------------------------------------------------------------------------------


def test_what_is_no_run(tmp_path):
    good = student(tmp_path, "good")
    (tmp_path / "empty").mkdir()
    for text, words in (
        (f"{tmp_path}/empty", "neither an evaluation nor a student's folder with one: expected .*--output_dir"),
        (f"{tmp_path}/nowhere", "does not exist"),
        ("name=", "names no run; write NAME=RUN"),
    ):
        with pytest.raises(ValueError, match=words):
            load_groups([good, text])
    with pytest.raises(ValueError, match="at least two runs to compare, found 1"):
        load_groups([good])
    with pytest.raises(ValueError, match="Several runs are called 'good'; name them apart"):
        load_groups([good, good])


def test_a_folder_with_an_equals_sign(tmp_path):
    folder = student(tmp_path, "lr=0.1")
    assert Group.load(folder).name == "lr=0.1" and Group.load(f"x={folder}").name == "x"


def test_runs_that_are_no_seeds_of_one_another(tmp_path):
    for name, epochs in (("short", 2.0), ("long", 4.0)):
        student(tmp_path, name, training={"method": "plain", "epochs": epochs, "seconds": 1.0})
    with pytest.raises(ValueError, match="have 2 and 4 epochs and the methods plain"):
        Group.load(f"x={tmp_path}/short,{tmp_path}/long")


def test_what_cannot_be_compared(tmp_path):
    plain, other = student(tmp_path, "plain"), student(tmp_path, "other", datasets=("zoo",))
    with pytest.raises(ValueError, match="no data set in common .*pets.*zoo"):
        compare(load_groups([plain, other]), RESAMPLES)
    many = student(tmp_path, "many", datasets=("zoo",), corruptions=[("fog", severity) for severity in range(1, 31)])
    with pytest.raises(ValueError, match=r"zoo-fog-7 and 23 more\)\. .* with the same --suite") as caught:
        compare(load_groups([plain, many]), RESAMPLES)
    assert "zoo-fog-8" not in str(caught.value)
    evaluation = Evaluation.load(f"{plain}/evaluation")
    renamed = replace(evaluation.datasets["pets"], class_names=[*NAMES, "zebu"])
    shutil.copytree(plain, tmp_path / "classes")
    replace(evaluation, datasets={"pets": renamed}).save(tmp_path / "classes" / "evaluation")
    with pytest.raises(ValueError, match=r"10 \(ant ... yak\) and 11 \(ant ... zebu\)\. Evaluate both on the same"):
        compare(load_groups([plain, str(tmp_path / "classes")]), RESAMPLES)
    with pytest.raises(ValueError, match="num_resamples must be >= 100"):
        compare(load_groups([plain, other]), 10)


def test_other_labels_are_another_data_set(tmp_path):
    plain, other = student(tmp_path, "plain"), student(tmp_path, "other")
    change(other, "pets", label=np.zeros(300, int))
    assert compare(load_groups([plain, other]), RESAMPLES), "of several right labels each model is given its own"
    evaluation = Evaluation.load(f"{other}/evaluation")
    newer = replace(evaluation.datasets["pets"], revision="0123456789abcdef")
    replace(evaluation, datasets={"pets": newer}).save(f"{other}/evaluation")
    with pytest.raises(ValueError, match="other labels for the same rows of pets: .* at 0123456789"):
        compare(load_groups([plain, other]), RESAMPLES)


def test_missing_predictions(tmp_path):
    plain, other = student(tmp_path, "plain"), student(tmp_path, "other")
    path = Path(other) / "evaluation" / "predictions" / "pets.parquet"
    few = replace(Evaluation.load(f"{other}/evaluation").datasets["pets"], num_samples=7)
    path.unlink()
    with pytest.raises(ValueError, match="There are no predictions .*; run recipes/evaluate.py"):
        compare(load_groups([plain, other]), RESAMPLES)
    shutil.copy(Path(plain) / "evaluation" / "predictions" / "pets.parquet", path)
    replace(Evaluation.load(f"{other}/evaluation"), datasets={"pets": few}).save(f"{other}/evaluation")
    with pytest.raises(ValueError, match="has 300 predictions for pets, but its evaluation.json says 7"):
        Run.load(other).predictions("pets")


def test_data_sets_that_some_lack_are_named(tmp_path):
    plain, other = student(tmp_path, "plain", datasets=("pets", "zoo")), student(tmp_path, "other", num_images=200)
    found = compare(load_groups([plain, other]), RESAMPLES)
    assert list(found.datasets) == ["pets"] and "not all runs have them: zoo" in found.notes[0]
    assert (
        found.datasets["pets"].differences_over == {"other": "images"}
        and "did not see the same rows" in found.notes[1]
    )
    assert found.datasets["pets"].confusions == {}


# -- the recipe ---------------------------------------------------------------------------------------------------


@pytest.fixture
def recipe(monkeypatch):
    """`recipe(*words)`: runs `compare.py` with these words of a command line."""

    def recipe(*words):
        monkeypatch.setattr(sys, "argv", ["compare.py", *map(str, words)])
        load_recipe("compare").main()

    return recipe


def test_recipe_prints_and_writes_table_words_and_pictures(tmp_path, recipe, capsys):
    kinds = [(kind, severity) for kind in ("fog", "snow") for severity in (1, 3)]
    for seed, (name, strength) in enumerate((("plain", 1.5), ("reinforced", 2.5))):
        training = {"method": name, "epochs": 2.0, "seconds": 5000.0 + seed}
        student(tmp_path, name, corruptions=kinds, seed=seed, strength=strength, training=training)
    log = [{"step": 1, "eval_accuracy": 0.2}, {"step": 2, "eval_accuracy": 0.5}]
    (tmp_path / "plain" / "trainer_state.json").write_text(json.dumps({"max_steps": 2, "log_history": log}))
    out = tmp_path / "out"
    recipe(tmp_path / "plain", f"new={tmp_path}/reinforced", "--output_dir", out, "--num_resamples", RESAMPLES)
    text, printed = (out / "comparison.md").read_text(), capsys.readouterr().out
    (table,) = tables(text)
    assert "\n".join(text.splitlines()[:8]) in printed and "![" not in printed
    assert [row[1].split(",")[0] for row in table[1:]] == ["plain", "new", "new \N{MINUS SIGN} plain"] * 2
    content = json.loads((out / "comparison.json").read_text())
    found = content["datasets"]["pets"]["differences"]["new"]["accuracy"]
    cell = re.fullmatch(r"\*\*\+([\d.]+)\*\* \[\+([\d.]+), \+([\d.]+)\] better", table[3][2])
    assert [float(number) for number in cell.groups()] == pytest.approx(
        [100 * found[key] for key in ("value", "low", "high")], abs=0.051
    )
    assert "**Pets**, new against plain (over paired images): better in top-1 (+" in text and "Holm" in text
    pictured = re.findall(r"!\[.+\]\((\S+)\)", text)
    assert pictured == ["metrics.png", "reliability.png", "corruptions.png", "wall_clock.png", "confusions.png"]
    assert all(is_drawn(out / name) for name in pictured)


def test_accuracy_against_time_is_named_once(tmp_path, monkeypatch):
    for name in ("plain-2", "plain-4", "new"):
        training = {"method": name.split("-")[0], "epochs": 2.0, "seconds": 60.0}
        student(tmp_path, name, training=training)
    groups, drawn = load_groups([str(tmp_path / name) for name in ("plain-2", "plain-4", "new")]), []
    monkeypatch.setattr(comparison_pictures, "save_figure", lambda figure, path: drawn.append(figure))
    assert comparison_pictures.draw_wall_clock(compare(groups, RESAMPLES), groups, "pets", tmp_path)
    (axis,) = drawn[0].axes
    assert [text.get_text() for text in drawn[0].legends[0].get_texts()] == ["plain: plain-2, plain-4", "new"]
    assert not axis.texts, "a label at the point crosses its error bar"


def test_pictures_of_an_earlier_comparison_go(tmp_path, recipe, monkeypatch, capsys):
    monkeypatch.setattr(comparison_report.comparison_pictures, "save_figure", lambda figure, path: path.touch())
    monkeypatch.setattr(pictures, "save_figure", lambda figure, path: path.touch())
    folders = [student(tmp_path, name, seed=seed) for seed, name in enumerate("ab")]
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "corruptions.png").touch()
    recipe(*folders, "--output_dir", tmp_path / "out", "--num_resamples", RESAMPLES)
    assert {path.name for path in (tmp_path / "out").glob("*.png")} == {
        "metrics.png",
        "reliability.png",
        "confusions.png",
    }


def test_mistakes_end_the_recipe_with_one_line(tmp_path, recipe):
    with pytest.raises(SystemExit, match="^error: .*nowhere does not exist: expected [^\n]*$"):
        recipe(student(tmp_path, "plain"), tmp_path / "nowhere")


def test_commands_of_the_document_are_understood():
    recipe, arguments = load_recipe("compare"), load_recipe("arguments")
    text = (ROOT / "docs" / "compare.md").read_text(encoding="utf-8").replace("\\\n", " ")
    commands = re.findall(r"^python recipes/compare\.py (.+)$", text, re.M)
    assert len(commands) >= 2
    for command in commands:
        (parsed,) = arguments.parse("", [recipe.CompareArguments], argv=shlex.split(command), first=recipe.FIRST)
        assert len(parsed.runs) >= 2


def test_runs_may_come_from_a_file():
    with_flag, first = load_recipe("arguments").with_first_flag, load_recipe("compare").FIRST
    assert with_flag(["a", "b", "--seed", "1"], first) == ["--runs", "a", "b", "--seed", "1"]
    assert with_flag(["runs.yaml", "--seed", "1"], first) == ["runs.yaml", "--seed", "1"]
    assert with_flag([], first) == []


def test_corruption_without_its_clean_form(tmp_path):
    folders = [student(tmp_path, name, corruptions=[("fog", 1)], seed=seed) for seed, name in enumerate("ab")]
    for folder in folders:
        evaluation = Evaluation.load(f"{folder}/evaluation")
        only = {name: found for name, found in evaluation.datasets.items() if found.corruption == Corruption("fog", 1)}
        replace(evaluation, datasets=only).save(f"{folder}/evaluation")
    groups = load_groups(folders)
    text = comparison_report.write_comparison(compare(groups, RESAMPLES), groups, tmp_path / "out")
    assert "mean over 1 corrupted sets" in text and is_drawn(tmp_path / "out" / "corruptions.png")
