import numpy as np
import pytest
import torch
from datasets import Features
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps
from scipy.stats import ks_2samp, kstest
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms import RandAugment as TorchvisionRandAugment
from torchvision.transforms import RandomErasing as TorchvisionRandomErasing
from torchvision.transforms import RandomResizedCrop as TorchvisionRandomResizedCrop
from torchvision.transforms.autoaugment import _apply_op
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
    ViewAugmentation,
    photometric,
)
from hf_reinforce.augmentations.rand_augment import OPERATIONS, SIGNED, magnitude_of
from hf_reinforce.randomness import params_generator

HEIGHT, WIDTH = 140, 200
VIEWS = [name for name, cls in AUGMENTATIONS.items() if issubclass(cls, ViewAugmentation)]
MIXES = [name for name in AUGMENTATIONS if name not in VIEWS]
STORED = [name for name, cls in AUGMENTATIONS.items() if cls.field is not None]
MIX_SIZE = 24


@pytest.fixture
def image(photo):
    return images.from_pil(photo)


def draw(operation, count, seed=0, height=HEIGHT, width=WIDTH):
    return [operation.sample(params_generator(seed, row, 0), height, width) for row in range(count)]


def random_batch(seed, size=MIX_SIZE, batch=6):
    return torch.rand((batch, 3, size, size), generator=torch.Generator().manual_seed(seed))


# --- What holds for every augmentation


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_key_is_the_name_of_the_operation(name):
    assert AUGMENTATIONS[name].name == name


@pytest.mark.parametrize("name", STORED)
def test_params_round_trip_through_parquet(through_parquet, name):
    operation = AUGMENTATIONS[name]()
    rows = [{"params": params} for params in [None, *draw(operation, 30)]]
    features = Features({"params": operation.feature})
    read = through_parquet(rows, features)
    assert read.features == features
    assert list(read) == rows
    assert any(row["params"] is not None for row in rows)


@pytest.mark.parametrize("name", [name for name in AUGMENTATIONS if name not in STORED])
def test_operations_without_a_field_have_nothing_to_store(name):
    operation = AUGMENTATIONS[name]()
    assert operation.feature is None
    assert set(draw(operation, 5)) == {None}


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_params_depend_on_the_key_alone(name):
    operation = AUGMENTATIONS[name]()
    first = draw(operation, 40)
    assert draw(operation, 40) == first
    if all(params == first[0] for params in first):  # a deterministic operation leaves the generator alone
        rng = params_generator(0, 0, 0)
        operation.sample(rng, HEIGHT, WIDTH)
        assert rng.random() == params_generator(0, 0, 0).random()
    else:
        assert draw(operation, 40, seed=1) != first


@pytest.mark.parametrize("name", VIEWS)
def test_views_after_a_round_trip_have_identical_pixels(through_parquet, image, name):
    operation = AUGMENTATIONS[name]()
    drawn = [params for params in draw(operation, 40) if params is not None][:6] or [None]
    read = drawn
    if operation.field is not None:
        rows = [{"params": params} for params in drawn]
        read = [row["params"] for row in through_parquet(rows, Features({"params": operation.feature}))]
    for before, after in zip(drawn, read, strict=True):
        assert torch.equal(operation.apply(image, before), operation.apply(image, after))


@pytest.mark.parametrize("layout", ["channels last", "contiguous", "cropped"])
@pytest.mark.parametrize("name", VIEWS)
def test_views_are_uint8_of_the_stated_size_and_the_input_is_not_changed(image, name, layout):
    operation = AUGMENTATIONS[name]()
    if layout == "contiguous":
        image = image.contiguous()
    elif layout == "cropped":
        image = image[:, 10:120, 20:170]
    height, width = image.shape[1:]
    before = image.clone()
    drawn = draw(operation, 20, height=height, width=width)
    for params in [params for params in drawn if params is not None or operation.field is None]:
        view = operation.apply(image, params)
        assert view.dtype == torch.uint8
        expected = {
            "resize": lambda: operation.output_size(height, width),
            "crop": lambda: (operation.size, operation.size),
            "image": lambda: (height, width),
        }[operation.stage]()
        assert view.shape == (3, *expected)
        assert torch.equal(image, before)


