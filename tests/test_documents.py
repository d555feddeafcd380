"""The documents' code runs, and their commands name flags that exist."""

import re
import shlex
from pathlib import Path

import pytest
import yaml
from recipe_modules import flag_classes, load_recipe
from tiny import tiny_dataset, tiny_teacher
from transformers import HfArgumentParser

from hf_reinforce import load_policy, reinforce

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(path, language):
    return re.findall(rf"```{language}\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL)


def commands(path):
    """The name and the arguments of every recipe that a document runs."""
    for block in blocks(path, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            for place, word in enumerate(words):
                if word.startswith("recipes/") and word.endswith(".py"):
                    yield Path(word).stem, words[place + 1 :]


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
def test_commands_name_flags_that_exist(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    for name, words in commands(path):
        words = [word for word in words if word != "..."]
        parser = HfArgumentParser(flag_classes(name), allow_abbrev=False)
        first = getattr(load_recipe(name), "FIRST", None)
        words = [f"--{first}", *words] if first and not words[0].startswith("-") else words
        _, unknown = parser.parse_known_args(load_recipe("arguments").with_file(words))
        assert not unknown, f"{path.name}: {name} {' '.join(words)}"


def test_readme_and_guide_reinforce_as_the_yaml_file_does():
    values = yaml.safe_load((ROOT / "recipes/cifar100_plus/reinforce.yaml").read_text(encoding="utf-8"))
    for document in ("README.md", "docs/guide.md"):
        words = next(words for name, words in commands(ROOT / document) if name == "reinforce")
        flags = {flag[2:]: value for flag, value in zip(words[::2], words[1::2], strict=True)}
        given = {key: values[key] for key in flags}
        assert flags == {key: str(value[0] if isinstance(value, list) else value) for key, value in given.items()}


def test_policy_of_the_guide_is_the_one_in_the_recipes():
    (block,) = blocks(ROOT / "docs" / "guide.md", "yaml")
    text = (ROOT / "recipes" / "digits_plus" / "policy.yaml").read_text(encoding="utf-8")
    assert yaml.safe_load(block) == yaml.safe_load(text)


@pytest.mark.slow
def test_the_demo_makes_what_the_readme_opens(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = "--num_samples 2 --num_epochs 1 --teacher_epochs 1 --num_seeds 1"
    monkeypatch.setattr("sys.argv", ["demo.py", *flags.split()])
    load_recipe("demo").main()
    namespace = {}
    for block in blocks(ROOT / "README.md", "python"):
        exec(compile(block, "README.md", "exec"), namespace)
    assert len(namespace["reinforced"]) == 50
    assert (tmp_path / "outputs/demo/digits-plus/digits/preview.png").exists()
