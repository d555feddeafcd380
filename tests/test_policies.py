"""Policies: ordered operations read from dicts and YAML, and the views and mixed views that they make."""

import json
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch
import yaml
from datasets import Features
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms.v2 import functional as F

from hf_reinforce import images
from hf_reinforce.augmentations import (
    CenterCrop,
    CutMix,
    HorizontalFlip,
    MixUp,
    RandAugment,
    RandomCrop,
    RandomErasing,
    RandomResizedCrop,
    Resize,
)
from hf_reinforce.augmentations.policies import (
    POLICY_NAMES,
    AugmentationPolicy,
    evaluation_policy,
    load_policy,
    named_policy,
)
from hf_reinforce.images import ImageError
from hf_reinforce.schema import MAX_IMAGE_SIDE

USER_POLICY = """
name: mine
operations:
  - resize: {size: 40, interpolation: bicubic}
  - random_crop: {size: 36, padding: 2}
  - horizontal_flip
  - rand_augment: {num_ops: 3, magnitude: 5, p: 0.5}
  - random_erasing: {p: 0.1, scale: [0.1, 0.2]}
  - mixup: {alpha: 0.2}
  - cutmix:
"""


@pytest.fixture
def image(photo):
    return images.from_pil(photo)


def draw(policy, count, slot=0, height=140, width=200):
    return [policy.sample(0, row, slot, height, width) for row in range(count)]


# --- Reading and writing


def test_named_policies_are_those_of_the_paper_and_round_trip(tmp_path):
    crop = (RandomResizedCrop(224, (0.08, 1.0), (3 / 4, 4 / 3), "bilinear"), HorizontalFlip(0.5))
    small = (Resize(224), RandomCrop(224, padding=16), HorizontalFlip(0.5))
    strong = (RandAugment(num_ops=2, magnitude=9, p=1.0), RandomErasing(0.25, (0.02, 0.33), (0.3, 3.3)))
    mixing = (MixUp(alpha=1.0, p=0.5), CutMix(alpha=1.0, p=0.5))
    expected = {"rrc": crop, "mixing": crop + mixing, "randaug": crop + strong}
    expected |= {"mixing_randaug": crop + strong + mixing, "small_crop": small, "small_mixing": small + mixing}
    expected |= {"small_randaug": small + strong, "small_mixing_randaug": small + strong + mixing}
    assert set(expected) == set(POLICY_NAMES)
    for name, operations in expected.items():
        policy = named_policy(name, 224)
        assert (policy.name, policy.operations, policy.image_size) == (name, operations, 224)
        assert AugmentationPolicy.from_dict(json.loads(json.dumps(policy.to_dict()))) == policy
        (tmp_path / "policy.yaml").write_text(yaml.safe_dump(policy.to_dict()), encoding="utf-8")
        read = load_policy(tmp_path / "policy.yaml", image_size=32)
        assert read == load_policy(name) == policy and hash(read) == hash(policy)
    assert named_policy("small_crop", 32).operations == (Resize(32), RandomCrop(32, padding=4), HorizontalFlip(0.5))


def test_user_policy_from_yaml(tmp_path, image):
    path = tmp_path / "mine.yml"
    path.write_text(USER_POLICY, encoding="utf-8")
    view = Resize(40, "bicubic"), RandomCrop(36, 2), HorizontalFlip(), RandAugment(3, 5, 0.5)
    policy = AugmentationPolicy("mine", (*view, RandomErasing(0.1, (0.1, 0.2)), MixUp(0.2), CutMix()))
    assert load_policy(path, image_size=224) == policy and policy.image_size == 36
    for params in draw(policy, 10):
        assert len(params["rand_augment"]) == 3 and policy.apply(image, params).shape == (3, 36, 36)


