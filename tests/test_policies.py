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
    AUGMENTATIONS,
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
from hf_reinforce.augmentations.rand_augment import OPERATIONS
from hf_reinforce.schema import MAX_IMAGE_SIDE

MIXING_NAMES = [name for name in POLICY_NAMES if "mixing" in name]
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


@pytest.mark.parametrize("size", [32, 224])
@pytest.mark.parametrize("name", POLICY_NAMES)
def test_named_policies_round_trip_through_json_and_yaml(tmp_path, name, size):
    policy = named_policy(name, size)
    data = policy.to_dict()
    assert AugmentationPolicy.from_dict(json.loads(json.dumps(data))) == policy
    path = tmp_path / "policy.yaml"
    path.write_text(yaml.safe_dump(data), encoding="utf-8")
    assert load_policy(str(path)) == load_policy(path) == policy
    assert hash(load_policy(path)) == hash(policy)
    assert data["name"] == policy.name == name
    assert policy.image_size == size


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_every_operation_round_trips_through_json(name):
    operation = AUGMENTATIONS[name]()
    operations = (operation,) if operation.stage == "crop" else (operation, CenterCrop(8))
    operations = operations if operation.stage in ("resize", "crop") else operations[::-1]
    policy = AugmentationPolicy("one", operations)
    assert AugmentationPolicy.from_dict(json.loads(json.dumps(policy.to_dict()))) == policy


def test_user_policy_from_yaml(tmp_path):
    path = tmp_path / "mine.yml"
    path.write_text(USER_POLICY, encoding="utf-8")
    expected = (
        Resize(40, "bicubic"),
        RandomCrop(36, 2),
        HorizontalFlip(),
        RandAugment(3, 5, 0.5),
        RandomErasing(0.1, (0.1, 0.2)),
        MixUp(0.2),
        CutMix(),
    )
    assert load_policy(path, image_size=224) == AugmentationPolicy("mine", expected)
    assert load_policy(path).image_size == 36


def test_user_policy_makes_views(tmp_path, image):
    path = tmp_path / "mine.yaml"
    path.write_text(USER_POLICY, encoding="utf-8")
    policy = load_policy(path)
    for params in draw(policy, 10):
        assert len(params["rand_augment"]) == 3
        assert policy.apply(image, params).shape == (3, 36, 36)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "keys 'name' and 'operations'; found list"),
        (None, "keys 'name' and 'operations'; found NoneType"),
        ({"name": "a"}, r"keys 'name' and 'operations'; found \['name'\]"),
        ({"name": "a", "operations": [], "extra": 1}, r"found \['extra', 'name', 'operations'\]"),
        ({"name": "a", "operations": [], 1: 2}, "keys 'name' and 'operations'"),
        ({"name": "a", "operations": {"center_crop": {}}}, r"must be a list such as \["),
        ({"name": "a", "operations": ["center_cropp"]}, "Unknown operation 'center_cropp'.*center_crop"),
        ({"name": "a", "operations": [{"center_crop": {}, "mixup": {}}]}, "An operation is written as {name"),
        ({"name": "a", "operations": [3]}, "An operation is written as {name"),
        ({"name": "a", "operations": [{}]}, "An operation is written as {name"),
        ({"name": "a", "operations": [{"center_crop": {"sise": 3}}]}, r"takes the options \['size'\]; found .*sise"),
        ({"name": "a", "operations": [{"center_crop": {"name": "b"}}]}, r"takes the options \['size'\]"),
        ({"name": "a", "operations": [{"center_crop": 224}]}, r"takes the options \['size'\]; found 224"),
        ({"name": "a", "operations": ["center_crop", {"mixup": {"p": "often"}}]}, "mixup: p must be 0 or a number"),
        ({"name": "a", "operations": ["center_crop", {"mixup": {"p": 2}}]}, r"mixup: p must lie in \[0, 1\], not 2"),
        (
            {"name": "a", "operations": [{"random_resized_crop": {"scale": 0.5}}]},
            "random_resized_crop: scale must be two numbers",
        ),
        ({"name": "a", "operations": [{"center_crop": {"size": "large"}}]}, "size"),
    ],
)
def test_a_wrong_policy_raises_with_what_was_expected(data, message):
    with pytest.raises(ValueError, match=message):
        AugmentationPolicy.from_dict(data)


