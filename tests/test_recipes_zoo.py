"""Mistakes with every recipe: each ends in one line and exit code 1, and nothing half-written is left."""

import dataclasses
import os
import shlex
import sys

import numpy as np
import pytest
import torch
from recipe_modules import RECIPES, flag_classes, load_recipe
from safetensors.torch import load_file, save_file
from scenes import write_scenes
from simulated import write_evaluation
from tiny import NAMES, reinforced_rows, tiny_dataset
from transformers import ViTConfig, ViTForImageClassification

from hf_reinforce import load_policy, load_teacher
from hf_reinforce.models.students import create_student, saved_weights

C, SIZE = 5, 32
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2\n"

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


def save_student(folder):
    torch.manual_seed(0)
    model = create_student("test_resnet", C, SIZE, NAMES[:C])
    model.save_pretrained(folder, state_dict=saved_weights(model, model.state_dict()))


def save_native(folder):
    """A network without a preprocessor file."""
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    labels = {"id2label": dict(enumerate(NAMES[:C])), "label2id": {name: i for i, name in enumerate(NAMES[:C])}}
    ViTForImageClassification(ViTConfig(image_size=SIZE, patch_size=16, **shape, **labels)).save_pretrained(folder)


def save_images(folder, labels=C):
    folder.mkdir()
    for split, rows in (("train", 16), ("test", 8)):
        tiny_dataset(rows, labels=labels).to_parquet(folder / f"{split}-00000-of-00001.parquet")