def operations(*items):
    return {"name": "a", "operations": [*items]}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], r"A policy is {name: TEXT, operations: \[OPERATION, ...\]}; found \[\]"),
        (None, "A policy is .* found None"),
        ({"name": "a"}, "A policy is .* found {'name': 'a'}"),
        ({"name": 3, "operations": ["center_crop"]}, "A policy is "),
        ({**operations("center_crop"), "extra": 1}, "A policy is .*'extra'"),
        ({"name": "a", "operations": {"center_crop": {}}}, "A policy is "),
        ({"name": "../a", "operations": ["center_crop"]}, "name makes a folder"),
        (operations("center_cropp"), "Unknown operation 'center_cropp'.*center_crop"),
        (operations({"center_crop": {}, "mixup": {}}), "An operation is written as {name"),
        (operations(3), "An operation is written as {name"),
        (operations({}), "An operation is written as {name"),
        (operations({"center_crop": {"sise": 3}}), r"takes the options \['size'\]; found .*sise"),
        (operations({"center_crop": {"name": "b"}}), r"takes the options \['size'\]"),
        (operations({"center_crop": 224}), r"takes the options \['size'\]; found 224"),
        (operations("center_crop", {"mixup": {"p": "often"}}), "mixup: p must be a number from 0 to 1, not 'often'"),
        (operations({"random_resized_crop": {"scale": [0.5, 0.1]}}), r"scale must be two .* not \[0.5, 0.1\]"),
    ],
)
def test_a_wrong_policy_raises_with_what_was_expected(data, message):
    with pytest.raises(ValueError, match=message):
        AugmentationPolicy.from_dict(data)


def test_policies_that_cannot_be_loaded_are_named(tmp_path):
    path = tmp_path / "wrong.yaml"
    for text in ("{name: a, operations: [rotate]}", "name: [", "", "- 3"):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match=r"wrong\.yaml is not a policy"):
            load_policy(path)
    with pytest.raises(ValueError, match=r"no policy file .*absent\.yaml"):
        load_policy(tmp_path / "absent.yaml")
    with pytest.raises(ValueError, match=r"Unknown policy 'randaugment'.*mixing_randaug.*YAML"):
        load_policy("randaugment", 224)
    with pytest.raises(ValueError, match="size must be a whole number from 1 to 32767, not 0"):
        load_policy("rrc", 0)


@dataclass(frozen=True)
class SecondFlip(HorizontalFlip):
    name: ClassVar[str] = "second_flip"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        *(
            (wrong, "at most one resize, exactly one crop, operations on the view and then mixing")
            for wrong in (
                (),
                (HorizontalFlip(),),
                (CenterCrop(8), RandomCrop(8)),
                (HorizontalFlip(), CenterCrop(8)),
                (CenterCrop(8), Resize(8)),
                (Resize(8), Resize(9), CenterCrop(8)),
                (CenterCrop(8), MixUp(), HorizontalFlip()),
                (MixUp(), CenterCrop(8)),
            )
        ),
        ((CenterCrop(8), HorizontalFlip(), HorizontalFlip(0.1)), "'wrong' has two operations that store the same"),
        ((CenterCrop(8), HorizontalFlip(), SecondFlip()), "'wrong' has two operations that store the same field"),
    ],
)
def test_a_wrong_order_raises_with_the_right_one(wrong, message):
    with pytest.raises(ValueError, match=message):
        AugmentationPolicy("wrong", wrong)


def test_evaluation_policy_resizes_and_cuts_the_centre(image):
    policy = evaluation_policy(96, crop_pct=0.875)
    assert policy.operations == (Resize(109), CenterCrop(96))
    resized = F.resize(image.contiguous(), [109], antialias=True)
    assert torch.equal(policy.apply(image, policy.sample(0, 0, 0, 140, 200)), F.center_crop(resized, [96, 96]))
    assert evaluation_policy(224, 0.875, "bicubic").operations == (Resize(256, "bicubic"), CenterCrop(224))
    assert evaluation_policy(224, crop_mode="squash").image_size == 224


# --- Sampling