def test_a_wrong_policy_file_is_named(tmp_path):
    path = tmp_path / "wrong.yaml"
    for text in ("{name: a, operations: [rotate]}", "name: [", "", "- 3"):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match=r"wrong\.yaml is not a policy"):
            load_policy(path)


def test_a_missing_policy_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"no policy file .*absent\.yaml"):
        load_policy(tmp_path / "absent.yaml")


@pytest.mark.parametrize("load", [named_policy, load_policy])
def test_unknown_policy_raises_with_the_known_ones(load):
    with pytest.raises(ValueError, match=r"Unknown policy 'randaugment'.*mixing_randaug.*YAML"):
        load("randaugment", 224)


@pytest.mark.parametrize("size", [0, -1])
def test_named_policy_without_pixels_raises(size):
    with pytest.raises(ValueError, match="image_size must be >= 1"):
        named_policy("rrc", size)


@dataclass(frozen=True)
class SecondFlip(HorizontalFlip):
    name: ClassVar[str] = "second_flip"


@pytest.mark.parametrize(
    "operations",
    [
        (),
        (HorizontalFlip(),),
        (CenterCrop(8), RandomCrop(8)),
        (HorizontalFlip(), CenterCrop(8)),
        (CenterCrop(8), Resize(8)),
        (Resize(8), Resize(9), CenterCrop(8)),
        (CenterCrop(8), MixUp(), HorizontalFlip()),
        (MixUp(), CenterCrop(8)),
    ],
)
def test_a_wrong_order_raises_with_the_right_one(operations):
    with pytest.raises(
        ValueError, match="at most one resize, exactly one crop, operations on the view and then mixing"
    ):
        AugmentationPolicy("wrong", operations)


@pytest.mark.parametrize("second", [HorizontalFlip(0.1), SecondFlip()])
def test_two_operations_with_one_field_raise(second):
    with pytest.raises(ValueError, match=r"'wrong'.*horizontal_flip"):
        AugmentationPolicy("wrong", (CenterCrop(8), HorizontalFlip(), second))


# --- The named policies


def test_named_policies_are_those_of_the_paper():
    crop = (RandomResizedCrop(224, (0.08, 1.0), (3 / 4, 4 / 3), "bilinear"), HorizontalFlip(0.5))
    strong = (RandAugment(num_ops=2, magnitude=9, p=1.0), RandomErasing(0.25, (0.02, 0.33), (0.3, 3.3)))
    mixing = (MixUp(alpha=1.0, p=0.5), CutMix(alpha=1.0, p=0.5))
    assert named_policy("rrc", 224).operations == crop
    assert named_policy("mixing", 224).operations == crop + mixing
    assert named_policy("randaug", 224).operations == crop + strong
    assert named_policy("mixing_randaug", 224).operations == crop + strong + mixing
    small = (Resize(224), RandomCrop(224, padding=16), HorizontalFlip(0.5))
    assert named_policy("small_crop", 224).operations == small
    assert named_policy("small_randaug", 224).operations == small + strong
    assert named_policy("small_mixing", 224).operations == small + mixing
    assert named_policy("small_mixing_randaug", 224).operations == small + strong + mixing


def test_small_policies_pad_cifar_by_four_pixels():
    assert named_policy("small_crop", 32).operations == (Resize(32), RandomCrop(32, padding=4), HorizontalFlip(0.5))


def test_mixing_is_drawn_independently():
    params = draw(named_policy("mixing", 32), 4000)
    mixup = np.array([item["mixup"] is not None for item in params])
    cutmix = np.array([item["cutmix"] is not None for item in params])
    for share, expected in [(mixup, 0.5), (cutmix, 0.5), (mixup & cutmix, 0.25), (~mixup & ~cutmix, 0.25)]:
        assert share.mean() == pytest.approx(expected, abs=0.03)


def test_a_users_rand_augment_probability_holds_for_each_operation():
    data = {"name": "mine", "operations": ["center_crop", {"rand_augment": {"num_ops": 2, "p": 0.4}}]}
    params = draw(AugmentationPolicy.from_dict(data), 4000)
    identity = np.array([[OPERATIONS[s["op"]] == "Identity" for s in p["rand_augment"]] for p in params])
    np.testing.assert_allclose(identity.mean(0), 1 - 0.4 * 13 / 14, atol=0.03)
    both = identity.all(1).mean()
    assert both == pytest.approx((1 - 0.4 * 13 / 14) ** 2, abs=0.03)