@pytest.mark.parametrize("name", VIEWS)
def test_views_do_not_depend_on_the_memory_layout(image, name):
    operation = AUGMENTATIONS[name]()
    for params in [params for params in draw(operation, 12) if params is not None or operation.field is None]:
        assert torch.equal(operation.apply(image, params), operation.apply(image.contiguous(), params))


@pytest.mark.parametrize("size", [(1, 1), (1, 60), (60, 1), (2, 3), (31, 33)])
@pytest.mark.parametrize("name", VIEWS)
def test_views_of_tiny_and_narrow_images(name, size):
    operation = AUGMENTATIONS[name]()
    tiny = torch.full((*size, 3), 77, dtype=torch.uint8).permute(2, 0, 1)
    for params in draw(operation, 4 if operation.field is not None else 1, height=size[0], width=size[1]):
        if params is not None or operation.field is None:
            view = operation.apply(tiny, params)
            assert view.dtype == torch.uint8 and view.shape[0] == 3 and view.numel() >= tiny.numel()
            if isinstance(operation, (Resize, RandomResizedCrop, HorizontalFlip)):
                assert (view == 77).all()


@pytest.mark.parametrize("name", [name for name in VIEWS if AUGMENTATIONS[name].stage == "crop"])
@pytest.mark.parametrize("size", [32, 96, 100, 333])
def test_crops_replay_at_another_size(image, name, size):
    operation = AUGMENTATIONS[name]()
    params = draw(operation, 1)[0]
    view = operation.apply(image, params, size / operation.size)
    assert view.shape == (3, size, size)
    expected = F.resize(images.crop(image, params).contiguous(), [size, size], antialias=True)
    assert torch.equal(view, expected)


@pytest.mark.parametrize("name", MIXES)
def test_mixes_of_none_change_nothing(name):
    operation = AUGMENTATIONS[name]()
    own, partners = random_batch(0), random_batch(1)
    neutral = operation.collate([None] * len(own))
    assert neutral.shape[0] == len(own)
    assert torch.equal(operation.apply(own, partners, neutral), own)
    assert torch.equal(operation.own_share(neutral, MIX_SIZE), torch.ones(len(own)))


@pytest.mark.parametrize("name", MIXES)
def test_mixes_apply_each_samples_own_params_and_change_no_input(name):
    operation = AUGMENTATIONS[name](p=0.7)
    own, partners = random_batch(0, batch=30), random_batch(1, batch=30)
    before = own.clone(), partners.clone()
    drawn = draw(operation, 30, height=MIX_SIZE, width=MIX_SIZE)
    assert None in drawn
    mixed = operation.apply(own, partners, operation.collate(drawn))
    assert mixed.shape == own.shape and mixed.dtype == torch.float32
    assert not torch.equal(mixed, own)
    for row, params in enumerate(drawn):
        alone = operation.apply(own[row : row + 1], partners[row : row + 1], operation.collate([params]))
        torch.testing.assert_close(mixed[row], alone[0], atol=0, rtol=0)
    assert torch.equal(own, before[0]) and torch.equal(partners, before[1])


@pytest.mark.parametrize("name", MIXES)
def test_own_share_is_the_share_of_the_own_pixels(name):
    operation = AUGMENTATIONS[name](p=0.9)
    params = operation.collate(draw(operation, 40, height=MIX_SIZE, width=MIX_SIZE))
    shape = (40, 3, MIX_SIZE, MIX_SIZE)
    mixed = operation.apply(torch.ones(shape), torch.zeros(shape), params)
    share = operation.own_share(params, MIX_SIZE)
    torch.testing.assert_close(share, mixed.mean((1, 2, 3)))
    assert share.dtype == torch.float32 and share.std() > 0.1


