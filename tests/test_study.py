"""The runner of studies: which commands a file stands for, what is done, and how it stops."""

import dataclasses
import json
import shlex
import shutil
import sys
from pathlib import Path

import pytest
import yaml
from recipe_modules import flag_classes, load_recipe

study = load_recipe("study")
ROOT = Path(__file__).parent.parent

SPEC = {
    "output_dir": "out",
    "sizes": {
        "small": {
            "seeds": [0, 1],
            "teachers": ["a", "b"],
            "members": {"x": {"flag": 1}},
            "net": {"depth": 6},
            "without": [{"method": "kd", "seed": "seed1"}],
        }
    },
    "stages": {
        "first": {"recipe": "write.py", "over": {"member": "{members}"}},
        "second": {
            "recipe": "write.py",
            "config": "some.yaml",
            "flags": {"output_dir": "{output_dir}/{name}", "none": None, "teachers": "{teachers}", "args": "{net}"},
            "over": {"method": {"plain": None, "kd": {"method": "kd"}}, "seed": "{seeds}"},
            "except": "{without}",
        },
        "evaluated": {
            "recipe": "write.py",
            "each": "second",
            "flags": {"model": "{output_dir}/{run}", "method": "{method}"},
        },
    },
}


def test_a_stage_is_a_grid_over_its_axes_or_for_each_run_of_an_earlier_one():
    runs = study.runs_of(SPEC, "small", [])
    settings = ["plain-seed0", "plain-seed1", "kd-seed0"]  # and not kd-seed1
    names = [f"{stage}-{name}" for stage in ("second", "evaluated") for name in settings]
    assert [run.name for run in runs] == ["first-x", *names]
    assert runs[0].command[1:] == ("--flag", "1")
    assert runs[3].labels == runs[6].labels == {"method": "kd", "seed": "seed0"}
    assert runs[3].command[1:] == (
        *("some.yaml", "--output_dir", "out/small/second-kd-seed0", "--teachers", "a", "b"),
        *("--args", '{"depth": 6}', "--method", "kd", "--seed", "0"),
    )
    assert runs[6].command[1:] == ("--model", "out/small/second-kd-seed0", "--method", "kd")
    assert [run.name for run in study.runs_of(SPEC, "small", ["first"])] == ["first-x"]


def changed(**stage):
    return {**SPEC, "stages": {"first": {"recipe": "write.py", **stage}}}


@pytest.mark.parametrize(
    ("spec", "size", "only", "says"),
    [
        (SPEC, "large", [], "no size 'large'; its sizes are small"),
        (SPEC, "small", ["third"], "no stage 'third'; its stages are first, second, evaluated"),
        (changed(flags={"n": "{num}"}), "small", [], "uses {num}, which this size does not define"),
        (changed(grid={}), "small", [], "unknown keys ['grid']"),
        (
            changed(over={"n": [1]}, **{"except": [{"n": "n2"}]}),
            "small",
            [],
            "leaves out {'n': 'n2'}, which is not in",
        ),
        (changed(each="second"), "small", [], "for each of second, which is no stage before it"),
    ],
)
def test_a_study_that_cannot_be_run_is_refused(spec, size, only, says):
    with pytest.raises(ValueError) as error:
        study.runs_of(spec, size, only)
    assert says in str(error.value)