def test_evaluation_policy_resizes_and_cuts_the_centre(image):
    policy = evaluation_policy(96, crop_pct=0.875)
    assert policy.operations == (Resize(109), CenterCrop(96))
    view = policy.apply(image, policy.sample(0, 0, 0, 140, 200))
    resized = F.resize(image.contiguous(), [109], antialias=True)
    assert torch.equal(view, F.center_crop(resized, [96, 96]))
    assert evaluation_policy(224, 0.875, "bicubic").operations == (Resize(256, "bicubic"), CenterCrop(224))
    assert evaluation_policy(224).operations == (Resize(224), CenterCrop(224))


# --- Sampling


@pytest.mark.parametrize("name", POLICY_NAMES)
def test_params_are_a_function_of_seed_row_and_slot(name):
    policy = named_policy(name, 32)
    keys = [(seed, row, slot) for seed in range(2) for row in range(5) for slot in range(5)]
    forwards = {key: policy.sample(*key, 140, 200) for key in keys}
    backwards = {key: policy.sample(*key, 140, 200) for key in reversed(keys)}
    assert forwards == backwards
    assert len({json.dumps(params) for params in forwards.values()}) > len(keys) / 2


@pytest.mark.parametrize("name", POLICY_NAMES)
def test_params_fit_the_feature_and_survive_parquet(through_parquet, image, name):
    policy = named_policy(name, 32)
    rows = [{"params": params} for params in draw(policy, 12)]
    stored = {op.field: op.feature for op in policy.operations if op.field is not None}
    assert all(list(row["params"]) == list(stored) for row in rows)
    read = through_parquet(rows, Features({"params": stored}))
    assert list(read) == rows
    for before, after in zip(rows, read, strict=True):
        assert torch.equal(policy.apply(image, before["params"]), policy.apply(image, after["params"]))


def test_operations_see_the_size_that_the_one_before_left():
    for name in ("mixing_randaug", "small_mixing_randaug"):
        policy = named_policy(name, 64)
        for params in draw(policy, 200, height=500, width=900):
            for field in ("erase", "cutmix"):
                box = params[field] or {"top": 0, "left": 0, "height": 0, "width": 0}
                assert box["top"] + box["height"] <= 64 and box["left"] + box["width"] <= 64
            translations = [s["magnitude"] for s in params["rand_augment"] if s["op"] in (3, 4)]
            assert all(abs(value) == pytest.approx(64 * 150 / 331 * 0.3, rel=1e-6) for value in translations)
    crops = [params["crop"] for params in draw(named_policy("small_crop", 64), 200, height=500, width=900)]
    assert max(box["top"] for box in crops) == 8 and min(box["top"] for box in crops) == -8
    assert 8 < max(box["left"] for box in crops) <= 115 + 8 - 64  # 900 x 500 becomes 115 x 64


@pytest.mark.parametrize("name", ["rrc", "small_crop"])
def test_boxes_of_long_images_fit_their_columns(name):
    """10 x 2000 pixels are 224 x 44,800 after the resize: a box in them may not fit into int16."""
    policy = named_policy(name, 224)
    try:
        boxes = [params["crop"] for params in draw(policy, 50, height=10, width=2000)]
    except ValueError as error:
        assert str(MAX_IMAGE_SIDE) in str(error)
    else:
        assert max(max(box.values()) for box in boxes) <= MAX_IMAGE_SIDE


# --- Views


def by_hand(image, policy, params):
    for operation in policy.view_operations:
        drawn = params.get(operation.field)
        if operation.field is None or drawn is not None:
            image = operation.apply(image, drawn)
    return image


@pytest.mark.parametrize("size", [32, 96])
@pytest.mark.parametrize("name", POLICY_NAMES)
def test_views_are_the_operations_one_after_the_other(image, name, size):
    policy = named_policy(name, size)
    before = image.clone()
    for params in draw(policy, 8):
        kept = json.dumps(params)
        view = policy.apply(image, params)
        assert view.dtype == torch.uint8 and view.shape == (3, size, size)
        assert torch.equal(view, by_hand(image, policy, params))
        assert torch.equal(view, policy.apply(image, params, image_size=size))
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


def test_a_smaller_replay_resembles_the_view(image):
    """Replaying at another size describes the same picture."""
    policy = named_policy("small_randaug", 128)
    for params in draw(policy, 10):
        params["rand_augment"] = [{"op": 3, "magnitude": 20.4}, {"op": 4, "magnitude": -10.2}]
        large = F.resize(policy.apply(image, params), [64, 64], antialias=True).int()
        small = policy.apply(image, params, image_size=64).int()
        assert (large - small).abs().float().mean() < 8


