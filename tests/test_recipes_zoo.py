"""Mistakes with every recipe: each ends in one line and exit code 1, and nothing half-written is left.

Command lines of all recipes, and the networks and datasets of those that other zoos leave out.
"""

import dataclasses
import json
import os
import shlex
import sys

import numpy as np
import pytest
import torch
from recipe_modules import RECIPES, load_recipe
from safetensors.torch import load_file, save_file
from scenes import SHAPES, write_scenes
from simulated import write_evaluation
from tiny import NAMES, reinforced_rows, tiny_dataset
from transformers import ViTConfig, ViTForImageClassification

from hf_reinforce import load_policy, load_teacher
from hf_reinforce.models.students import create_student, saved_weights

C, SIZE = 5, 32
LFS = (
    b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca2\n"
)

# What each recipe is right with; {names} are made by the fixture `there`.
RIGHT = {
    "compare": "--runs {runs}/a {runs}/b --output_dir {out}",
    "demo": "--output_dir {out}",
    "detect": "--model_name_or_path resnet10t --output_dir {out} --use_cpu True --train_images {scenes}/images/train "
    "--train_annotations {scenes}/train.json",
    "evaluate": "--model_name_or_path {student} --dataset_name {images} --device cpu --num_workers 0 "
    "--output_dir {out}",
    "finetune": "--model_name_or_path {student} --dataset_name {images} --policy rrc --image_size 32 --use_cpu True "
    "--output_dir {out}",
    "import_ml_dr": "--archive {empty} --source_name_or_path {images} --output_dir {out}",
    "inspect_dataset": "--dataset_name {plus} --output_dir {out}",
    "linear_probe": "--model_name_or_path {student} --dataset_name {images} --num_workers 0 "
    "--output_json {out}/p.json",
    "publish": "--folder {plus} --repo_id me/plus --dry_run True",
    "subset": "--dataset_name {images} --output_dir {out}",
    "reinforce": "--dataset_name {images} --teacher_name_or_path {student} --policy rrc --image_size 32 "
    "--num_samples 1 --output_dir {out}",
    "segment": "--model_name_or_path resnet10t --output_dir {out} --use_cpu True --train_images {scenes}/images/train "
    "--train_masks {scenes}/masks/train --num_labels 4 --per_device_train_batch_size 2",
    "study": "--study {study}",
    "study_report": "--study {study} --output_dir {out}",
    "train_kd": "--dataset_name {plus} --source_name_or_path {images} --model_name_or_path test_resnet --use_cpu True "
    "--output_dir {out}",
    "verify": "--dataset_name {plus} --device cpu --output_json {out}/v.json",
}


def save_student(folder, architecture="test_resnet", names=NAMES[:C]):
    torch.manual_seed(0)
    model = create_student(architecture, len(names), SIZE, names)
    model.save_pretrained(folder, state_dict=saved_weights(model, model.state_dict()))


def save_native(folder):
    """A network without a preprocessor file."""
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    labels = {"id2label": dict(enumerate(NAMES[:C])), "label2id": {name: i for i, name in enumerate(NAMES[:C])}}
    ViTForImageClassification(ViTConfig(image_size=SIZE, patch_size=16, **shape, **labels)).save_pretrained(folder)


def save_images(folder, labels=C, **splits):
    folder.mkdir()
    for split, rows in (splits or {"train": 16, "test": 8}).items():
        tiny_dataset(rows, labels=labels).to_parquet(folder / f"{split}-00000-of-00001.parquet")


