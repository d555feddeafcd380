"""The report of a study: what it reads of the students, its table and its picture."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import yaml
from recipe_modules import load_recipe
from simulated import write_evaluation
from test_evaluation_report import is_drawn

report = load_recipe("study_report")
ROOT = Path(__file__).parent.parent
SIZES = ("cpu", "quick")

GRID = {"student": {"small": {}}, "method": {"plain": {}, "reinforced": {}}}
SPEC = {
    "output_dir": "out",
    "sizes": {"cpu": {}},
    "stages": {
        "teacher": {"recipe": "train.py", "over": {"member": {"a": {}}}},
        "students": {"recipe": "train.py", "over": {**GRID, "seed": [0, 1]}},
        "speed": {"recipe": "train.py", "over": GRID},
        "data": {"recipe": "reinforce.py", "over": {"num_samples": [1, 2]}},
        "samples": {"recipe": "train.py", "each": "data"},
    },
}


def trained(folder, entries, **student):
    """A student's folder as train_kd.py and evaluate.py leave it, as far as the report reads it."""
    if student:
        write_evaluation(folder, **student)
    folder.mkdir(parents=True, exist_ok=True)
    state = {"max_steps": 600, "num_train_epochs": 2, "log_history": entries}
    (folder / "trainer_state.json").write_text(json.dumps(state))