# --- Mixing


def mix_reference(policy, own, partner, params, size):
    """One sample, float64 [3, S, S]: mixup, then cutmix with the partner's own pixels."""
    mixed, share = own.double().numpy().copy(), 1.0
    if params["mixup"] is not None:
        lam = params["mixup"]["lam"]
        mixed = lam * mixed + (1 - lam) * partner.double().numpy()
        share = lam
    if params["cutmix"] is not None:
        box = params["cutmix"]
        rows, columns = slice(box["top"], box["top"] + box["height"]), slice(box["left"], box["left"] + box["width"])
        mixed[:, rows, columns] = partner.double().numpy()[:, rows, columns]
        share *= 1 - box["height"] * box["width"] / size**2
    return mixed, share


@pytest.mark.parametrize("name", MIXING_NAMES)
def test_mix_equals_the_formula_of_each_sample(name):
    size, policy = 32, named_policy(name, 32)
    params = draw(policy, 24)
    generator = torch.Generator().manual_seed(0)
    own, partners = (torch.randn((24, 3, size, size), generator=generator) for _ in range(2))
    before = own.clone(), partners.clone()
    collated = policy.collate_mix(params)
    assert set(collated) == {"mixup", "cutmix"} and all(len(value) == 24 for value in collated.values())
    mixed, shares = policy.mix(own, partners, collated), policy.own_share(collated)
    kinds = set()
    for row, item in enumerate(params):
        expected, share = mix_reference(policy, own[row], partners[row], item, size)
        np.testing.assert_allclose(mixed[row], expected, atol=1e-5)
        assert float(shares[row]) == pytest.approx(share, abs=1e-6)
        kinds.add((item["mixup"] is None, item["cutmix"] is None))
        assert policy.mixes(item) == ((item["mixup"], item["cutmix"]) != (None, None))
        if not policy.mixes(item):
            assert torch.equal(mixed[row], own[row])
    assert len(kinds) == 4
    assert torch.equal(own, before[0]) and torch.equal(partners, before[1])


def test_own_share_is_the_mean_weight_of_the_own_pixels():
    policy = named_policy("mixing", 48)
    collated = policy.collate_mix(draw(policy, 60))
    mixed = policy.mix(torch.ones(60, 3, 48, 48), torch.zeros(60, 3, 48, 48), collated)
    shares = policy.own_share(collated)
    torch.testing.assert_close(shares, mixed.mean((1, 2, 3)))
    assert shares.min() < 0.3 and shares.max() == 1.0


def test_mix_scales_its_boxes_with_the_images():
    policy = named_policy("mixing", 32)
    params = {"mixup": None, "cutmix": {"top": 3, "left": 4, "height": 10, "width": 20}}
    collated = policy.collate_mix([params])
    mixed = policy.mix(torch.zeros(1, 3, 64, 64), torch.ones(1, 3, 64, 64), collated)
    expected = torch.zeros(1, 3, 64, 64)
    expected[:, :, 6:26, 8:48] = 1
    assert torch.equal(mixed, expected)
    assert policy.own_share(collated).tolist() == pytest.approx([1 - 200 / 32**2])


@pytest.mark.parametrize("name", [name for name in POLICY_NAMES if name not in MIXING_NAMES])
def test_policies_of_one_image_do_not_mix(name):
    policy = named_policy(name, 32)
    params = draw(policy, 3)
    own, partners = torch.rand(3, 3, 32, 32), torch.rand(3, 3, 32, 32)
    assert policy.mix_operations == () and policy.collate_mix(params) == {}
    assert not any(policy.mixes(item) for item in params)
    assert torch.equal(policy.mix(own, partners, {}), own)


@pytest.mark.parametrize("name", POLICY_NAMES)
def test_a_view_does_not_depend_on_the_mixing(image, name):
    """A partner's view is made from its parameters without any mixing of its own."""
    policy = named_policy(name, 32)
    view = AugmentationPolicy("view", policy.view_operations)
    for row in range(5):
        params, alone = policy.sample(3, row, 1, 140, 200), view.sample(3, row, 1, 140, 200)
        assert {field: params[field] for field in alone} == alone
        assert torch.equal(policy.apply(image, params), view.apply(image, alone))


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
