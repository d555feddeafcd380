"""The documents' code runs, and their commands name flags that exist."""

import re
import shlex
from pathlib import Path

import pytest
from recipe_modules import load_recipe
from tiny import tiny_dataset, tiny_teacher

from hf_reinforce import load_policy, reinforce

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(path, language):
    return re.findall(rf"```{language}\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL)


def commands(path):
    for block in blocks(path, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if any(word.startswith("recipes/") and word.endswith(".py") for word in words):
                yield words


def test_python_blocks_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    policy = load_policy(str(ROOT / "recipes" / "digits_plus" / "policy.yaml"))
    reinforce(
        tiny_dataset(num_rows=20, labels=10),
        tiny_teacher(num_classes=10, image_size=32),
        policy,
        "outputs/demo/digits-plus",
        num_samples=2,
        embed_images=True,
    )
    namespace = {}
    exec(
        blocks(ROOT / "docs" / "publish.md", "python")[0], namespace
    )  # the card, by which the README opens the folder
    for path, count in ((ROOT / "README.md", 2), (ROOT / "docs" / "guide.md", 1)):
        code = blocks(path, "python")
        assert len(code) == count
        for block in code:
            exec(compile(block, path.name, "exec"), namespace)
    assert len(namespace["reinforced"]) == 20
    assert namespace["batch"]["labels"].shape == (4,), "20 rows in batches of 16"
    assert (tmp_path / "outputs" / "student").is_dir()


@pytest.mark.parametrize("path", [path for path in DOCUMENTS if list(commands(path))], ids=lambda path: path.name)
def test_commands_name_flags_that_exist(path):
    from transformers import HfArgumentParser

    arguments = load_recipe("arguments")
    for words in commands(path):
        index = next(i for i, word in enumerate(words) if word.startswith("recipes/") and word.endswith(".py"))
        recipe = load_recipe(Path(words[index]).stem)
        classes = [cls for name, cls in vars(recipe).items() if name.endswith("Arguments")]
        classes += getattr(recipe, "training_classes", list)()
        parser = HfArgumentParser(classes, allow_abbrev=False)
        flags = arguments.with_first_flag(words[index + 1 :], getattr(recipe, "FIRST", None))
        if flags and flags[0].endswith(".yaml"):
            flags = [*arguments._flags_of_file(str(ROOT / flags[0])), *flags[1:]]
        parsed, unknown = parser.parse_known_args([flag for flag in flags if flag != "..."])
        assert not unknown, f"{path.name}: {' '.join(words)}"
        assert parsed


def test_policy_of_the_guide_is_the_one_in_the_recipes():
    import yaml

    (block,) = blocks(ROOT / "docs" / "guide.md", "yaml")
    text = (ROOT / "recipes" / "digits_plus" / "policy.yaml").read_text(encoding="utf-8")
    assert yaml.safe_load(block) == yaml.safe_load(text)


@pytest.mark.slow
def test_the_demo_makes_what_the_readme_opens(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = "--train_size 20 --num_samples 2 --num_epochs 1 --teacher_epochs 1 --num_seeds 1"
    monkeypatch.setattr("sys.argv", ["demo.py", *flags.split()])
    load_recipe("demo").main()
    namespace = {}
    for block in blocks(ROOT / "README.md", "python"):
        exec(compile(block, "README.md", "exec"), namespace)
    assert len(namespace["reinforced"]) == 20
    assert (tmp_path / "outputs/demo/digits-plus/digits/preview.png").exists()