@pytest.mark.parametrize("name", POLICY_NAMES)
def test_params_are_a_function_of_seed_row_and_slot_and_survive_parquet(through_parquet, image, name):
    policy = named_policy(name, 32)
    keys = [(seed, row, slot) for seed in range(2) for row in range(5) for slot in range(5)]
    forwards = {key: policy.sample(*key, 140, 200) for key in keys}
    assert forwards == {key: policy.sample(*key, 140, 200) for key in reversed(keys)}
    assert len({json.dumps(params) for params in forwards.values()}) > len(keys) / 2
    stored = {op.field: op.feature for op in policy.operations if op.field is not None}
    rows = [{"params": params} for params in [*forwards.values()][:12]]
    assert all(list(row["params"]) == list(stored) for row in rows)
    read = through_parquet(rows, Features({"params": stored}))
    assert list(read) == rows
    for before, after in zip(rows, read, strict=True):
        assert torch.equal(policy.apply(image, before["params"]), policy.apply(image, after["params"]))


def test_mixing_is_drawn_independently():
    params = draw(named_policy("mixing", 32), 4000)
    mixup, cutmix = (np.array([item[field] is not None for item in params]) for field in ("mixup", "cutmix"))
    for share, expected in [(mixup, 0.5), (cutmix, 0.5), (mixup & cutmix, 0.25), (~mixup & ~cutmix, 0.25)]:
        assert share.mean() == pytest.approx(expected, abs=0.03)


def test_operations_see_the_size_that_the_one_before_left():
    for name in ("mixing_randaug", "small_mixing_randaug"):
        for params in draw(named_policy(name, 64), 200, height=500, width=900):
            for box in filter(None, (params["erase"], params["cutmix"])):
                assert box["top"] + box["height"] <= 64 and box["left"] + box["width"] <= 64
            translations = [s["magnitude"] for s in params["rand_augment"] if s["op"] in (3, 4)]
            assert all(abs(value) == pytest.approx(64 * 150 / 331 * 0.3, rel=1e-6) for value in translations)
    crops = [params["crop"] for params in draw(named_policy("small_crop", 64), 200, height=500, width=900)]
    assert max(box["top"] for box in crops) == 8 and min(box["top"] for box in crops) == -8
    assert 8 < max(box["left"] for box in crops) <= 115 + 8 - 64  # 900 x 500 becomes 115 x 64


def test_boxes_of_long_images_fit_their_columns():
    """10 x 2000 pixels are 224 x 44,800 after the resize: a box in them may not fit into int16."""
    boxes = [params["crop"] for params in draw(named_policy("rrc", 224), 50, height=10, width=2000)]
    assert max(max(box.values()) for box in boxes) <= MAX_IMAGE_SIDE
    with pytest.raises(ImageError, match=f"resized to a shorter side of 224 its longer side exceeds {MAX_IMAGE_SIDE}"):
        draw(named_policy("small_crop", 224), 1, height=10, width=2000)


def test_golden_params():
    """What one key of the widest policy stands for; stored datasets and published seeds rely on it."""
    assert named_policy("mixing_randaug", 224).sample(7, 123, 10, 375, 500) == {
        "crop": {"top": 13, "left": 276, "height": 230, "width": 178},
        "hflip": True,
        "rand_augment": [
            {"op": 4, "magnitude": 30.45317268371582},
            {"op": 8, "magnitude": 0.27000001072883606},
        ],
        "erase": {"top": 147, "left": 71, "height": 62, "width": 119},
        "mixup": {"lam": 0.6437664031982422},
        "cutmix": {"top": 0, "left": 80, "height": 78, "width": 118},
    }


# --- Views