@pytest.fixture(scope="module")
def there(tmp_path_factory):
    """Names of what the commands use, and of what is wrong with them."""
    folder = tmp_path_factory.mktemp("zoo")
    made = {name: folder / name for name in ("student", "native", "images", "plus", "scenes", "runs", "empty", "file")}
    save_student(made["student"])
    save_native(made["native"])
    save_images(made["images"])
    teacher = load_teacher(str(made["student"]))
    reinforced_rows(
        tiny_dataset(16, labels=C),
        teacher,
        load_policy("rrc", SIZE),
        made["plus"],
        num_samples=1,
        top_k=2,
        source_name=str(made["images"]),
    )
    write_scenes(made["scenes"], "train", 4, size=64)
    for run in ("a", "b"):
        write_evaluation(made["runs"] / run)
    made["empty"].mkdir()
    made["file"].write_text("no folder")

    bad = {name: folder / name for name in ("cut", "lfs", "broken", "lacking", "other", "nolabels", "plus2")}
    for name in ("cut", "lfs", "broken", "lacking"):
        save_student(bad[name])
    weights = bad["cut"] / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    (bad["lfs"] / "model.safetensors").write_bytes(LFS)
    (bad["broken"] / "config.json").write_text('{"model_type": ')
    state = load_file(bad["lacking"] / "model.safetensors")
    save_file(
        {n: v for n, v in state.items() if "layer2" not in n}, bad["lacking"] / "model.safetensors", {"format": "pt"}
    )
    save_images(bad["other"], labels=C - 1)
    save_images(bad["nolabels"], labels=0)
    documents = {
        "broken.yaml": "learning_rate: [1",
        "list.yaml": "- 1\n- 2\n",
        "unknown.yaml": "learning_rat: 1\n",
        "study.yaml": "output_dir: outputs/x\nsizes: {cpu: {}}\nstages: {a: {recipe: compare.py, flags: {seed: 1}}}\n",
        "stage.yaml": "output_dir: outputs/x\nsizes: {cpu: {}}\nstages: {a: {recipee: compare.py}}\n",
        "sizeless.yaml": "output_dir: outputs/x\nstages: {}\n",
        "broken.json": '{"images": [',
        "rows.json": '{"0": 1}',
        "coco.json": json.dumps(
            {"images": [{"id": 1, "file_name": "no.png", "width": 8, "height": 8}], "annotations": []}
        ),
    }
    for name, text in documents.items():
        (folder / name).write_text(text)
    np.save(folder / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    return {**made, **bad, "study": folder / "study.yaml", "folder": folder}


@pytest.fixture
def refused(there, tmp_path, monkeypatch):
    """`refused(recipe, command line)`: the line that ends it."""
    monkeypatch.syspath_prepend(str(RECIPES))
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "out"

    def refused(recipe, words):
        argv = [word.format(**there, out=out) for word in shlex.split(words)]
        monkeypatch.setattr(sys, "argv", [f"{recipe}.py", *argv])
        with pytest.raises(SystemExit) as stop:
            load_recipe(recipe).main()
            pytest.fail(f"{' '.join(argv)} is taken")
        text = stop.value.code
        assert isinstance(text, str), f"exit code {text}"  # which Python prints, and exits with 1
        assert text.startswith("error: ") and "\n" not in text and "Traceback" not in text, text
        assert 20 < len(text) < 1500, text
        left = [path for path in tmp_path.rglob("*") if path.is_file() and path.name != "run.json"]
        assert not left, f"left behind: {left}"
        return text

    return refused


def with_flags(recipe, changes):
    """The right command line of a recipe, with some flags changed."""
    words, given = shlex.split(RIGHT[recipe]), shlex.split(changes)
    flags, last = {}, ""
    for word in [*words, *given]:
        if word.startswith("--"):
            flags[last := word] = []
        else:
            flags[last].append(word)
    return " ".join([name + " " + " ".join(map(shlex.quote, values)) for name, values in flags.items()])


# -- mistakes that every recipe may meet --------------------------------------------------------------------------


def own_fields(recipe):
    module = load_recipe(recipe)
    classes = [c for c in vars(module).values() if isinstance(c, type) and dataclasses.is_dataclass(c)]
    names = {"DataArguments", "ModelArguments", "BackboneArguments"}
    classes = [
        c
        for c in classes
        if c.__name__.endswith("Arguments") and (c.__module__ == module.__name__ or c.__name__ in names)
    ]
    return {field.name: field for cls in classes for field in dataclasses.fields(cls)}


def common_mistakes(recipe):
    yield "", "required" if recipe not in ("demo", "study_report") else None
    yield f"{RIGHT[recipe]} --nonsense 3", "There is no flag --nonsense"
    yield f"{RIGHT[recipe]} --seeed 3", "no flag --seeed"
    yield "{folder}/nothing.yaml", "There is no file"
    yield "{folder}/broken.yaml", "broken.yaml"
    yield "{folder}/list.yaml", "must hold flags"
    yield "{folder}/unknown.yaml", "no flag --learning_rat in"
    yield f"{RIGHT[recipe]} --log_level loud", "--log_level"
    for name, field in own_fields(recipe).items():
        kind = str(field.type)
        if "int" in kind or "float" in kind:
            yield with_flags(recipe, f"--{name} many"), f"--{name}"
        if "bool" in kind:
            yield with_flags(recipe, f"--{name} perhaps"), None
        may_be_empty = name == "label_column_name" or field.default == ""
        if (kind.startswith("str") or field.type is str) and not may_be_empty:
            yield with_flags(recipe, f"--{name} ''"), f"--{name} is empty"
        if name in load_recipe("arguments").check_values.__globals__["_LEAST"]:
            yield with_flags(recipe, f"--{name} -1"), f"--{name} must be at least"
    if "output_dir" in RIGHT[recipe]:
        yield with_flags(recipe, "--output_dir {file}"), "--output_dir"
        yield with_flags(recipe, "--output_dir {file}/below"), "no folder to write to"
    if "output_json" in own_fields(recipe):
        yield with_flags(recipe, "--output_json {file}/below.json"), "--output_json"
        yield with_flags(recipe, "--output_json {empty}"), "is a folder; name a file"
    if "device" in own_fields(recipe):
        yield with_flags(recipe, "--device nonsense"), "no device 'nonsense'"
        if not torch.cuda.is_available():
            yield with_flags(recipe, "--device cuda"), "There is no device 'cuda' here"


@pytest.mark.parametrize("recipe", RIGHT)
def test_mistakes_of_every_recipe(recipe, refused):
    for words, expected in common_mistakes(recipe):
        if expected is None and not words:
            continue
        text = refused(recipe, words)
        assert (expected or "") in text, f"{words}: {text}"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
@pytest.mark.parametrize("recipe", [name for name, words in RIGHT.items() if "output_dir" in words])
def test_folders_that_nobody_may_write_to(recipe, refused, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    assert "no folder to write to" in refused(recipe, with_flags(recipe, f"--output_dir {tmp_path}/locked/out"))


# -- mistakes of each -----------------------------------------------------------------------------------------------

QUICK = [
    ("compare", "--runs {empty} {runs}/a", "empty"),
    ("compare", "--runs nothing", "nothing"),
    ("demo", "--student resnet51", "resnet51"),
    ("demo", "--train_size 5000", "5000"),
    ("detect", "--architecture magic", "magic"),
    ("detect", "--detector_args [1]", "--detector_args must be an object in JSON"),
    ("finetune", "--model_name_or_path resnet18", "an architecture without weights"),
    ("finetune", "--model_name_or_path {lfs}", "git-lfs"),
    ("import_ml_dr", "--id_map {folder}/nothing.json", "nothing.json"),
    ("inspect_dataset", "--dataset_name {images}", "images"),
    ("linear_probe", "--model_name_or_path {native}", "preprocessor_config.json"),
    ("linear_probe", "--model_name_or_path {cut}", "cut"),
    ("publish", "--folder {images}", "images"),
    ("publish", "--repo_id 'a/b/c'", "a/b/c"),
    ("subset", "--share 2", "between 0 and 1"),
    ("subset", "--dataset_name {nolabels}", "nolabels"),
    ("subset", "--output_dir {file}", "file"),
    ("segment", "--num_labels 300", "300"),
    ("segment", "--eval_images {empty}", "named together"),
    ("study", "--size huge", "huge"),
    ("study", "--study {folder}/nothing.yaml", "nothing.yaml"),
    ("study_report", "--results {folder}/x.json", "--study FILE or --results FILE"),
    ("train_kd", "--model_args {{not", "--model_args must be an object in JSON"),
    ("train_kd", "--model_args '[1]'", "--model_args must be an object in JSON"),
    ("train_kd", "--model_args '{{\"nonsense\": 1}}'", "--model_args"),
    ("train_kd", "--model_name_or_path vit_tiny_patch16_224", "cannot take views of 32x32"),
    ("train_kd", "--model_args '{{\"in_chans\": 1}}'", "three channels"),
    ("train_kd", "--resume_from_checkpoint True", "has no checkpoint"),
    ("train_kd", "--resume_from_checkpoint {empty}", "is no folder of a checkpoint"),
    ("train_kd", "--eval_split test --eval_dataset_name {other}", "has 4 classes"),
    ("train_kd", "--method online --teacher_name_or_path {lacking}", "lacking"),
    ("verify", "--teacher_name_or_path {student} {student}", "names 2"),
    ("verify", "--dataset_name {images}", "images"),
]
SLOW = [
    ("compare", "--runs {runs}/a a=", "a="),
    ("compare", "--runs {file}", "file"),
    ("compare", "--runs {runs}/a --num_resamples 0", "--num_resamples"),
    ("demo", "--teacher nothing", "nothing"),
    ("detect", "--train_annotations {folder}/nothing.json", "nothing.json"),
    ("detect", "--train_annotations {folder}/broken.json", "broken.json"),
    ("detect", "--train_annotations {folder}/rows.json", "rows.json"),
    ("detect", "--train_annotations {folder}/coco.json", ""),
    ("detect", "--train_images {empty}", ""),
    ("detect", "--model_name_or_path {cut}", "cut"),
    ("detect", "--model_name_or_path {lacking}", "lacking"),
    ("detect", "--model_name_or_path {broken}", "broken"),
    ("detect", "--model_name_or_path {native}", ""),
    ("detect", "--model_name_or_path resnet51", "resnet51"),
    ("detect", "--model_args '{{\"nonsense\": 1}}'", "--model_args"),
    ("detect", "--detector_args '{{\"nonsense\": 1}}'", "nonsense"),
    ("detect", "--lr_milestones 0.9 0.5", "lr_milestones"),
    ("detect", "--timm_optimizer magic", "magic"),
    ("detect", "--max_size 1 --min_size 800", "--max_size"),
    *(
        ("finetune", f"--model_name_or_path {{{name}}}", name)
        for name in ("cut", "broken", "lacking", "empty", "file")
    ),
    ("finetune", "--learning_rates -1", "--learning_rates must be at least 0"),
    ("finetune", "--policy magic", "magic"),
    ("finetune", "--eval_split validation", "validation"),
    ("finetune", "--dataset_name {nolabels}", "nolabels"),
    ("finetune", "--dataset_name owner/nothing", "owner/nothing"),
    ("import_ml_dr", "--archive {file}", "file"),
    ("import_ml_dr", "--archive nothing.tar", "nothing.tar"),
    ("import_ml_dr", "--id_map {folder}/rows.json", "rows.json"),
    ("import_ml_dr", "--id_map {folder}/broken.json", "broken.json"),
    ("import_ml_dr", "--id_map {folder}/objects.npy", "objects.npy"),
    ("import_ml_dr", "--source_name_or_path {empty}", "empty"),
    ("import_ml_dr", "--split validation", "validation"),
    ("inspect_dataset", "--dataset_name {empty}", "empty"),
    ("inspect_dataset", "--dataset_name nothing", "nothing"),
    ("inspect_dataset", "--dataset_config_name magic", "'rrc'"),
    ("inspect_dataset", "--dataset_name {images} --verify True", "images"),
    *(
        ("linear_probe", f"--model_name_or_path {{{name}}}", name)
        for name in ("lfs", "broken", "lacking", "empty", "file")
    ),
    ("linear_probe", "--dataset_name {nolabels}", "nolabels"),
    ("linear_probe", "--dataset_name {empty}", "empty"),
    ("linear_probe", "--strengths 0", "--strengths"),
    ("linear_probe", "--train_split validation", "validation"),
    ("linear_probe", "--crop_pct 0", "--crop_pct"),
    ("linear_probe", "--label_column_name picture", "picture"),
    ("linear_probe", "--max_train_samples 1", ""),
    ("publish", "--folder nothing", "nothing"),
    ("publish", "--config_name magic", "magic"),
    ("publish", "--folder {file}", "file"),
    ("segment", "--train_masks {empty}", ""),
    ("segment", "--train_images {empty}", ""),
    ("segment", "--train_masks nothing", "nothing"),
    ("segment", "--head magic", "magic"),
    ("segment", "--num_labels 2", ""),
    ("segment", "--per_device_train_batch_size 1", "--per_device_train_batch_size"),
    ("segment", "--class_names a b", "--class_names"),
    ("segment", "--model_name_or_path {lfs}", "lfs"),
    ("study", "--study {folder}/stage.yaml", "recipee"),
    ("study", "--study {folder}/sizeless.yaml", "lacks sizes"),
    ("study", "--study {folder}/broken.yaml", "broken.yaml"),
    ("study", "--study {folder}/list.yaml", "is no study"),
    ("study", "--stages magic", "magic"),
    ("study_report", "--study {folder}/nothing.yaml", "nothing.yaml"),
    ("study_report", "--study {folder}/broken.yaml", "broken.yaml"),
    *(("train_kd", f"--model_name_or_path {{{name}}}", name) for name in ("cut", "lfs", "broken", "lacking", "empty")),
    ("train_kd", "--model_name_or_path {native} --model_args '{{\"drop_path_rate\": 1}}'", "--model_args"),
    ("train_kd", "--method online", "needs a teacher"),
    ("train_kd", "--method online --teacher_name_or_path {student} --class_map [0]", "class_map"),
    ("train_kd", "--method online --teacher_name_or_path {student} --teacher_dtype float8", "float8"),
    ("train_kd", "--timm_optimizer magic", "magic"),
    ("train_kd", "--timm_scheduler cosine", "--lr_scheduler_type"),
    ("train_kd", "--optim magic", "magic"),
    ("train_kd", "--lr_scheduler_type magic", "magic"),
    ("train_kd", "--selection magic", "magic"),
    ("train_kd", "--plain_fraction 2", "plain_fraction"),
    ("train_kd", "--temperature 0", "temperature"),
    ("train_kd", "--hard_label_weight 2", "hard_label_weight"),
    ("train_kd", "--eval_strategy epoch", ""),
    ("train_kd", "--ema_decay 1", "ema_decay"),
    ("train_kd", "--resume_from_checkpoint False", "is no folder of a checkpoint"),
    ("train_kd", "--repeated_augmentation 3", "repeated_augmentation"),
    ("train_kd", "--source_name_or_path {other}", ""),
    ("train_kd", "--source_name_or_path {empty}", "empty"),
    ("train_kd", "--dataset_name {empty}", "empty"),
    ("verify", "--teacher_name_or_path {native}", ""),
    ("verify", "--teacher_name_or_path {cut}", "cut"),
    ("verify", "--source_name_or_path {other}", ""),
    ("verify", "--dataset_name {empty}", "empty"),
]


@pytest.mark.parametrize(("recipe", "changes", "expected"), QUICK, ids=[f"{r} {c}" for r, c, _ in QUICK])
def test_mistakes_end_in_one_line(recipe, changes, expected, refused):
    if recipe == "detect":
        pytest.importorskip("pycocotools", reason="pip install 'hf-reinforce[transfer]'")
    assert expected in refused(recipe, with_flags(recipe, changes))


@pytest.mark.slow
@pytest.mark.parametrize(("recipe", "changes", "expected"), SLOW, ids=[f"{r} {c}" for r, c, _ in SLOW])
def test_further_mistakes_end_in_one_line(recipe, changes, expected, refused):
    if recipe == "detect":
        pytest.importorskip("pycocotools", reason="pip install 'hf-reinforce[transfer]'")
    assert expected in refused(recipe, with_flags(recipe, changes))


def test_every_recipe_is_here():
    with_main = {path.stem for path in RECIPES.glob("*.py") if "def main(" in path.read_text(encoding="utf-8")}
    assert set(RIGHT) == with_main
    assert len(QUICK) + len(SLOW) > 100 and len(SHAPES) == 3