@pytest.fixture
def recipes(tmp_path, monkeypatch):
    """A folder of recipes with one that notes its flags, fails at `--fail yes` and hangs at `--hang yes`."""
    (tmp_path / "write.py").write_text(
        "import sys, time, pathlib\n"
        "flags = dict(zip(sys.argv[1::2], sys.argv[2::2]))\n"
        "if flags.get('--fail') == 'yes': sys.exit('error: it was told to')\n"
        "with pathlib.Path('ran.txt').open('a') as file: file.write(flags['--n'] + ' ')\n"
        "if flags.get('--hang') == 'yes': time.sleep(60)\n"
    )
    monkeypatch.setattr(study, "RECIPES", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_study(recipes, monkeypatch, stage, *flags, **further):
    stages = {"only": {"recipe": "write.py", **stage}}
    spec = {"output_dir": "out", "sizes": {"cpu": {}}, "stages": stages, **further}
    (recipes / "study.yaml").write_text(yaml.safe_dump(spec, sort_keys=False))
    monkeypatch.setattr(sys, "argv", ["study.py", "--study", "study.yaml", *flags])
    study.main()


def test_what_is_done_is_not_run_again(recipes, monkeypatch, capsys):
    run_study(recipes, monkeypatch, {"over": {"n": [1, 2]}})
    run_study(recipes, monkeypatch, {"over": {"n": [1, 2, 3]}})
    assert (recipes / "ran.txt").read_text() == "1 2 3 "
    record = json.loads((recipes / "out/cpu/done/only-n3.json").read_text())
    assert record["command"] == ["--n", "3"] and record["seconds"] > 0
    capsys.readouterr()
    run_study(recipes, monkeypatch, {"over": {"n": [1, "two words"]}}, "--list_runs", "true")
    done, todo = capsys.readouterr().out.splitlines()
    assert done.split()[:2] == ["done", "only-n1"] and shlex.split(todo)[-2:] == ["--n", "two words"]
    with pytest.raises(SystemExit, match="only-n2 was run with other settings; remove"):
        run_study(recipes, monkeypatch, {"over": {"n": {"n2": {"n": 9}}}})


def test_a_run_whose_data_is_missing_is_named_before_anything_runs(recipes, monkeypatch):
    stage = {"over": {"n": [1]}, "flags": {"output_dir": "{output_dir}/{name}"}}
    further = {"recipe": "write.py", "flags": {"n": 2, "data": "{output_dir}/only-n1"}}
    missing = {"recipe": "write.py", "flags": {"n": 3, "data": "{output_dir}/elsewhere"}}
    with pytest.raises(SystemExit, match="error: last needs out/cpu/elsewhere, which is not there and which no run"):
        stages = {"only": {"recipe": "write.py", **stage}, "next": further, "last": missing}
        run_study(recipes, monkeypatch, stage, stages=stages)
    assert not (recipes / "ran.txt").exists()


def test_records_and_figures_are_kept_where_the_study_says(recipes, monkeypatch):
    (recipes / "train.py").write_text(
        "import json, pathlib, sys\n"
        "folder = pathlib.Path(sys.argv[sys.argv.index('--output_dir') + 1])\n"
        "folder.mkdir(parents=True)\n"
        "(folder / 'all_results.json').write_text(json.dumps({'eval_accuracy': 0.5}))\n"
        "log = [{'step': i, 'loss': 1, 'train_seconds': t} for i, t in ((5, 60), (10, 61), (20, 65), (25, 66))]\n"
        "(folder / 'trainer_state.json').write_text(json.dumps({'log_history': log}))\n"
    )
    stage = {"recipe": "train.py", "flags": {"output_dir": "{output_dir}/{name}"}}
    run_study(recipes, monkeypatch, stage, records="kept")
    record = json.loads((recipes / "kept/cpu/only.json").read_text())
    assert record["results"] == {"eval_accuracy": 0.5} and record["command"][0] == "--output_dir"
    assert record["seconds_per_step"] == 0.2  # of 0.2, 0.4 and 0.2; the first steps compile
    shutil.rmtree(recipes / "out")
    study.main()  # on another machine
    assert not (recipes / "out").exists()


def test_a_failure_ends_the_study_with_its_last_line(recipes, monkeypatch):
    with pytest.raises(SystemExit, match="only failed: error: it was told to"):
        run_study(recipes, monkeypatch, {"flags": {"n": 1, "fail": "yes"}})
    assert not (recipes / "out/cpu/done/only.json").exists()


def test_at_the_time_limit_a_run_is_stopped_and_not_recorded(recipes, monkeypatch, capsys):
    run_study(recipes, monkeypatch, {"flags": {"hang": "yes"}, "over": {"n": [1, 2]}}, "--minutes", "0.02")
    assert "the same command goes on" in capsys.readouterr().out
    assert not list((recipes / "out/cpu").glob("done/*"))


def test_runs_at_the_same_time_share_the_cores_and_timed_ones_are_alone(recipes, monkeypatch):
    (recipes / "meet.py").write_text(  # with `--others 1` it waits for another run to begin before it ends
        "import os, pathlib, sys, time\n"
        "flags = dict(zip(sys.argv[1::2], sys.argv[2::2]))\n"
        "with pathlib.Path('runs.txt').open('a') as file: file.write('begin ')\n"
        "until = time.monotonic() + 30\n"
        "while pathlib.Path('runs.txt').read_text().count('begin') <= int(flags['--others']):\n"
        "    if time.monotonic() > until: sys.exit('alone')\n"
        "with pathlib.Path('runs.txt').open('a') as file: file.write(os.environ.get('OMP_NUM_THREADS', 'all') + ' ')\n"
    )
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(study.os, "cpu_count", lambda: 8)
    stage = {"recipe": "meet.py", "over": {"n": [1, 2]}}
    run_study(recipes, monkeypatch, {**stage, "flags": {"others": 1}}, "--jobs", "2")
    assert (recipes / "runs.txt").read_text() == "begin begin 4 4 "
    (recipes / "runs.txt").unlink()
    stage["over"] = {"n": [3, 4]}
    run_study(recipes, monkeypatch, {**stage, "flags": {"others": 0}, "alone": True}, "--jobs", "2")
    assert (recipes / "runs.txt").read_text() == "begin all begin all "


SIZES = {"study": ("quick", "cpu", "gpu"), "ablations": ("cpu", "gpu"), "regime": ("cpu",)}


@pytest.mark.parametrize("file", [*SIZES, "converged"])
def test_the_studies_of_cifar100_have_flags_that_their_recipes_know(file):
    spec = yaml.safe_load((ROOT / f"recipes/cifar100_plus/{file}.yaml").read_text())
    for size in SIZES.get(file, ("cpu", "rehearsal")):
        runs = study.runs_of(spec, size, [])
        assert {run.stage for run in runs} == set(spec["stages"]) - ({"tuning"} if size == "quick" else set())
        for run in runs:
            known = {
                field.name for cls in flag_classes(Path(run.command[0]).stem) for field in dataclasses.fields(cls)
            }
            assert {word[2:] for word in run.command if word.startswith("--")} <= known, run.name