@pytest.mark.parametrize("name", POLICY_NAMES)
def test_views_are_the_operations_one_after_the_other_whatever_is_mixed(image, name):
    policy = named_policy(name, 96)
    alone, before = AugmentationPolicy("view", policy.view_operations), image.clone()
    for row in range(8):
        params, own = policy.sample(3, row, 1, 140, 200), alone.sample(3, row, 1, 140, 200)
        assert {field: params[field] for field in own} == own
        kept, view, expected = json.dumps(params), policy.apply(image, params), image
        for operation in policy.view_operations:
            if operation.field is None or params[operation.field] is not None:
                expected = operation.apply(expected, params.get(operation.field))
        assert view.dtype == torch.uint8 and view.shape == (3, 96, 96)
        assert torch.equal(view, expected) and torch.equal(view, alone.apply(image, own, image_size=96))
        assert json.dumps(params) == kept
    assert torch.equal(image, before)


@given(st.integers(1, 600), st.integers(1, 600))
@settings(max_examples=30)
def test_views_replay_at_any_size(own_size, image_size):
    image = torch.arange(3 * 20 * 30).remainder(256).to(torch.uint8).view(3, 20, 30)
    policy = named_policy("rrc", own_size)
    assert policy.apply(image, policy.sample(0, 0, 0, 20, 30), image_size).shape == (3, image_size, image_size)


def test_replayed_boxes_and_translations_scale_with_the_view(image):
    policy = named_policy("randaug", 64)
    params = {
        "crop": {"top": 11, "left": 22, "height": 90, "width": 100},
        "hflip": True,
        "rand_augment": [{"op": 3, "magnitude": 8.7}, {"op": 0, "magnitude": 0.0}],
        "erase": {"top": 10, "left": 20, "height": 15, "width": 30},
    }
    view = F.resized_crop(image.contiguous(), 11, 22, 90, 100, [128, 128], antialias=True).flip(-1)
    expected = torch.zeros_like(view)
    expected[:, :, 17:] = view[:, :, :-17]
    expected[:, 20:50, 40:100] = 0
    assert torch.equal(policy.apply(image, params, image_size=128), expected)


# --- Mixing


@pytest.mark.parametrize("scale", [1, 2])
def test_mix_equals_the_formula_of_each_sample(scale):
    """MixUp first, then the box of the partner's own pixels; boxes scale with the images."""
    policy, generator = named_policy("mixing_randaug", 32), torch.Generator().manual_seed(0)
    own, partners = (torch.randn((24, 3, 32 * scale, 32 * scale), generator=generator) for _ in range(2))
    params, before = draw(policy, 24), (own.clone(), partners.clone())
    collated = policy.collate_mix(params)
    mixed, shares, kinds = policy.mix(own, partners, collated), policy.own_share(collated), set()
    for row, item in enumerate(params):
        lam = 1.0 if item["mixup"] is None else item["mixup"]["lam"]
        expected, share = lam * own[row] + (1 - lam) * partners[row], lam
        if item["cutmix"] is not None:
            top, left, height, width = item["cutmix"].values()
            box = np.s_[:, scale * top : scale * (top + height), scale * left : scale * (left + width)]
            expected[box] = partners[row][box]
            share *= 1 - height * width / 32**2
        torch.testing.assert_close(mixed[row], expected, atol=1e-5, rtol=0)
        assert float(shares[row]) == pytest.approx(share, abs=1e-6)
        kinds.add((item["mixup"] is None, item["cutmix"] is None))
        assert policy.mixes(item) == ((item["mixup"], item["cutmix"]) != (None, None))
        assert policy.mixes(item) != torch.equal(mixed[row], own[row])
    assert len(kinds) == 4
    assert torch.equal(own, before[0]) and torch.equal(partners, before[1])


def test_policies_of_one_image_do_not_mix():
    policy = named_policy("small_randaug", 32)
    params, own = draw(policy, 3), torch.rand(3, 3, 32, 32)
    assert policy.mix_operations == () and policy.collate_mix(params) == {}
    assert not any(policy.mixes(item) for item in params)
    assert torch.equal(policy.mix(own, own.flip(0), {}), own)