@pytest.mark.parametrize("name", [name for name, cls in AUGMENTATIONS.items() if hasattr(cls, "p")])
@pytest.mark.parametrize("p", [-0.1, 1.1, float("nan")])
def test_probability_out_of_range_raises(name, p):
    with pytest.raises(ValueError, match=rf"{name}: p must lie in \[0, 1\]"):
        AUGMENTATIONS[name](p=p)


@pytest.mark.parametrize("name", [name for name, cls in AUGMENTATIONS.items() if hasattr(cls, "size")])
@pytest.mark.parametrize("size", [0, 2**15])
def test_size_that_no_box_can_hold_raises(name, size):
    with pytest.raises(ValueError, match=rf"{name}.*size"):
        AUGMENTATIONS[name](size=size)


@pytest.mark.parametrize("name", [name for name, cls in AUGMENTATIONS.items() if hasattr(cls, "interpolation")])
def test_unknown_interpolation_raises(name):
    with pytest.raises(ValueError, match=rf"{name}.*interpolation"):
        AUGMENTATIONS[name](interpolation="bilinearr")


@pytest.mark.parametrize(
    ("cls", "options", "message"),
    [
        (RandomResizedCrop, {"scale": (0.0, 1.0)}, "scale must be two ascending numbers"),
        (RandomResizedCrop, {"scale": (0.5, 0.1)}, "scale must be two ascending numbers"),
        (RandomResizedCrop, {"scale": (0.5, 1.1)}, "scale must be two ascending numbers"),
        (RandomResizedCrop, {"ratio": (1.0,)}, "ratio must be two ascending numbers"),
        (RandomErasing, {"ratio": (0.0, 1.0)}, "ratio must be two ascending numbers"),
        (RandomErasing, {"scale": (0.1, 0.2, 0.3)}, "scale must be two ascending numbers"),
        (RandomCrop, {"padding": -1}, "padding must lie between 0 and the size"),
        (RandAugment, {"num_ops": 0}, "num_ops must be >= 1"),
        (RandAugment, {"magnitude": 31}, r"magnitude in \[0, 30\]"),
        (RandAugment, {"magnitude": -1}, r"magnitude in \[0, 30\]"),
        (MixUp, {"alpha": 0.0}, "alpha must be > 0"),
        (CutMix, {"alpha": -1.0}, "alpha must be > 0"),
    ],
)
def test_options_out_of_range_raise(cls, options, message):
    with pytest.raises(ValueError, match=f"{cls.name}: .*{message}"):
        cls(**options)


# --- Each operation against torchvision


@pytest.mark.parametrize("size", [2, 31, 100, 139, 140, 141, 199, 224, 256])
def test_resize_equals_torchvision(image, size):
    for source in (image, image.transpose(1, 2)):
        resized = Resize(size).apply(source, None)
        assert torch.equal(resized, v2.Resize(size, antialias=True)(source.contiguous()))
        assert Resize(size).output_size(*source.shape[1:]) == tuple(resized.shape[1:])


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [32, 96, 224])
def test_random_resized_crop_pixels_equal_torchvision(image, size, interpolation):
    operation = RandomResizedCrop(size, interpolation=interpolation)
    for box in draw(operation, 8):
        expected = F.resized_crop(
            image.contiguous(),
            **box,
            size=[size, size],
            interpolation=InterpolationMode(interpolation),
            antialias=True,
        )
        assert torch.equal(operation.apply(image, box), expected)


def describe_boxes(boxes, height, width):
    """[n, 4] boxes -> statistics whose distributions are compared."""
    top, left, box_height, box_width = np.array(boxes, dtype=float).T
    return {
        "height": box_height,
        "width": box_width,
        "area": box_height * box_width,
        "ratio": box_width / box_height,
        "top": top,
        "left": left,
        "bottom": height - top - box_height,
        "right": width - left - box_width,
    }