@pytest.fixture
def study(tmp_path, monkeypatch):
    """A study with two seeds of two methods, timed in its stage `speed`; plain has one seed yet."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "zoo").mkdir()
    (tmp_path / "zoo/study.yaml").write_text(yaml.safe_dump(SPEC, sort_keys=False))
    history = [{"step": step, "eval_accuracy": step / 1000, "train_seconds": 9.0 * step} for step in (300, 600)]
    folder = tmp_path / "out/cpu"
    for name, seed, strength in (("plain", 0, 1), ("reinforced", 0, 2), ("reinforced", 1, 3)):
        trained(folder / f"students-small-{name}-seed{seed}", history, seed=seed, strength=strength)
    for name, each in (("plain", 0.25), ("reinforced", 0.5)):
        log = [{"step": step, "loss": 1.0, "train_seconds": 7 + each * step} for step in (20, 40, 60)]
        trained(folder / f"speed-small-{name}", [*log, {"step": 60, "eval_accuracy": 0.1, "train_seconds": 99.0}])
    teacher = folder / "teacher-a"
    teacher.mkdir()
    (teacher / "train_results.json").write_text('{"epoch": 2.0, "train_runtime": 600.0}')
    (folder / "done").mkdir()
    (folder / "done/reinforce.json").write_text('{"command": [], "seconds": 120.0}')
    return tmp_path / "zoo/study.yaml"


def other_stages(folder):
    """Leaves the results of the trainings of stage `samples`, and of one in stage `seeds`."""
    for name, accuracy in (("samples-num_samples1", 0.25), ("samples-num_samples2", 0.5), ("seeds-seed1", 0.625)):
        (folder / name).mkdir(parents=True)
        figures = {"eval_accuracy": accuracy, "eval_nll": 1.5, "eval_ece": 0.0625, "eval_num_samples": 100.0}
        (folder / name / "eval_results.json").write_text(json.dumps(figures))


def run_report(monkeypatch, *flags):
    monkeypatch.syspath_prepend(str(ROOT / "recipes"))
    monkeypatch.setattr(sys, "argv", ["study_report.py", *map(str, flags)])
    report.main()


def test_raw_figures_table_and_picture(study, tmp_path, monkeypatch):
    run_report(monkeypatch, "--study", study, "--size", "cpu", "--output_dir", tmp_path / "docs")
    results = json.loads((tmp_path / "docs/zoo-study-cpu.json").read_text())
    assert results["seconds"] == {"teacher-a": 600.0, "reinforce": 120.0}
    assert [row["labels"] for row in results["rows"]] == [
        {"student": "small", "method": "plain", "seed": "seed0"},
        {"student": "small", "method": "reinforced", "seed": "seed0"},
        {"student": "small", "method": "reinforced", "seed": "seed1"},
    ]
    assert [row["seconds_per_step"] for row in results["rows"]] == [0.25, 0.5, 0.5]
    assert results["rows"][0]["history"] == [[300, 0.3], [600, 0.6]]

    text = (tmp_path / "docs/zoo-study-cpu.md").read_text()
    plain, reinforced = [line.strip("| ").split(" | ") for line in text.splitlines()[2:4]]
    first, second = (100 * row["metrics"]["accuracy"] for row in results["rows"][1:])
    spread = abs(first - second) / 2**0.5
    assert reinforced[:3] == ["small, 2", "reinforced", f"**{(first + second) / 2:.1f} ± {spread:.1f}**"]
    assert plain[2] == f"{100 * results['rows'][0]['metrics']['accuracy']:.1f}" and plain[5] == "-"
    assert plain[6:] == ["75", "2.5", "2.5"] and reinforced[6:] == ["150", "5.0", "6.0"]
    assert "took 2.0 min, once: 1.0 min for each student that was trained on it" in text and "took 10 min" in text
    assert is_drawn(tmp_path / "docs/zoo-study-cpu.png")
    assert is_drawn(tmp_path / "docs/zoo-study-cpu-reliability.png")


def test_tables_and_pictures_come_from_the_raw_figures_alone(study, tmp_path, monkeypatch):
    other_stages(tmp_path / "out/cpu")
    run_report(monkeypatch, "--study", study, "--output_dir", tmp_path / "docs")
    path = tmp_path / "docs/zoo-study-cpu.json"
    before = path.with_suffix(".md").read_text()
    lines = before.splitlines()
    assert lines[lines.index("### samples") + 2 :] == [
        "| num_samples | top-1, % | NLL | ECE |",
        "|---|---|---|---|",
        "| num_samples1 | 25.0 | 1.500 | 0.062 |",
        "| num_samples2 | 50.0 | 1.500 | 0.062 |",
    ]
    for suffix in (".md", ".png"):
        path.with_suffix(suffix).unlink()
    study.unlink()
    run_report(monkeypatch, "--results", path)
    assert path.with_suffix(".md").read_text() == before and path.with_suffix(".png").exists()
    results = json.loads(path.read_text())
    results["rows"][1]["corrupted_accuracy"] = 0.125  # which the other seed lacks
    assert report.markdown(results).splitlines()[3].split(" | ")[5] == "12.5"


def test_settings_are_compared_with_the_baseline_over_its_seeds(study, tmp_path, monkeypatch):
    shutil.rmtree(tmp_path / "out")
    other_stages(tmp_path / "out/cpu")
    spec = {**SPEC, "baseline": {"stage": "samples", "label": "num_samples2"}}
    spec["stages"] = {**SPEC["stages"], "seeds": {"recipe": "train.py", "over": {"seed": [1]}}}
    study.write_text(yaml.safe_dump(spec, sort_keys=False))
    run_report(monkeypatch, "--study", study, "--output_dir", tmp_path / "docs")
    text = (tmp_path / "docs/zoo-study-cpu.md").read_text()
    assert text.count("| baseline | 56.2 ± 8.8 | 1.500 ± 0.000 | 0.062 ± 0.000 |") == 2
    assert json.loads((tmp_path / "docs/zoo-study-cpu.json").read_text())["rows"] == []


def test_a_study_without_students(study, tmp_path, monkeypatch):
    (tmp_path / "out").rename(tmp_path / "elsewhere")
    with pytest.raises(SystemExit, match="no evaluated students; run recipes/study.py --study"):
        run_report(monkeypatch, "--study", study)
    with pytest.raises(SystemExit, match="either --study FILE or --results FILE"):
        run_report(monkeypatch)


def test_the_tables_in_the_documents_are_made_of_the_raw_figures():
    found = sorted((ROOT / "docs" / "studies").glob("*.json"))
    assert found
    for path in found:
        results = json.loads(path.read_text(encoding="utf-8"))
        assert report.markdown(results) == path.with_suffix(".md").read_text(encoding="utf-8")
    results = {
        size: json.loads((ROOT / f"docs/studies/cifar100_plus-study-{size}.json").read_text()) for size in SIZES
    }
    lines, quick = (
        [line for line in report.headline(results[size]).splitlines() if line.startswith("|")] for size in SIZES
    )
    pages = {name: (ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/results.md")}
    assert [line for line in lines if line not in pages["docs/results.md"]] == []
    longest = [line for line in lines if "|---" in line or "student, epochs" in line or ", 5 |" in line]
    longest = [line for line in longest if "| online |" not in line]
    assert len(longest) == 2 + 6 and [line for line in longest if line not in pages["README.md"]] == []
    longest = [line for line in quick if ", 6 |" in line]
    assert len(longest) == 9 and [line for line in longest if line not in pages["docs/results.md"]] == []


def test_a_resumed_training_counts_all_its_time(tmp_path):
    (tmp_path / "train_results.json").write_text('{"epoch": 2.0, "train_runtime": 100.0}')
    assert report.training_seconds(tmp_path) == 100
    log = [{"step": 5, "loss": 1.0}, {"step": 40, "eval_accuracy": 0.75, "train_seconds": 150.0}]
    (tmp_path / "trainer_state.json").write_text(json.dumps({"log_history": log}))
    assert report.training_seconds(tmp_path) == 150
