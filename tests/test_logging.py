"""What the recipes log, and which process of several shows it."""

import os
import subprocess
import sys

import pytest
from recipe_modules import RECIPES

SCRIPT = """
import dataclasses, logging, sys
sys.path.insert(0, {recipes!r})
from arguments import one_line_errors, option, parse

@dataclasses.dataclass
class Flags:
    size: int = option("A size.", 3)

@one_line_errors
def main():
    further = {further}
    (*_, values) = parse("Says things.", [] if further else [Flags], lambda: further)
    import datasets, huggingface_hub, tqdm.auto, transformers
    for name in ("hf_reinforce.anything", "elsewhere", "datasets.load", "transformers.trainer", "huggingface_hub.api"):
        for level in ("info", "warning"):
            getattr(logging.getLogger(name), level)("%s of %s", level, name)
    datasets.Dataset.from_dict({{"a": [1]}}).map(lambda row: row, desc="mapping")
    list(tqdm.auto.tqdm([1], desc="own bar"))
    list(huggingface_hub.utils.tqdm([1], desc="download"))
    raise ValueError("the end")

main()
"""
PROJECT = "hf_reinforce.anything"
LIBRARIES = ("elsewhere", "datasets.load", "transformers.trainer", "huggingface_hub.api")


def said(tmp_path, *flags, rank=0, world=1, further="[]"):
    """Lines on stderr of a recipe that is one process of several."""
    script = tmp_path / "says.py"
    script.write_text(SCRIPT.format(recipes=str(RECIPES), further=further))
    environment = {**os.environ, "RANK": str(rank), "WORLD_SIZE": str(world)}
    result = subprocess.run([sys.executable, script, *flags], capture_output=True, text=True, env=environment)
    assert result.returncode == 1 and not result.stdout
    return result.stderr.replace("\r", "\n").splitlines()


def test_the_main_process_informs_and_all_warn_with_their_rank(tmp_path):
    lines = said(tmp_path, rank=0, world=2)
    expected = [f"[RANK 0] INFO:{PROJECT}: info of {PROJECT}"]
    expected += [f"[RANK 0] WARNING:{name}: warning of {name}" for name in (PROJECT, *LIBRARIES)]
    assert [line for line in lines if " of " in line and "%" not in line] == expected
    assert all(any(line.startswith(bar) for line in lines) for bar in ("mapping", "own bar", "download"))
    assert lines[-1] == "[RANK 0] error: the end"


def test_other_processes_show_no_progress(tmp_path):
    lines = said(tmp_path, rank=1, world=2)
    expected = [f"[RANK 1] WARNING:{name}: warning of {name}" for name in (PROJECT, *LIBRARIES)]
    assert lines == [*expected, "[RANK 1] error: the end"]


@pytest.mark.slow
@pytest.mark.parametrize("further", ["[]", "[__import__('hf_reinforce').KDTrainingArguments]"])
def test_a_level_is_that_of_the_libraries_too(tmp_path, further):
    flags = ["--output_dir", str(tmp_path)] if further != "[]" else []
    lines = said(tmp_path, *flags, "--log_level", "info", further=further)
    assert [line for line in lines if line.startswith("INFO:") and " of " in line] == [
        f"INFO:{name}: info of {name}" for name in (PROJECT, *LIBRARIES)
    ]
    lines = said(tmp_path, *flags, "--log_level", "error", further=further)
    assert not [line for line in lines if " of " in line and "%" not in line]