def assert_same_distribution(ours, theirs, height, width):
    ours, theirs = (describe_boxes(boxes, height, width) for boxes in (ours, theirs))
    for name, values in ours.items():
        assert ks_2samp(values, theirs[name]).pvalue > 0.002, name
        tolerance = 5 * np.sqrt((values.var() + theirs[name].var()) / len(values)) + 1e-9
        assert abs(values.mean() - theirs[name].mean()) < tolerance, name


def values_of(box):
    return [box["top"], box["left"], box["height"], box["width"]]


@pytest.mark.parametrize(
    ("height", "width", "options"),
    [
        (140, 200, {}),
        (300, 60, {}),
        (64, 64, {"scale": (0.5, 1.0), "ratio": (1.0, 1.0)}),
        (120, 90, {"scale": (0.2, 0.4), "ratio": (0.5, 3.0)}),
    ],
)
def test_random_resized_crop_boxes_are_distributed_as_torchvisions(height, width, options):
    operation = RandomResizedCrop(**options)
    ours = [values_of(box) for box in draw(operation, 3000, height=height, width=width)]
    torch.manual_seed(0)
    blank = torch.empty(3, height, width)
    theirs = [
        TorchvisionRandomResizedCrop.get_params(blank, list(operation.scale), list(operation.ratio))
        for _ in range(3000)
    ]
    assert_same_distribution(ours, theirs, height, width)


@pytest.mark.parametrize(("height", "width"), [(10, 500), (500, 10), (3, 50), (50, 3), (7, 1000)])
def test_random_resized_crop_of_narrow_images_takes_torchvisions_central_box(height, width):
    operation = RandomResizedCrop(scale=(0.9, 1.0))  # never fits, so all ten tries fail
    expected = TorchvisionRandomResizedCrop.get_params(
        torch.empty(3, height, width), [0.9, 1.0], list(operation.ratio)
    )
    assert {tuple(values_of(box)) for box in draw(operation, 5, height=height, width=width)} == {expected}


@given(st.integers(1, 400), st.integers(1, 400), st.integers(0, 1000))
def test_random_resized_crop_boxes_lie_inside(height, width, row):
    box = RandomResizedCrop().sample(params_generator(0, row, 0), height, width)
    assert box["top"] >= 0 and box["left"] >= 0 and box["height"] > 0 and box["width"] > 0
    assert box["top"] + box["height"] <= height and box["left"] + box["width"] <= width


@pytest.mark.parametrize("size", [32, 100, 139, 140, 141, 170, 200, 201, 223, 224, 301])
def test_center_crop_equals_torchvision(image, size):
    for source in (image, image.transpose(1, 2)):
        box = CenterCrop(size).sample(params_generator(0, 0, 0), *source.shape[1:])
        assert torch.equal(CenterCrop(size).apply(source, box), F.center_crop(source.contiguous(), [size, size]))


@pytest.mark.parametrize(("size", "padding"), [(96, 0), (32, 4), (140, 10), (150, 8), (224, 60)])
def test_random_crop_equals_torchvision(image, size, padding):
    operation = RandomCrop(size, padding)
    padded = F.pad(image.contiguous(), [padding])
    for box in draw(operation, 20):
        assert box["top"] + padding >= 0 and box["left"] + padding >= 0
        expected = F.crop(padded, box["top"] + padding, box["left"] + padding, size, size)
        assert expected.shape[1:] == (size, size)
        assert box["top"] + padding + size <= padded.shape[1] and box["left"] + padding + size <= padded.shape[2]
        assert torch.equal(operation.apply(image, box), expected)


def test_random_crop_draws_every_offset_equally_often():
    boxes = draw(RandomCrop(32, 4), 9000, height=32, width=32)
    for side in ("top", "left"):
        offsets, counts = np.unique([box[side] for box in boxes], return_counts=True)
        assert offsets.tolist() == list(range(-4, 5))
        np.testing.assert_allclose(counts, 1000, rtol=0.15)
    correlation = np.corrcoef([box["top"] for box in boxes], [box["left"] for box in boxes])[0, 1]
    assert abs(correlation) < 0.05


