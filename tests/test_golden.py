"""A reinforced dataset that an earlier version wrote, committed beside this file: it stays readable and replays."""

import json
import os
import subprocess
import sys

import pytest
import torch
from datasets import load_dataset
from golden.make import CONFIGS, HERE, NUM_SAMPLES, contents, source

from hf_reinforce import load_reinforced

NEAR = 1  # levels of 255 by which views may differ between instruction sets


@pytest.mark.parametrize("name", CONFIGS)
def test_every_view_and_target_comes_out_as_when_it_was_written(name):
    stored = json.loads((HERE / f"{name}.json").read_text())
    found = contents(load_reinforced(str(HERE / "plus"), name, source=source()))
    assert json.loads(json.dumps(found)) == stored
    assert len(found) == 10 * NUM_SAMPLES and len({item["view"] for item in found}) == len(found)


@pytest.mark.parametrize("name", CONFIGS)
def test_it_opens_without_this_package(name):
    rows = load_dataset(str(HERE / "plus"), name, split="train")
    stored = json.loads((HERE / f"{name}.json").read_text())
    for row, slot in ((0, 0), (9, NUM_SAMPLES - 1)):
        target = rows[row]["teacher_logits"][slot]
        of_file = stored[row * NUM_SAMPLES + slot]["target"]
        assert (target["label"], target["value"]) == (of_file["target_label"], of_file["target_value"])


def views():
    dataset = load_reinforced(str(HERE / "plus"), "rrc", source=source(), accept_pixel_mismatch=True)
    return torch.stack([dataset.view(row, slot) for row in range(10) for slot in range(NUM_SAMPLES)])


def test_views_without_vector_instructions_differ_by_no_more_than_is_said(tmp_path):
    program = "import sys, torch; from test_golden import views; torch.save(views(), sys.argv[1])"
    path = tmp_path / "views.pt"
    env = os.environ | {"ATEN_CPU_CAPABILITY": "default", "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", program, str(path)], env=env, check=True, capture_output=True)
    difference = (torch.load(path, weights_only=True).int() - views().int()).abs()
    assert difference.max() <= NEAR