@pytest.fixture(scope="module")
def there(tmp_path_factory):
    """Names of what the commands use, and of what is wrong with them."""
    folder = tmp_path_factory.mktemp("zoo")
    bad, good = ("cut", "lfs", "broken", "lacking", "other", "nolabels", "empty", "file"), ("student", "native")
    made = {name: folder / name for name in (*good, "images", "plus", "scenes", "runs", *bad)}
    for name in ("student", "cut", "lfs", "broken", "lacking"):
        save_student(made[name])
    weights = {name: made[name] / "model.safetensors" for name in bad}
    weights["cut"].write_bytes(weights["cut"].read_bytes()[:1000])
    weights["lfs"].write_bytes(LFS)
    (made["broken"] / "config.json").write_text('{"model_type": ')
    some = {name: value for name, value in load_file(weights["lacking"]).items() if "layer2" not in name}
    save_file(some, weights["lacking"], {"format": "pt"})
    save_native(made["native"])
    for name, labels in (("images", C), ("other", C - 1), ("nolabels", 0)):
        save_images(made[name], labels)
    teacher, policy = load_teacher(str(made["student"])), load_policy("rrc", SIZE)
    options = {"num_samples": 1, "top_k": 2, "source_name": str(made["images"])}
    reinforced_rows(tiny_dataset(16, labels=C), teacher, policy, made["plus"], **options)
    write_scenes(made["scenes"], "train", 4, size=64)
    for run in ("a", "b"):
        write_evaluation(made["runs"] / run)
    made["empty"].mkdir()
    made["file"].write_text("no folder")
    documents = {
        "broken.yaml": "learning_rate: [1",
        "list.yaml": "- 1\n- 2\n",
        "unknown.yaml": "learning_rat: 1\n",
        "study.yaml": "output_dir: outputs/x\nsizes: {cpu: {}}\nstages: {a: {recipe: compare.py, flags: {seed: 1}}}\n",
        "stage.yaml": "output_dir: outputs/x\nsizes: {cpu: {}}\nstages: {a: {recipee: compare.py}}\n",
        "sizeless.yaml": "output_dir: outputs/x\nstages: {}\n",
        "broken.json": '{"images": [',
        "rows.json": '{"0": 1}',
        "coco.json": '{"images": [{"id": 1, "file_name": "no.png"}], "annotations": []}',
        "no_image.json": '{"images": [{"id": 1, "file_name": "no.png"}], "categories": [{"id": 7, "name": "dot"}], '
        '"annotations": [{"image_id": 1, "category_id": 7, "bbox": [0, 0, 8, 8]}]}',
    }
    for name, text in documents.items():
        (folder / name).write_text(text)
    np.save(folder / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    return {**made, "study": folder / "study.yaml", "folder": folder}


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
    classes = [cls for cls in flag_classes(recipe) if cls.__module__.startswith(("recipe_", "train_kd", "detect"))]
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
        if name in load_recipe("arguments").LEAST:
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

# recipe | changed flags | words of the line; those of SLOW run with the slow tests
QUICK = """
compare | --runs {empty} {runs}/a | empty
compare | --runs nothing | nothing
detect | --architecture magic | magic
detect | --detector_args [1] | --detector_args must be an object in JSON
finetune | --model_name_or_path resnet18 | an architecture without weights
finetune | --model_name_or_path {lfs} | git-lfs
import_ml_dr | --id_map {folder}/nothing.json | nothing.json
inspect_dataset | --dataset_name {images} | images
linear_probe | --model_name_or_path {native} | preprocessor_config.json
linear_probe | --model_name_or_path {cut} | cut
publish | --folder {images} | images
publish | --repo_id 'a/b/c' | a/b/c
subset | --share 2 | between 0 and 1
subset | --dataset_name {nolabels} | nolabels
subset | --output_dir {file} | file
segment | --num_labels 300 | 300
segment | --eval_images {empty} | named together
study | --size huge | huge
study | --study {folder}/nothing.yaml | nothing.yaml
study_report | --results {folder}/x.json | --study FILE or --results FILE
evaluate | --model_name_or_path owner/nothing | There is no image classifier 'owner/nothing'
evaluate | --dataset_name owner/nothing | There is no dataset 'owner/nothing'
evaluate | --class_map '[0]' | The class map has 1 classes, but the dataset has 5 classes; mend
reinforce | --top_k 9 | top_k must lie between 1 and the 5 classes, not 9
reinforce | --policy magic | Unknown policy 'magic'
reinforce | --image_column_name picture | no image column 'picture'; its columns are ['image', 'label']
reinforce | --teacher_name_or_path owner/nothing | There is no image classifier 'owner/nothing'
reinforce | --split validation | validation
reinforce | --class_map '[0, 1, 9, 3, 4]' | class_map
reinforce | --class_map '{{not' | class_map
train_kd | --method magic | method must be one of reinforced, online, plain, not 'magic'
train_kd | --model_name_or_path resnet51 | 'resnet51' is neither a timm architecture
train_kd | --method online | needs a teacher
train_kd | --dataset_config_name randaug | has the configurations ['rrc']
train_kd | --selection twice | selection must be 'cycle' or 'random'
train_kd | --eval_split validation | validation
train_kd | --source_name_or_path owner/nothing | There is no dataset 'owner/nothing'
train_kd | --dataset_name {images} | is not a reinforced dataset; reinforce it with recipes/reinforce.py, or choose
train_kd | --dataset_name {images} --method plain | --policy
train_kd | --model_args {{not | --model_args must be an object in JSON
train_kd | --model_args '{{"nonsense": 1}}' | --model_args
train_kd | --model_name_or_path vit_tiny_patch16_224 | cannot take views of 32x32
train_kd | --model_args '{{"in_chans": 1}}' | three channels
train_kd | --resume_from_checkpoint True | has no checkpoint
train_kd | --resume_from_checkpoint {empty} | is no folder of a checkpoint
train_kd | --eval_split test --eval_dataset_name {other} | has 4 classes
train_kd | --method online --teacher_name_or_path {lacking} | lacking
verify | --teacher_name_or_path {student} {student} | names 2
verify | --dataset_name {images} | images
"""
SLOW = """
compare | --runs {runs}/a a= | a=
compare | --runs {file} | file
compare | --runs {runs}/a --num_resamples 0 | --num_resamples
detect | --train_annotations {folder}/broken.json | broken.json
detect | --train_annotations {folder}/rows.json | rows.json
detect | --train_annotations {folder}/coco.json | annotations of boxes and categories (KeyError: 'categories')
detect | --train_annotations {folder}/no_image.json | no.png
detect | --train_images {empty} |
detect | --model_args '{{"nonsense": 1}}' | --model_args
detect | --detector_args '{{"nonsense": 1}}' | nonsense
detect | --lr_milestones 0.9 0.5 | lr_milestones
detect | --max_size 1 --min_size 800 | --max_size
finetune | --model_name_or_path {broken} | broken
finetune | --learning_rates -1 | --learning_rates must be at least 0
import_ml_dr | --archive {file} | file
import_ml_dr | --id_map {folder}/rows.json | rows.json
import_ml_dr | --id_map {folder}/objects.npy | objects.npy
import_ml_dr | --source_name_or_path {empty} | empty
inspect_dataset | --dataset_config_name magic | 'rrc'
linear_probe | --dataset_name {nolabels} | nolabels
linear_probe | --strengths 0 | --strengths
linear_probe | --crop_pct 0 | --crop_pct
linear_probe | --label_column_name picture | picture
linear_probe | --max_train_samples 1 |
publish | --config_name magic | magic
segment | --train_masks {empty} |
segment | --head magic | magic
segment | --num_labels 2 |
study | --study {folder}/stage.yaml | recipee
study | --study {folder}/sizeless.yaml | lacks sizes
study | --study {folder}/list.yaml | is no study
study_report | --study {folder}/nothing.yaml | nothing.yaml
train_kd | --model_name_or_path {native} --model_args '{{"drop_path_rate": 1}}' | --model_args
train_kd | --method online --teacher_name_or_path {student} --class_map [0] | class_map
train_kd | --method online --teacher_name_or_path {student} --teacher_dtype float8 | float8
train_kd | --timm_optimizer magic | magic
train_kd | --optim magic | magic
train_kd | --lr_scheduler_type magic | magic
train_kd | --plain_fraction 2 | plain_fraction
train_kd | --temperature 0 | temperature
train_kd | --hard_label_weight 2 | hard_label_weight
train_kd | --eval_strategy epoch |
train_kd | --ema_decay 1 | ema_decay
train_kd | --repeated_augmentation 3 | repeated_augmentation
train_kd | --source_name_or_path {other} |
train_kd | --dataset_name {empty} | empty
verify | --source_name_or_path {other} |
"""


def rows(table, *marks):
    for line in table.strip().splitlines():
        recipe, changes, expected = (part.strip() for part in line.split("|"))
        yield pytest.param(recipe, changes, expected, marks=marks, id=f"{recipe} {changes}")


@pytest.mark.parametrize(("recipe", "changes", "expected"), [*rows(QUICK), *rows(SLOW, pytest.mark.slow)])
def test_mistakes_end_in_one_line(recipe, changes, expected, refused):
    if recipe == "detect":
        pytest.importorskip("pycocotools", reason="pip install 'hf-reinforce[transfer]'")
    assert expected in refused(recipe, with_flags(recipe, changes))


def test_every_recipe_is_here():
    assert set(RIGHT) == {path.stem for path in RECIPES.glob("*.py") if "def main(" in path.read_text("utf-8")}