def test_random_crop_centres_an_image_that_is_too_small(image):
    operation = RandomCrop(300, 4)
    box = draw(operation, 1)[0]
    view = operation.apply(image, box)
    assert torch.equal(view[:, 80:220, 50:250], image)
    assert int(view.sum()) == int(image.sum())


def test_horizontal_flip_mirrors(image, photo):
    assert images.to_pil(HorizontalFlip().apply(image, True)).tobytes() == ImageOps.mirror(photo).tobytes()
    assert torch.equal(HorizontalFlip().apply(image, False), image)


@pytest.mark.parametrize("p", [0.0, 0.2, 0.5, 1.0])
@pytest.mark.parametrize("cls", [HorizontalFlip, RandomErasing, MixUp, CutMix])
def test_operations_are_applied_with_their_probability(cls, p):
    applied = sum(params not in (None, False) for params in draw(cls(p=p), 2000, seed=5))
    assert applied == pytest.approx(2000 * p, abs=4 * (2000 * p * (1 - p)) ** 0.5)


@pytest.mark.parametrize(
    ("height", "width", "options"),
    [(224, 224, {}), (32, 32, {}), (60, 200, {}), (96, 96, {"scale": (0.3, 0.9), "ratio": (0.3, 1.0)})],
)
def test_random_erasing_boxes_are_distributed_as_torchvisions(height, width, options):
    operation = RandomErasing(p=1.0, **options)
    ours = [values_of(box) for box in draw(operation, 3000, height=height, width=width) if box is not None]
    torch.manual_seed(0)
    blank = torch.zeros(1, height, width)
    theirs = [
        TorchvisionRandomErasing.get_params(blank, operation.scale, operation.ratio, [0.0])[:4] for _ in range(3000)
    ]
    theirs = [box for box in theirs if box != (0, 0, height, width)]  # torchvision's word for "no box found"
    assert len(ours) == pytest.approx(len(theirs), abs=30)
    count = min(len(ours), len(theirs))
    assert_same_distribution(ours[:count], theirs[:count], height, width)


def test_random_erasing_pixels_equal_torchvision(image):
    operation = RandomErasing(p=1.0)
    for box in draw(operation, 10):
        expected = F.erase(image.contiguous(), box["top"], box["left"], box["height"], box["width"], torch.zeros(1))
        assert torch.equal(operation.apply(image, box), expected)


@pytest.mark.parametrize("scale", [0.25, 0.5, 2.0, 3.0])
def test_random_erasing_scales_with_the_view(scale):
    box = {"top": 8, "left": 16, "height": 24, "width": 40}
    side = round(96 * scale)
    view = torch.full((3, side, side), 200, dtype=torch.uint8)
    expected = view.clone()
    top, left, bottom, right = (round(edge * scale) for edge in (8, 16, 32, 56))
    expected[:, top:bottom, left:right] = 0
    assert torch.equal(RandomErasing().apply(view, box, scale), expected)


# --- RandAugment


def rand_augment(image, *steps, scale=1.0):
    params = [{"op": OPERATIONS.index(op), "magnitude": magnitude} for op, magnitude in steps]
    return images.to_pil(RandAugment(len(steps)).apply(image, params, scale))


