"""Comparisons: intervals and p against scipy and by hand, what is compared, and the recipe."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from recipe_modules import load_recipe
from scipy import stats
from simulated import write_evaluation
from test_evaluation_report import tables

from hf_reinforce.evaluation.results import Evaluation
from hf_reinforce.metrics import Predictions, measure

recipe = load_recipe("compare")
PETS = "evaluation/predictions/pets.parquet"


def student(folder, name, **arguments):
    return str(write_evaluation(folder / name, **arguments))


def compared(*texts, **options):
    """The rows of a comparison: (dataset, student, whether of the difference) -> row; and the notes."""
    found = recipe.compare(recipe.load_groups(list(map(str, texts))), **{"num_resamples": 100, **options})
    return {(row["dataset"], row["student"], "minus" in row): row for row in found["rows"]}, found["notes"]


def edit_result(student, **changes):
    evaluation = Evaluation.load(f"{student}/evaluation")
    datasets = {name: replace(found, **changes) for name, found in evaluation.datasets.items()}
    replace(evaluation, datasets=datasets).save(f"{student}/evaluation")


def figures(row, *keys):
    return np.array([list(row[key].values()) for key in keys])


# -- intervals and p ----------------------------------------------------------------------------------------------


def test_over_images_by_hand(tmp_path):
    folders = [student(tmp_path, "plain", num_images=2000), student(tmp_path, "other", num_images=2000, seed=1)]
    moved = shutil.copytree(folders[1], tmp_path / "moved")
    answers = [Predictions.load(Path(folder) / PETS) for folder in folders]
    replace(answers[1], row=np.arange(2000) + 2000).save(moved / PETS)
    rows, _ = compared(*folders, moved, num_resamples=1000)
    for metric in ("nll", "brier"):
        first, other = (getattr(found, metric).astype(float) for found in answers)
        apart = np.hypot(first.std(), other.std())
        for key, over, mean, deviation in (
            (("plain", False), "images", first.mean(), first.std()),
            (("other", True), "paired images", (other - first).mean(), (other - first).std()),
            (("moved", True), "images", (other - first).mean(), apart),
        ):
            row, error = rows["Pets", *key], deviation / 2000**0.5
            assert row["over"] == over and row["value"][metric] == pytest.approx(mean, abs=1e-6)
            assert row["high"][metric] - mean == pytest.approx(1.96 * error, rel=0.1)
            assert mean - row["low"][metric] == pytest.approx(1.96 * error, rel=0.1)


@pytest.mark.parametrize("names", [("plain-1", "plain-0", "plain-2"), ("plain-0", "plain-1", "plain-3"), ("plain-0",)])
def test_over_seeds_as_scipy_does(tmp_path, names):
    others = ["new-seed0", "new-seed1", "new-seed2"]
    for seed, name in enumerate([*names, *others]):
        student(tmp_path, name, seed=seed, strength=1.5 + 0.1 * name.startswith("new"))
    plain, new = (
        np.array([list(measure(Predictions.load(tmp_path / name / PETS)).values()) for name in of_group])
        for of_group in (names, others)
    )
    rows, _ = compared("A=" + ",".join(str(tmp_path / name) for name in names), f"{tmp_path}/new-*")
    row, mean = rows["Pets", "new", False], new.mean(0)
    low, high = stats.t.interval(0.95, 2, mean, stats.sem(new))
    assert row["over"] == "3 seeds" and np.allclose(figures(row, "low", "value", "high"), [low.clip(0), mean, high])
    row = rows["Pets", "new", True]
    if len(names) == 1:
        assert row["over"] == "paired images", "one run has no spread over seeds"
        return
    paired = "plain-2" in names
    test = stats.ttest_rel(new, plain[[1, 0, 2]]) if paired else stats.ttest_ind(new, plain, equal_var=False)
    ends = test.confidence_interval(0.95)
    assert row["over"] == ("paired seeds" if paired else "seeds")
    assert np.allclose(figures(row, "low", "high", "p"), [ends.low, ends.high, test.pvalue])


def test_seeds_without_spread(tmp_path):
    for name, strength in (("a-0", 1), ("a-1", 1), ("b-0", 1), ("b-1", 1), ("c-0", 9), ("c-2", 9)):
        student(tmp_path, name, strength=strength)
    rows, _ = compared(*(f"{tmp_path}/{name}-*" for name in "abc"))
    same, apart = rows["Pets", "b", True], rows["Pets", "c", True]
    assert np.allclose(figures(same, "value", "low", "high", "p"), [[0], [0], [0], [1]])
    assert np.allclose(figures(apart, "low", "high"), figures(apart, "value")) and apart["p"]["nll"] < 1e-9


def test_holm_by_hand():
    p = np.array([[0.01, 0.04, 0.03, 0.005], [0.5, 0.01, 0.9, 0.8]]).T
    expected = [[0.03, 0.06, 0.06, 0.02], [1, 0.04, 1, 1]]
    assert np.allclose(recipe.holm(p).T, expected)


def test_a_difference_is_found_and_none_is_noise(tmp_path):
    others = {
        "same": {},
        "lucky": {"seed": 1},
        "strong": {"seed": 2, "strength": 2.5},
        "sure": {"seed": 3, "sharpness": 4},
    }
    rows, _ = compared(*(student(tmp_path, name, **how) for name, how in ({"plain": {}} | others).items()))
    found = {name: rows["Pets", name, True]["verdict"] for name in others}
    assert set(found["same"].values()) == set(found["lucky"].values()) == {"noise"}
    assert {found["strong"][metric] for metric in ("accuracy", "nll", "brier")} == {"better"}
    assert {found["sure"][metric] for metric in ("nll", "ece", "ece_adaptive")} == {"worse"}
    assert np.allclose(figures(rows["Pets", "same", True], "low", "high", "p"), [[0], [0], [1]])
    adjusted = figures(rows["Pets", "lucky", True], "p_adjusted")[0]
    assert (adjusted >= figures(rows["Pets", "lucky", True], "p")[0]).all()


# -- what is compared ---------------------------------------------------------------------------------------------


def test_corruptions_are_one_mean_over_shared_images(tmp_path):
    kinds = [("fog", 1), ("fog", 3)]
    folders = [student(tmp_path, name, corruptions=kinds, seed=seed) for seed, name in enumerate("ab")]
    rows, _ = compared(*folders)
    key = ("mean over 2 corrupted sets", "a", False)
    stored = Evaluation.load(Path(folders[0]) / "evaluation").datasets
    mean = np.mean([result.metrics["nll"] for result in stored.values() if result.corruption])
    assert rows[key]["value"]["nll"] == pytest.approx(mean, abs=1e-6) and rows[key]["num_samples"] == 600
    for folder in folders:
        path = Path(folder) / "evaluation/predictions/pets-fog-3.parquet"
        replace(Predictions.load(path), row=np.arange(300) + 300).save(path)
    widths = [np.ptp(figures(found[key], "low", "high"), axis=0)[2] for found in (rows, compared(*folders)[0])]
    assert widths[0] > 1.1 * widths[1], "the same images are not twice as many"


def test_other_settings_and_datasets_that_some_lack_are_named(tmp_path):
    folders = [student(tmp_path, "a", datasets=("pets", "zoo")), student(tmp_path, "b", num_images=200)]
    edit_result(folders[0], settings={"image_size": 32, "dtype": "float32", "seed": 1}, revision="abc")
    edit_result(folders[1], settings={"image_size": 64, "dtype": "float32"}, revision="bcd")  # an older evaluation
    rows, notes = compared(*folders)
    assert {key[0] for key in rows} == {"Pets"} and rows["Pets", "b", True]["over"] == "images"
    assert notes[0].startswith("Differences may come of another image_size; evaluate all with the same flags")
    assert notes[1].startswith("Differences may come of another revision;")
    assert notes[2:] == ["Left out, for not all runs have them: zoo."]


def test_names_of_groups(tmp_path):
    for name in ("plain-0", "plain-1", "lr=0.1"):
        student(tmp_path, name)
    texts = [f"{tmp_path}/plain-*", f"B={tmp_path}/plain-0,{tmp_path}/plain-1/evaluation", f"{tmp_path}/lr=0.1"]
    groups = recipe.load_groups([*texts, f"C={tmp_path}/lr=0.1"])
    assert {name: len(runs) for name, runs in groups.items()} == {"plain": 2, "B": 2, "lr=0.1": 1, "C": 1}
    shutil.copytree(tmp_path / "plain-0/evaluation", tmp_path / "plain-0/robustness")
    (tmp_path / "plain-0/config.json").touch()
    assert list(recipe.load_groups([f"{tmp_path}/*/robustness", texts[2]])) == ["plain-0", "lr=0.1"]


def test_what_cannot_be_compared(tmp_path):
    plain, zoo = student(tmp_path, "plain"), student(tmp_path, "zoo", datasets=("zoo",))
    (tmp_path / "empty").mkdir()
    for name, epochs in (("short", 2.0), ("long", 4.0)):
        student(tmp_path, name, training={"method": "online", "epochs": epochs, "seconds": 1.0})
    other = student(tmp_path, "other")
    edit_result(other, class_names=[*"abcdefghij"])
    for texts, words in (
        ([plain], "at least two runs to compare, found 1"),
        ([plain, plain], "Several runs are called 'plain'; name them"),
        ([plain, "name="], "no run 'name='; write RUN, NAME=RUN"),
        ([plain, f"{tmp_path}/nowhere-*"], r"no run .*nowhere-\*; write RUN"),
        ([plain, f"{tmp_path}/empty"], r"empty/evaluation has no evaluation.json; write one with recipes/evaluate.py"),
        ([plain, zoo], "plain/evaluation, .*zoo/evaluation have no dataset in common; .* same --suite"),
        ([plain, other], "score pets in different classes; evaluate all on the same"),
        (
            [plain, f"x={tmp_path}/short,{tmp_path}/long"],
            r"no seeds of one another \(method online, epoch 2.0 and .* 4.0",
        ),
    ):
        with pytest.raises(ValueError, match=words):
            compared(*texts)
    with pytest.raises(ValueError, match="--num_resamples must be >= 100, not 10"):
        compared(plain, other, num_resamples=10)


# -- the recipe ---------------------------------------------------------------------------------------------------


def test_recipe_prints_and_writes_the_table(tmp_path, monkeypatch, capsys):
    for seed, (name, strength) in enumerate((("plain", 1.5), ("reinforced", 2.5))):
        student(tmp_path, name, corruptions=[("fog", 1)], seed=seed, strength=strength)
    words = [f"{tmp_path}/plain", f"new={tmp_path}/reinforced", "--num_resamples", "100", "--output_dir"]
    for folder in ("out", "again"):
        monkeypatch.setattr(sys, "argv", ["compare.py", *words, str(tmp_path / folder)])
        recipe.main()
    text, content = (tmp_path / "out/comparison.md").read_text(), (tmp_path / "out/comparison.json").read_text()
    assert text in capsys.readouterr().out
    assert (tmp_path / "again/comparison.json").read_text() == content, "the same input gives the same bytes"
    (table,) = tables(text)
    assert [row[1].split(",")[0] for row in table[1:]] == ["plain", "new", "new \N{MINUS SIGN} plain"] * 2
    assert [row[0] for row in table[1::3]] == ["Pets, 300 images", "mean over 1 corrupted sets, 300 images"]
    row = json.loads(content)["rows"][2]
    value, low, high = (100 * row[key]["accuracy"] for key in ("value", "low", "high"))
    assert table[3][2] == f"**{value:+.1f}** [{low:+.1f}, {high:+.1f}] better"
    monkeypatch.setattr(sys, "argv", ["compare.py", *words[:1], str(tmp_path / "nowhere")])
    with pytest.raises(SystemExit, match=r"^error: There is no run [^\n]*nowhere; write RUN[^\n]*$"):
        recipe.main()