@pytest.mark.parametrize("level", [0, 3, 9, 17, 30])
@pytest.mark.parametrize("op", OPERATIONS)
def test_each_rand_augment_operation_equals_torchvision(photo, op, level):
    dull = photo.point(lambda value: 20 + value * 7 // 10)  # without black and white, which AutoContrast would keep
    magnitude = float(np.float32(magnitude_of(op, level, WIDTH)))
    for signed in (magnitude, -magnitude) if op in SIGNED else (magnitude,):
        expected = _apply_op(dull, op, signed, InterpolationMode.NEAREST, None)
        assert rand_augment(images.from_pil(dull), (op, signed)).tobytes() == expected.tobytes()
        if level == 9 and op != "Identity":
            assert expected.tobytes() != dull.tobytes()


def test_rand_augment_applies_its_operations_in_order(image, photo):
    steps = [("Rotate", -9.0), ("Solarize", 178.5), ("TranslateY", 20.0)]
    expected = photo
    for op, magnitude in steps:
        expected = _apply_op(expected, op, magnitude, InterpolationMode.NEAREST, None)
    assert rand_augment(image, *steps).tobytes() == expected.tobytes()
    assert rand_augment(image, *reversed(steps)).tobytes() != expected.tobytes()


@pytest.mark.parametrize("size", [32, 96, 224, 331])
def test_magnitudes_equal_torchvisions(size):
    space = TorchvisionRandAugment()._augmentation_space(31, (size, size))
    for op, (magnitudes, signed) in space.items():
        assert (op in SIGNED) == signed
        for level in range(31):
            expected = float(magnitudes[level]) if magnitudes.ndim else float(magnitudes)
            assert magnitude_of(op, level, size) == pytest.approx(expected, rel=1e-5, abs=1e-4)
            if op in ("Posterize", "TranslateX", "TranslateY"):
                assert int(np.float32(magnitude_of(op, level, size))) == int(expected)


@pytest.mark.parametrize(
    ("op", "expected"),
    [
        ("Identity", 0.0),
        ("ShearX", 0.09),
        ("ShearY", 0.09),
        ("TranslateX", 30.453),
        ("TranslateY", 30.453),
        ("Rotate", 9.0),
        ("Brightness", 0.27),
        ("Color", 0.27),
        ("Contrast", 0.27),
        ("Sharpness", 0.27),
        ("Posterize", 7.0),
        ("Solarize", 178.5),
        ("AutoContrast", 0.0),
        ("Equalize", 0.0),
    ],
)
def test_magnitudes_of_the_paper_at_224_pixels(op, expected):
    assert magnitude_of(op, 9, 224) == pytest.approx(expected, abs=5e-4)


def test_rand_augment_draws_operations_and_signs_uniformly():
    steps = [step for params in draw(RandAugment(), 7000) for step in params]
    ops = np.array([step["op"] for step in steps])
    np.testing.assert_allclose(np.bincount(ops, minlength=14), 1000, rtol=0.15)
    for index, op in enumerate(OPERATIONS):
        signs = np.sign([step["magnitude"] for step in steps if step["op"] == index])
        if op in SIGNED:
            assert abs(signs.mean()) < 0.12 and set(signs) == {-1.0, 1.0}
        else:
            assert -1.0 not in signs
    first, second = ops.reshape(-1, 2).T
    assert np.mean(first == second) == pytest.approx(1 / 14, abs=0.02)


@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
def test_rand_augment_applies_each_operation_with_its_own_probability(p):
    ops = np.array([[step["op"] for step in params] for params in draw(RandAugment(p=p), 4000)])
    changed = ops != OPERATIONS.index("Identity")
    share = p * 13 / 14
    np.testing.assert_allclose(changed.mean(0), share, atol=0.03)
    assert changed.all(1).mean() == pytest.approx(share**2, abs=0.03)
    identities = [step for params in draw(RandAugment(p=p), 100) for step in params if step["op"] == 0]
    assert identities and all(step["magnitude"] == 0.0 for step in identities)


@pytest.mark.parametrize("num_ops", [1, 2, 5])
def test_rand_augment_draws_num_ops_operations_of_its_magnitude(num_ops):
    for params in draw(RandAugment(num_ops, magnitude=20), 50):
        assert len(params) == num_ops
        for step in params:
            expected = magnitude_of(OPERATIONS[step["op"]], 20, WIDTH)
            assert abs(step["magnitude"]) == np.float32(expected)


@pytest.mark.parametrize("scale", [0.5, 2.0])
@pytest.mark.parametrize("op", OPERATIONS)
def test_only_translations_scale_with_the_view(image, photo, op, scale):
    magnitude = magnitude_of(op, 9, 224)
    replayed = magnitude * scale if op.startswith("Translate") else magnitude
    expected = _apply_op(photo, op, replayed, InterpolationMode.NEAREST, None)
    assert rand_augment(image, (op, magnitude), scale=scale).tobytes() == expected.tobytes()


def test_translation_moves_by_a_number_of_pixels_in_its_direction(image):
    moved = images.from_pil(rand_augment(image, ("TranslateX", 30.453)))
    assert torch.equal(moved[:, :, 30:], image[:, :, :-30]) and not moved[:, :, :30].any()
    moved = images.from_pil(rand_augment(image, ("TranslateY", -12.9)))
    assert torch.equal(moved[:, :-12], image[:, 12:]) and not moved[:, -12:].any()


# --- MixUp and CutMix


def test_mixup_equals_the_formula_of_each_sample():
    operation = MixUp(p=0.8)
    own, partners = random_batch(0, batch=20), random_batch(1, batch=20)
    drawn = draw(operation, 20)
    mixed = operation.apply(own, partners, operation.collate(drawn)).numpy()
    for row, params in enumerate(drawn):
        lam = 1.0 if params is None else params["lam"]
        expected = lam * own[row].double().numpy() + (1.0 - lam) * partners[row].double().numpy()
        np.testing.assert_allclose(mixed[row], expected, atol=1e-6)


@pytest.mark.parametrize("alpha", [0.2, 1.0, 3.0])
def test_mixup_draws_lam_from_a_beta_distribution(alpha):
    lams = [params["lam"] for params in draw(MixUp(alpha=alpha, p=1.0), 2000)]
    assert kstest(lams, "beta", args=(alpha, alpha)).pvalue > 0.01


def test_cutmix_equals_pasting_each_samples_box():
    operation = CutMix(p=0.8)
    own, partners = random_batch(0, batch=20), random_batch(1, batch=20)
    drawn = draw(operation, 20, height=MIX_SIZE, width=MIX_SIZE)
    mixed = operation.apply(own, partners, operation.collate(drawn))
    shares = operation.own_share(operation.collate(drawn), MIX_SIZE)
    for row, box in enumerate(drawn):
        expected = own[row].numpy().copy()
        if box is not None:
            rows = slice(box["top"], box["top"] + box["height"])
            columns = slice(box["left"], box["left"] + box["width"])
            expected[:, rows, columns] = partners[row].numpy()[:, rows, columns]
        np.testing.assert_array_equal(mixed[row].numpy(), expected)
        area = 0 if box is None else box["height"] * box["width"]
        assert float(shares[row]) == pytest.approx(1 - area / MIX_SIZE**2, abs=1e-6)


@pytest.mark.parametrize("alpha", [0.3, 1.0])
def test_cutmix_boxes_are_distributed_as_torchvisions(alpha):
    size, count = 64, 3000
    ours = [values_of(box) for box in draw(CutMix(alpha=alpha, p=1.0), count, height=size, width=size)]
    torch.manual_seed(0)
    theirs, transform = [], v2.CutMix(alpha=alpha, num_classes=2)
    blank = torch.empty(2, 3, size, size)
    for _ in range(count):
        left, top, right, bottom = transform.make_params([blank])["box"]
        theirs.append((top, left, bottom - top, right - left))
    names = ("height", "width", "top", "left")
    for name, column in zip(names, (2, 3, 0, 1), strict=True):
        assert ks_2samp(np.array(ours)[:, column], np.array(theirs)[:, column]).pvalue > 0.002, name
    areas = [np.array(boxes)[:, 2] * np.array(boxes)[:, 3] for boxes in (ours, theirs)]
    assert ks_2samp(*areas).pvalue > 0.002


@given(st.integers(1, 300), st.integers(0, 1000))
def test_cutmix_boxes_lie_inside(size, row):
    box = CutMix(p=1.0).sample(params_generator(0, row, 0), size, size)
    assert 0 <= box["top"] <= box["top"] + box["height"] <= size
    assert 0 <= box["left"] <= box["left"] + box["width"] <= size


@pytest.mark.parametrize("size", [12, 36, 48, 84])
def test_cutmix_scales_with_the_view_as_other_boxes_do(size):
    box = {"top": 3, "left": 5, "height": 7, "width": 10}
    own, partners = random_batch(0, size, batch=1), random_batch(1, size, batch=1)
    scale = size / MIX_SIZE
    mixed = CutMix().apply(own, partners, CutMix().collate([box]), scale)
    scaled = images.scale_box(box, scale)
    pasted = torch.zeros(size, size, dtype=torch.bool)
    pasted[scaled["top"] : scaled["top"] + scaled["height"], scaled["left"] : scaled["left"] + scaled["width"]] = True
    assert torch.equal(mixed[0], torch.where(pasted, partners[0], own[0]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", MIXES)
def test_mixes_keep_the_dtype(name, dtype):
    operation = AUGMENTATIONS[name](p=1.0)
    params = operation.collate(draw(operation, 6, height=MIX_SIZE, width=MIX_SIZE))
    assert operation.apply(random_batch(0).to(dtype), random_batch(1).to(dtype), params).dtype == dtype


def odd_pictures():
    """Pictures of few pixels, noisy, flat, gray, of few colours, and flat in one channel."""
    rng = np.random.default_rng(0)
    for size in ((1, 1), (2, 5), (3, 3), (5, 2), (33, 57)):
        noise = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
        one_flat = noise.copy()
        one_flat[..., 1] = 7
        gray = rng.integers(40, 90, (*size, 1), dtype=np.uint8).repeat(3, axis=2)
        for pixels in (noise, noise // 128 * 255, np.full_like(noise, noise[0, 0]), one_flat, gray):
            yield Image.fromarray(pixels)


@pytest.mark.parametrize("op", OPERATIONS)
def test_every_magnitude_has_the_pixels_of_pillow(op):
    for picture in odd_pictures():
        for level in range(31) if magnitude_of(op, 0, 9) or magnitude_of(op, 30, 9) else (0,):
            magnitude = float(np.float32(magnitude_of(op, level, picture.width)))
            for signed in (magnitude, -magnitude) if op in SIGNED else (magnitude,):
                expected = _apply_op(picture, op, signed, InterpolationMode.NEAREST, None)
                assert rand_augment(images.from_pil(picture), (op, signed)).tobytes() == expected.tobytes(), level


def test_any_sequence_of_operations_has_the_pixels_of_pillow(photo):
    rng, photo = np.random.default_rng(0), photo.resize((45, 31))
    image = images.from_pil(photo)
    for _ in range(150):
        steps, expected = [], photo
        for op in rng.choice(OPERATIONS, 4):
            steps.append((str(op), float(np.float32(magnitude_of(str(op), int(rng.integers(31)), 45)))))
            expected = _apply_op(expected, *steps[-1], InterpolationMode.NEAREST, None)
        assert rand_augment(image, *steps).tobytes() == expected.tobytes(), steps
    assert torch.equal(image, images.from_pil(photo)), "the input is not changed"


@pytest.mark.parametrize("factor", [*(1 + 0.03 * level for level in range(-30, 31)), -3.0, 0.5, 7.7, 300.0])
def test_blending_equals_pillows_for_all_pairs_of_values(factor):
    first, second = np.mgrid[:256, :256].astype(np.uint8)
    expected = Image.blend(Image.fromarray(first), Image.fromarray(second), float(np.float32(factor)))
    np.testing.assert_array_equal(photometric._blend(first, second, float(np.float32(factor))), np.asarray(expected))
